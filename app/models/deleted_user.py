from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from pymongo import ASCENDING, IndexModel

from app.models.base import BaseDocument


class DeletedUser(BaseDocument):
    """An account as it was when it was deleted, under the same id, kept so that it can be restored."""

    user: dict[str, Any]
    email_key: str
    deleted_at: datetime
    deleted_by: PydanticObjectId | None
    reason: str | None
    purge_at: datetime

    class Settings:
        name = "deleted_users"
        indexes = [  # noqa: RUF012
            # Not a TTL index: the purge also removes what the user owned.
            IndexModel([("purge_at", ASCENDING)], name="purge_due"),
            IndexModel([("email_key", ASCENDING)], name="email"),
        ]
