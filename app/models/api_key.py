from datetime import datetime

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.core.clock import utc_now
from app.core.quota import Quota
from app.models.base import BaseDocument


class ApiKey(BaseDocument):
    """A long-lived credential: a user's own when it has an owner, a service's otherwise. Only a keyed hash is kept."""

    key_id: str
    key_hash: bytes
    name: str
    description: str | None = None
    scopes: list[str]
    allowed_ips: list[str] = Field(default_factory=list)
    rate_limit: str | None = None
    quota: Quota | None = None
    owner_id: PydanticObjectId | None = None
    created_by: PydanticObjectId | None = None
    is_active: bool = True
    expires_at: datetime | None = None
    updated_at: datetime = Field(default_factory=utc_now)
    held_at: datetime | None = None  # when something was last made that relies on it
    rotated_from: PydanticObjectId | None = None
    lineage_id: PydanticObjectId | None = None  # of the first of those that followed each other; none for that one
    grace_until: datetime | None = None  # it was rotated, and ends here; `expires_at` is no later
    noticed_days: int | None = None  # so many days before the expiry its holder was last warned
    # Written in batches, by nothing that changes anything else: the change feed does not tell of it.
    last_used_at: datetime | None = None
    last_used_ip: str | None = None

    @property
    def lineage(self) -> PydanticObjectId:
        """Under which the quota is counted: rotation gives no fresh one."""
        return self.lineage_id or self.id

    class Settings:
        name = "api_keys"
        indexes = [  # noqa: RUF012
            IndexModel([("key_id", ASCENDING)], name="key_id_unique", unique=True),
            IndexModel(
                [("owner_id", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
                name="owner_newest",
            ),
            IndexModel([("created_at", DESCENDING), ("_id", DESCENDING)], name="newest"),
            IndexModel(
                [("is_active", ASCENDING), ("expires_at", ASCENDING), ("_id", ASCENDING)], name="active_first_to_expire"
            ),
            IndexModel([("created_by", ASCENDING)], name="creator"),
        ]
