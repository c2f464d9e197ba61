from datetime import datetime

from beanie import PydanticObjectId
from pymongo import ASCENDING, IndexModel

from app.models.base import BaseDocument


class UsageCounter(BaseDocument):
    """What one user has used on one day (UTC): a new day is a new document, so nothing ever resets the counts."""

    user_id: PydanticObjectId
    day: str  # "2026-11-21"
    messages: int = 0
    tokens: int = 0
    bytes: int = 0
    expires_at: datetime

    class Settings:
        name = "usage_counters"
        indexes = [  # noqa: RUF012
            IndexModel([("user_id", ASCENDING), ("day", ASCENDING)], name="user_day_unique", unique=True),
            IndexModel([("expires_at", ASCENDING)], name="expired", expireAfterSeconds=0),
        ]


class UsageTotal(BaseDocument):
    """What a user holds, whatever the day, under the user's own id.

    Not in the user's document: every conversation would make it new, and whatever remembers users forget it.
    """

    conversations: int = 0  # that the user has created and that are still there
    storage_bytes: int = 0

    class Settings:
        name = "usage_totals"
