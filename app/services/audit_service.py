"""The audit trail: every event is written through `record`, and is a line of the log once it is committed."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from bson import ObjectId

from app.core.context import RequestContext, current_context
from app.core.ecs import fields_of
from app.core.logging_config import get_logger
from app.core.principal import Principal
from app.crud import crud_audit_event
from app.db.mongo import after_commit
from app.models.audit_event import AuditActor, AuditEvent, AuditTarget
from app.models.enums import AuditAction, AuditOutcome

_log = get_logger(__name__)


async def record(
    action: AuditAction,
    *,
    by: Principal,
    target: tuple[str, ObjectId | None],
    outcome: AuditOutcome = AuditOutcome.SUCCESS,
    context: RequestContext | None = None,
    **details: Any,
) -> ObjectId:
    """Write what has happened, to a `(kind, id)`: the id of the event.

    Call it inside the transaction that made it happen: what can't be recorded did not happen. Never pass a secret.
    `context` is where it came from, when that is not the request under way.
    """
    context = context or current_context()
    event = new_event(action, by=by, target=target, outcome=outcome, context=context, **details)
    await event.insert()
    after_commit(partial(_tell, event, context))
    return ObjectId(event.id)


def new_event(
    action: AuditAction,
    *,
    by: Principal,
    target: tuple[str, ObjectId | None],
    outcome: AuditOutcome,
    context: RequestContext,
    **details: Any,
) -> AuditEvent:
    """An event that is not written yet: for what many are written of at once."""
    return AuditEvent(
        actor=AuditActor(kind=by.kind, id=by.id, name=by.name),
        action=action,
        target=AuditTarget(kind=target[0], id=target[1]),
        outcome=outcome,
        ip=context.client_ip,
        user_agent=context.user_agent,
        request_id=context.request_id,
        details=details,
    )


async def record_all(events: Sequence[AuditEvent]) -> None:
    """Write events of no request under way, at once. `ConflictError` when they were written before."""
    await crud_audit_event.add(events)
    after_commit(partial(tell_all, events))


def tell_all(events: Sequence[AuditEvent]) -> None:
    """Put lines into the log for events that are committed."""
    for event in events:
        _tell(event, RequestContext())


def _tell(event: AuditEvent, context: RequestContext) -> None:
    context.has_recorded_failure |= event.outcome is AuditOutcome.FAILURE
    _log.info(event.action, **fields_of(event.model_dump()))
