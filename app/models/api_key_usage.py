from datetime import datetime

from beanie import PydanticObjectId
from pymongo import ASCENDING, IndexModel

from app.models.base import BaseDocument


class ApiKeyUsage(BaseDocument):
    """What was asked with one key in one hour (UTC). `denied` are those of the requests that were refused to it."""

    key_id: PydanticObjectId
    hour: datetime
    requests: int = 0
    denied: int = 0

    class Settings:
        name = "api_key_usage"
        indexes = [  # noqa: RUF012
            IndexModel([("key_id", ASCENDING), ("hour", ASCENDING)], name="key_hour_unique", unique=True),
            IndexModel([("hour", ASCENDING)], name="expired", expireAfterSeconds=400 * 24 * 3600),
        ]


class ApiKeyUsageBatch(BaseDocument):
    """The mark that a batch of counts was written: with it in one transaction, so that no batch is written twice."""

    class Settings:
        name = "api_key_usage_batches"
        indexes = [  # noqa: RUF012
            IndexModel([("created_at", ASCENDING)], name="expired", expireAfterSeconds=24 * 3600)
        ]


class ApiKeyQuota(BaseDocument):
    """What a key, with those it was rotated from, has used in one day or month (UTC)."""

    key_id: PydanticObjectId
    window: str  # "2026-11-21" or "2026-11"
    used: int = 0
    expires_at: datetime

    class Settings:
        name = "api_key_quotas"
        indexes = [  # noqa: RUF012
            IndexModel([("key_id", ASCENDING), ("window", ASCENDING)], name="key_window_unique", unique=True),
            IndexModel([("expires_at", ASCENDING)], name="expired", expireAfterSeconds=0),
        ]
