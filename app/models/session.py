from datetime import datetime

from beanie import PydanticObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.core.scopes import Role
from app.models.base import BaseDocument


class Session(BaseDocument):
    """One sign-in. It is the authority: no session, no access, whatever the token says.

    What is the user's (`username`, `role`, `staff_level`, `is_verified` and the rate of its plan) is repeated so that
    one read authenticates; whoever changes it on the user changes it here in the same transaction.
    """

    user_id: PydanticObjectId
    username: str | None
    role: Role
    staff_level: int | None = None
    rate_limit: str | None = None
    is_verified: bool = False
    has_mfa: bool = False  # whether a second factor was shown
    refresh_digest: bytes
    generation: int = 0  # how many times the refresh token was exchanged
    rotated_at: datetime | None = None
    last_used_at: datetime
    expires_at: datetime
    ip: str | None
    user_agent: str | None
    device: str | None = None

    class Settings:
        name = "sessions"
        indexes = [  # noqa: RUF012
            IndexModel([("user_id", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)], name="user_newest"),
            IndexModel(
                [("user_id", ASCENDING), ("last_used_at", DESCENDING), ("_id", DESCENDING)], name="user_latest_used"
            ),
            IndexModel([("expires_at", ASCENDING)], name="expired", expireAfterSeconds=0),
        ]
