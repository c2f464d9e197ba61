from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import ASCENDING, IndexModel

from app.core.clock import utc_now
from app.models.base import BaseDocument
from app.models.enums import MailKind

FAILED_MAIL_KEPT_SECONDS = 30 * 24 * 3600


class OutgoingMail(BaseDocument):
    """A mail that is still to be sent: stored with the change that it tells of, removed once a server has taken it.

    Whom it goes to is found when it is sent, by `user_id` or by the name that somebody gave for the account. So
    asking for a mail takes the same whether there is such an account or not, and no link lies in the database.
    """

    kind: MailKind
    user_id: PydanticObjectId | None = None
    account: dict[str, str] | None = None  # `email_key` or `username_key`
    to: str | None = None  # when it is not the account's present address
    values: dict[str, Any] = Field(default_factory=dict)
    request: dict[str, str | None] = Field(default_factory=dict)  # the request behind it, for the audit trail
    attempts: int = 0
    due_at: datetime | None = Field(default_factory=utc_now)
    failed_at: datetime | None = None

    class Settings:
        name = "outbox"
        indexes = [  # noqa: RUF012
            IndexModel([("due_at", ASCENDING), ("_id", ASCENDING)], name="due"),
            IndexModel([("user_id", ASCENDING)], name="user"),
            IndexModel([("failed_at", ASCENDING)], name="failed", expireAfterSeconds=FAILED_MAIL_KEPT_SECONDS),
        ]
