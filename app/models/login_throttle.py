from datetime import datetime

from beanie import Document
from pymongo import ASCENDING, IndexModel


class LoginThrottle(Document):
    """The tries of one kind at one account, or at a name that no account has, that have not succeeded.

    Under an id of its own also that the owner was told of a lock, until it may be told again.
    """

    id: bytes  # type: ignore[assignment]  # a keyed hash: who reads the database learns no names
    tries: int
    tried_at: datetime
    has_failed: bool  # whether the try that locked has failed; before that it may still succeed
    locked_until: datetime | None
    forgotten_at: datetime

    class Settings:
        name = "login_throttles"
        indexes = [  # noqa: RUF012
            IndexModel([("forgotten_at", ASCENDING)], name="forgotten", expireAfterSeconds=0),
        ]
