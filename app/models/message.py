from datetime import datetime

from beanie import PydanticObjectId
from pymongo import ASCENDING, IndexModel

from app.models.base import BaseDocument
from app.models.enums import MessageRole


class Message(BaseDocument):
    """One message. `seq` counts within its conversation and gives the order: ids of two processes do not."""

    conversation_id: PydanticObjectId
    seq: int
    user_id: PydanticObjectId | None
    role: MessageRole
    content: str
    model: str | None = None
    edited_at: datetime | None = None
    deleted_at: datetime | None = None

    class Settings:
        name = "messages"
        indexes = [  # noqa: RUF012
            IndexModel([("conversation_id", ASCENDING), ("seq", ASCENDING)], name="conversation_order", unique=True),
            IndexModel([("user_id", ASCENDING), ("_id", ASCENDING)], name="user_oldest"),
        ]
