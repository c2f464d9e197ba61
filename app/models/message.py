from datetime import datetime

from beanie import PydanticObjectId
from pydantic import BaseModel, Field
from pymongo import ASCENDING, TEXT, IndexModel

from app.models.base import BaseDocument
from app.models.enums import MessageRole

BLOCK = 4096


class TokenCounts(BaseModel):
    """What a message of a model was made of, as its provider counts."""

    prompt: int
    completion: int


class Message(BaseDocument):
    """One message. `seq` counts within its conversation and gives the order: ids of two processes do not.

    `version` is the version of the conversation that the message made: its place among all that happens there.
    `block` is which group of 4,096 messages it belongs to: search goes through one such group at a time.
    `nth` is which of its writer's messages it is, from when that one joined: so nobody has to count them.
    """

    conversation_id: PydanticObjectId
    seq: int
    version: int
    block: int
    nth: int | None = None
    user_id: PydanticObjectId | None
    role: MessageRole
    content: str
    attachment_ids: list[PydanticObjectId] = Field(default_factory=list)
    model: str | None = None
    tokens: TokenCounts | None = None
    edited_at: datetime | None = None
    deleted_at: datetime | None = None

    class Settings:
        name = "messages"
        indexes = [  # noqa: RUF012
            IndexModel([("conversation_id", ASCENDING), ("seq", ASCENDING)], name="conversation_order", unique=True),
            IndexModel(
                [("conversation_id", ASCENDING), ("role", ASCENDING), ("seq", ASCENDING)],
                name="conversation_role_order",
            ),
            # Without a language, so that no word is left out and none is cut.
            IndexModel(
                [("conversation_id", ASCENDING), ("block", ASCENDING), ("content", TEXT)],
                name="words",
                default_language="none",
            ),
            IndexModel([("user_id", ASCENDING), ("conversation_id", ASCENDING), ("seq", ASCENDING)], name="user_order"),
        ]
