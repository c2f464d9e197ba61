from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from pydantic import BaseModel, Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.core.clock import utc_now
from app.core.principal import PrincipalKind
from app.models.base import BaseDocument
from app.models.enums import AuditAction, AuditOutcome


class AuditActor(BaseModel):
    kind: PrincipalKind
    id: PydanticObjectId | None
    name: str | None


class AuditTarget(BaseModel):
    kind: str
    id: PydanticObjectId | None


class AuditEvent(BaseDocument):
    """One thing that has happened: who did what to what, from where. Never changed, never deleted."""

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
            IndexModel([("actor.id", ASCENDING), ("_id", DESCENDING)], name="actor_newest"),
            IndexModel([("target.id", ASCENDING), ("_id", DESCENDING)], name="target_newest"),
            IndexModel([("action", ASCENDING), ("_id", DESCENDING)], name="action_newest"),
            IndexModel([("time", DESCENDING)], name="time"),
        ]
