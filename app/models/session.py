from datetime import datetime

from beanie import PydanticObjectId
from pymongo import ASCENDING, IndexModel

from app.core.scopes import Role
from app.models.base import BaseDocument


class Session(BaseDocument):
    """One sign-in. It is the authority: no session, no access, whatever the token says.

    `username` and `role` are the user's, repeated so that one read authenticates; whoever changes them on the
    user changes them here in the same transaction.
    """

    user_id: PydanticObjectId
    username: str | None
    role: Role
    refresh_digest: bytes
    generation: int = 0  # how many times the refresh token was exchanged
    rotated_at: datetime | None = None
    last_used_at: datetime
    expires_at: datetime
    ip: str | None
    user_agent: str | None

    class Settings:
        name = "sessions"
        indexes = [  # noqa: RUF012
            IndexModel([("user_id", ASCENDING)], name="user"),
            IndexModel([("expires_at", ASCENDING)], name="expired", expireAfterSeconds=0),
        ]
