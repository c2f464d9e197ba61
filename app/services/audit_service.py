"""The audit trail: every event is written through `record`, and is a line of the log once it is committed."""

from functools import partial
from typing import Any

from bson import ObjectId

from app.core.context import RequestContext, current_context
from app.core.ecs import fields_of
from app.core.logging_config import get_logger
from app.core.principal import Principal
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
    event = AuditEvent(
        actor=AuditActor(kind=by.kind, id=by.id, name=by.name),
        action=action,
        target=AuditTarget(kind=target[0], id=target[1]),
        outcome=outcome,
        ip=context.client_ip,
        user_agent=context.user_agent,
        request_id=context.request_id,
        details=details,
    )
    await event.insert()
    after_commit(partial(_tell, event, context))
    return ObjectId(event.id)


def _tell(event: AuditEvent, context: RequestContext) -> None:
    context.has_recorded_failure |= event.outcome is AuditOutcome.FAILURE
    _log.info(event.action, **fields_of(event.model_dump()))
