"""Events as they go out: each is made once for all who are told of it."""

from collections.abc import Sequence
from typing import Any, Final

from bson import ObjectId

from app.core.principal import Principal
from app.crud import crud_event_log, crud_user
from app.crud.crud_event_log import MESSAGE_CREATED, Entry
from app.models.enums import ConversationEventType
from app.schemas.conversation_event import event_frame, message_data, other_data

_OF_MESSAGES: Final = frozenset({ConversationEventType.MESSAGE_UPDATED, ConversationEventType.MESSAGE_DELETED})


async def frames_of(entries: Sequence[Entry]) -> list[bytes]:
    """Of each its frame, still without an id. Messages that were changed are read once, and the names of users."""
    changed = await crud_event_log.messages({_changed_id(entry) for entry in entries if _is_change(entry)})
    shown = [_message_of(entry, changed) for entry in entries]
    named = [named_user(entry) for entry in entries] + [message["user_id"] for message in shown if message]
    cards = await crud_user.cards_of([user_id for user_id in named if user_id is not None])
    usernames = {user_id: card.username for user_id, card in cards.items()}
    return [
        event_frame(
            entry.type,
            message_data(message, usernames)
            if message
            else other_data(entry.conversation_id, entry.content, usernames),
        )
        for entry, message in zip(entries, shown, strict=True)
    ]


def named_user(entry: Entry) -> ObjectId | None:
    """The user that an event other than of a message is about."""
    user_id = None if entry.type == MESSAGE_CREATED else entry.content.get("user_id")
    return user_id and ObjectId(user_id)


def ends(entry: Entry, participant_id: ObjectId | None) -> bool:
    """Whether it takes the right to read from the participant; who reads everything has none to lose by it."""
    if entry.type == ConversationEventType.CONVERSATION_DELETED:
        return True
    is_removal = entry.type == ConversationEventType.PARTICIPANT_REMOVED
    return is_removal and participant_id is not None and named_user(entry) == participant_id


def is_by(entry: Entry, principal: Principal) -> bool:
    """Whether it tells the caller only that it is typing itself."""
    is_typing = entry.type == ConversationEventType.TYPING
    return is_typing and principal.user_id is not None and named_user(entry) == principal.user_id


def _is_change(entry: Entry) -> bool:
    return entry.type in _OF_MESSAGES and "message_id" in entry.content


def _changed_id(entry: Entry) -> ObjectId:
    return ObjectId(entry.content["message_id"])


def _message_of(entry: Entry, changed: dict[ObjectId, Any]) -> Any:
    """The message that the event is about, if it is about one that exists."""
    if entry.type == MESSAGE_CREATED:
        return entry.content
    return changed.get(_changed_id(entry)) if _is_change(entry) else None
