from datetime import datetime

from beanie import PydanticObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.models.base import BaseDocument
from app.models.enums import TokenPurpose


class OneTimeToken(BaseDocument):
    """A link that was mailed and not used yet. It is good for the address it was sent to, and once."""

    purpose: TokenPurpose
    user_id: PydanticObjectId
    email_key: str
    expires_at: datetime

    class Settings:
        name = "one_time_tokens"
        indexes = [  # noqa: RUF012
            IndexModel(
                [("user_id", ASCENDING), ("purpose", ASCENDING), ("created_at", DESCENDING)], name="user_purpose_newest"
            ),
            IndexModel([("expires_at", ASCENDING)], name="expired", expireAfterSeconds=0),
        ]
