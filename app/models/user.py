from datetime import UTC, datetime

from beanie import PydanticObjectId
from pydantic import BaseModel, Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.core.clock import utc_now
from app.core.plans import Plan
from app.core.scopes import Role
from app.models.base import BaseDocument

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Mfa(BaseModel):
    """A confirmed authenticator. `last_step` is the time step of the last code taken: no earlier one counts again."""

    encrypted_secret: bytes
    last_step: int
    confirmed_at: datetime
    recovery_digests: list[bytes]


class PendingMfa(BaseModel):
    """An authenticator that was set up and has not shown a code yet. Only the session that did so goes on with it."""

    encrypted_secret: bytes
    created_at: datetime
    session_id: PydanticObjectId | None = None  # none in what was stored before it was kept: no session matches


class User(BaseDocument):
    """One account. The `_key` fields hold what must be unique or searched, without case."""

    email: str
    email_key: str
    username: str | None = None
    username_key: str | None = None
    full_name: str | None = None
    full_name_key: str | None = None
    hashed_password: str
    role: Role = Role.USER
    staff_level: int | None = None
    is_active: bool = True
    is_verified: bool = False
    first_verified_at: datetime | None = None  # when an address of it was, be it the present one or not
    mfa: Mfa | None = None
    pending_mfa: PendingMfa | None = None
    plan: Plan = Plan.FREE
    limits: dict[str, int | None] = Field(default_factory=dict)  # what differs from the plan
    credits: int = 0
    version: int = 1  # counts changes; what `If-Match` compares
    updated_at: datetime = Field(default_factory=utc_now)
    password_changed_at: datetime = Field(default_factory=utc_now)
    last_login_at: datetime | None = None
    last_login_ip: str | None = None

    class Settings:
        name = "users"
        indexes = [  # noqa: RUF012 - Beanie reads it as it is
            IndexModel([("email_key", ASCENDING)], name="email_unique", unique=True),
            IndexModel(
                [("username_key", ASCENDING)],
                name="username_unique",
                unique=True,
                partialFilterExpression={"username_key": {"$gt": ""}},  # any text; provable, so that look-ups use it,
            ),
            IndexModel(
                [("mfa.confirmed_at", ASCENDING)],
                name="with_second_factor",
                partialFilterExpression={"mfa.confirmed_at": {"$gt": BEGINNING}},
            ),
            IndexModel(
                [("pending_mfa.created_at", ASCENDING)],
                name="with_pending_second_factor",
                partialFilterExpression={"pending_mfa.created_at": {"$gt": BEGINNING}},
            ),
            IndexModel([("full_name_key", ASCENDING)], name="full_name"),
            IndexModel([("created_at", DESCENDING), ("_id", DESCENDING)], name="newest"),
            IndexModel([("role", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)], name="role_newest"),
            IndexModel([("plan", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)], name="plan_newest"),
            IndexModel(
                [("is_active", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)], name="active_newest"
            ),
        ]

    @property
    def was_ever_verified(self) -> bool:
        return self.is_verified or self.first_verified_at is not None

    @property
    def mfa_enabled(self) -> bool:
        return self.mfa is not None

    @property
    def is_superuser(self) -> bool:
        return self.role is Role.SUPERUSER
