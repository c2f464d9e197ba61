from datetime import datetime

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.core.clock import utc_now
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
    owner_id: PydanticObjectId | None = None
    created_by: PydanticObjectId | None = None
    is_active: bool = True
    expires_at: datetime | None = None
    updated_at: datetime = Field(default_factory=utc_now)
    held_at: datetime | None = None  # when something was last made that relies on it

    class Settings:
        name = "api_keys"
        indexes = [  # noqa: RUF012
            IndexModel([("key_id", ASCENDING)], name="key_id_unique", unique=True),
            IndexModel(
                [("owner_id", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
                name="owner_newest",
            ),
            IndexModel([("created_at", DESCENDING), ("_id", DESCENDING)], name="newest"),
            IndexModel([("expires_at", ASCENDING)], name="expiry"),
            IndexModel([("created_by", ASCENDING)], name="creator"),
        ]
