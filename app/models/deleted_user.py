from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.models.base import BaseDocument
from app.models.user import BEGINNING, User


class DeletedUser(BaseDocument):
    """An account as it was when it was deleted, under the same id, kept so that it can be restored.

    From `purge_started_at` on it can't be: one process after another (`claimed_by`) removes what the account owned.
    """

    user: dict[str, Any]
    email_key: str
    deleted_at: datetime
    deleted_by: PydanticObjectId | None
    reason: str | None
    purge_at: datetime
    purge_started_at: datetime | None = None
    claimed_by: PydanticObjectId | None = None
    claimed_until: datetime | None = None  # another may take over then
    conversation_id: PydanticObjectId | None = None  # the one whose messages are being removed
    removed: dict[str, int] = Field(default_factory=dict)  # how many of each kind so far

    class Settings:
        name = "deleted_users"
        indexes = [  # noqa: RUF012
            # Not a TTL index: the purge also removes what the user owned.
            IndexModel([("purge_at", ASCENDING)], name="purge_due"),
            IndexModel([("email_key", ASCENDING)], name="email"),
            IndexModel([("deleted_at", DESCENDING), ("_id", DESCENDING)], name="newest"),
            IndexModel([("deleted_by", ASCENDING)], name="deleter"),
            IndexModel(
                [("user.mfa.confirmed_at", ASCENDING)],
                name="with_second_factor",
                partialFilterExpression={"user.mfa.confirmed_at": {"$gt": BEGINNING}},
            ),
            IndexModel(
                [("user.pending_mfa.created_at", ASCENDING)],
                name="with_pending_second_factor",
                partialFilterExpression={"user.pending_mfa.created_at": {"$gt": BEGINNING}},
            ),
        ]

    def as_user(self) -> User:
        """The account; what it lacks of today's model gets the defaults."""
        account: User = User.model_validate(self.user)
        return account
