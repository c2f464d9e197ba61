"""The audit trail: every event is written through `record`."""

from typing import Any

from bson import ObjectId

from app.core.context import current_context
from app.core.principal import Principal
from app.models.audit_event import AuditActor, AuditEvent, AuditTarget
from app.models.enums import AuditAction, AuditOutcome


async def record(
    action: AuditAction,
    *,
    by: Principal,
    target: tuple[str, ObjectId | None],
    outcome: AuditOutcome = AuditOutcome.SUCCESS,
    **details: Any,
) -> None:
    """Write what has happened, to a `(kind, id)`.

    Call it inside the transaction that made it happen: what can't be recorded did not happen. Never pass a secret.
    """
    context = current_context()
    await AuditEvent(
        actor=AuditActor(kind=by.kind, id=by.id, name=by.name),
        action=action,
        target=AuditTarget(kind=target[0], id=target[1]),
        outcome=outcome,
        ip=context.client_ip,
        user_agent=context.user_agent,
        request_id=context.request_id,
        details=details,
    ).insert()
