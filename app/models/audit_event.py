from datetime import datetime
from typing import Any, Final

from beanie import PydanticObjectId
from pydantic import BaseModel, Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.core.clock import utc_now
from app.core.principal import PrincipalKind
from app.models.base import BaseDocument
from app.models.enums import AuditAction, AuditOutcome

_NEWEST: Final = [("time", DESCENDING), ("_id", DESCENDING)]


class AuditActor(BaseModel):
    kind: PrincipalKind
    id: PydanticObjectId | None
    name: str | None


class AuditTarget(BaseModel):
    kind: str
    id: PydanticObjectId | None


class AuditEvent(BaseDocument):
    """One thing that has happened: who did what to what, from where. Never changed, never deleted.

    It is unsealed while it has no `seq`. Sealing adds that, `prev_hash` and `hash`; they are no fields here, because
    the unique index would take a stored null for a place in the chain.
    """

    time: datetime = Field(default_factory=utc_now)
    actor: AuditActor
    action: AuditAction
    target: AuditTarget
    outcome: AuditOutcome
    ip: str | None
    user_agent: str | None
    request_id: str | None
    details: dict[str, Any]

    class Settings:
        name = "audit_events"
        indexes = [  # noqa: RUF012
            IndexModel([("actor.id", ASCENDING), *_NEWEST], name="actor_newest_time"),
            IndexModel([("target.id", ASCENDING), *_NEWEST], name="target_newest_time"),
            IndexModel([("action", ASCENDING), *_NEWEST], name="action_newest_time"),
            IndexModel([("ip", ASCENDING), *_NEWEST], name="ip_newest_time"),
            IndexModel([*_NEWEST], name="newest_time"),
            IndexModel(
                [("outcome", ASCENDING), *_NEWEST],
                name="failures_newest_time",
                partialFilterExpression={"outcome": AuditOutcome.FAILURE.value},
            ),
            IndexModel([("seq", ASCENDING)], name="seq_unique", unique=True, sparse=True),
            # Holds only what is unsealed.
            IndexModel(
                [("seq", ASCENDING), ("_id", ASCENDING)], name="unsealed", partialFilterExpression={"seq": None}
            ),
        ]
