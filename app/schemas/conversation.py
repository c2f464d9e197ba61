"""Conversations on the wire. They are read often, so they are rendered from raw documents without a model between."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

from beanie import PydanticObjectId
from bson import ObjectId
from pydantic import Field

from app.models.conversation import MAX_PARTICIPANTS
from app.models.enums import ParticipantRole
from app.schemas.base import Name, PatchBody, RequestBody, ResourceRead, ResponseBody
from app.schemas.message import MessageRead

Raw = Mapping[str, Any]


class ConversationCreate(RequestBody):
    title: Name | None = None
    participant_ids: Annotated[list[PydanticObjectId], Field(max_length=MAX_PARTICIPANTS - 1)] = Field(
        default_factory=list
    )


class ConversationUpdate(PatchBody):
    clearable: ClassVar = frozenset({"title"})

    title: Name | None = None
    archived: bool | None = None


class ParticipantAdd(RequestBody):
    user_id: PydanticObjectId
    role: ParticipantRole = ParticipantRole.MEMBER


class ParticipantRead(ResponseBody):
    id: PydanticObjectId
    username: str | None
    email: str | None
    role: ParticipantRole
    joined_at: datetime
    last_read_seq: int


class ConversationSummary(ResourceRead):
    title: str | None
    created_by: PydanticObjectId | None
    archived: bool
    participant_count: int
    message_count: int
    unread_count: int
    last_activity_at: datetime
    created_at: datetime
    updated_at: datetime


class ConversationRead(ResourceRead):
    """`messages` are the latest 100, oldest first."""

    title: str | None
    created_by: PydanticObjectId | None
    archived: bool
    message_count: int
    unread_count: int
    last_activity_at: datetime
    created_at: datetime
    updated_at: datetime
    participants: list[ParticipantRead]
    messages: list[MessageRead]


_SHARED = ("title", "created_by", "archived", "message_count", "last_activity_at", "created_at", "updated_at")


def summary_of(conversation: Raw, *, reader_id: ObjectId | None) -> dict[str, Any]:
    return {
        "id": conversation["_id"],
        **{name: conversation[name] for name in _SHARED},
        "participant_count": conversation["participant_count"],
        "unread_count": unread(conversation, reader_id),
    }


def detail_of(
    conversation: Raw,
    *,
    participants: list[dict[str, Any]],
    messages: list[dict[str, Any]],
    reader_id: ObjectId | None,
) -> dict[str, Any]:
    return {
        "id": conversation["_id"],
        **{name: conversation[name] for name in _SHARED},
        "unread_count": unread(conversation, reader_id),
        "participants": participants,
        "messages": messages,
    }


def participant_of(entry: Raw, *, username: str | None, email: str | None) -> dict[str, Any]:
    return {
        "id": entry["user_id"],
        "username": username,
        "email": email,
        "role": entry["role"],
        "joined_at": entry["joined_at"],
        "last_read_seq": entry["last_read_seq"],
    }


def unread(conversation: Raw, reader_id: ObjectId | None) -> int:
    """What others have said since the reader last read; nobody's unread is nothing."""
    for entry in conversation["participants"]:
        if entry["user_id"] == reader_id:
            own = entry["sent"] - entry["sent_before_mark"]
            return int(conversation["last_seq"] - entry["last_read_seq"] - own)
    return 0
