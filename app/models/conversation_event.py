from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import ASCENDING, IndexModel

from app.models.base import BaseDocument
from app.models.enums import ConversationEventType


class ConversationEvent(BaseDocument):
    """Something that happened in a conversation, other than a new message: the message itself tells of that.

    `version` is the version of the conversation that it made; what passes without a trace, such as typing, has none.
    """

    conversation_id: PydanticObjectId
    version: int | None
    type: ConversationEventType
    data: dict[str, Any] = Field(default_factory=dict)
    expires_at: datetime

    class Settings:
        name = "conversation_events"
        indexes = [  # noqa: RUF012
            IndexModel([("conversation_id", ASCENDING), ("version", ASCENDING)], name="conversation_order"),
            IndexModel([("expires_at", ASCENDING)], name="expired", expireAfterSeconds=0),
            # Whom it names, for the purge of that one.
            IndexModel([("data.user_id", ASCENDING)], name="named", sparse=True),
            IndexModel([("data.owner_id", ASCENDING)], name="heir", sparse=True),
        ]
