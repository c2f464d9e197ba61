"""Messages on the wire, rendered from raw documents without a model between."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any

from beanie import PydanticObjectId
from bson import ObjectId
from pydantic import AfterValidator, Field

from app.models.enums import MessageRole
from app.models.message import TokenCounts
from app.schemas.base import Content, Name, RequestBody, ResourceId, ResourceRead, ResponseBody

MAX_ATTACHMENTS = 20
MAX_BATCH = 500


def _distinct(ids: list[PydanticObjectId]) -> list[PydanticObjectId]:
    if len(set(ids)) < len(ids):
        raise ValueError("must not name one twice")
    return ids


class MessageCreate(RequestBody):
    """`user_id` is for services that write on behalf of a participant."""

    content: Content
    role: MessageRole = MessageRole.USER
    user_id: PydanticObjectId | None = None
    attachment_ids: Annotated[list[ResourceId], Field(max_length=MAX_ATTACHMENTS), AfterValidator(_distinct)] = Field(
        default_factory=list
    )
    model: Name | None = None


class MessageBatch(RequestBody):
    """Written in this order, all of them or none."""

    messages: Annotated[list[MessageCreate], Field(min_length=1, max_length=MAX_BATCH)]


class MessageUpdate(RequestBody):
    content: Content


class Author(ResponseBody):
    id: PydanticObjectId
    username: str | None


class MessageRead(ResourceRead):
    """`seq` counts the messages of a conversation and gives their order."""

    conversation_id: PydanticObjectId
    seq: int
    role: MessageRole
    content: str
    user: Author | None
    attachment_ids: list[PydanticObjectId]
    model: str | None
    tokens: TokenCounts | None
    created_at: datetime
    edited_at: datetime | None
    deleted_at: datetime | None


def messages_of(
    messages: Iterable[Mapping[str, Any]], usernames: Mapping[ObjectId, str | None]
) -> list[dict[str, Any]]:
    """Raw messages as they go out; each author is rendered once, however many of them it wrote."""
    # By the bytes of the id, whose comparison costs a fraction of the id's own.
    authors = {user_id.binary: {"id": str(user_id), "username": username} for user_id, username in usernames.items()}
    return [
        {
            "id": message["_id"],
            "conversation_id": message["conversation_id"],
            "seq": message["seq"],
            "role": message["role"],
            "content": message["content"],
            "user": (user_id := message["user_id"]) and (authors.get(user_id.binary) or _unknown(user_id)),
            "attachment_ids": message["attachment_ids"],
            "model": message["model"],
            "tokens": message["tokens"],
            "created_at": message["created_at"],
            "edited_at": message["edited_at"],
            "deleted_at": message["deleted_at"],
        }
        for message in messages
    ]


def _unknown(user_id: ObjectId) -> dict[str, Any]:
    """An author whose account is gone keeps its id."""
    return {"id": user_id, "username": None}
