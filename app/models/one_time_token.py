from datetime import datetime, timedelta

from beanie import PydanticObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.models.base import BaseDocument
from app.models.enums import TokenPurpose

LINK_REMEMBERED = timedelta(hours=24)


class OneTimeToken(BaseDocument):
    """A link that was mailed. It is good for the address it was sent to, and once.

    One that is over is remembered for a day: its mail must not bring it back, and it counts among those of the day.
    """

    purpose: TokenPurpose
    user_id: PydanticObjectId
    email_key: str
    expires_at: datetime
    ended_at: datetime | None = None  # when it was used, or made void
    counted: int = 0  # how often others were counted against it

    class Settings:
        name = "one_time_tokens"
        indexes = [  # noqa: RUF012
            IndexModel(
                [("user_id", ASCENDING), ("purpose", ASCENDING), ("created_at", DESCENDING)], name="user_purpose_newest"
            ),
            IndexModel(
                [("created_at", ASCENDING)],
                name="remembered",
                expireAfterSeconds=int(LINK_REMEMBERED.total_seconds()),
            ),
        ]
