"""How messages are found and removed. Who may see them is decided on their conversation."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.errors import ConnectionFailure

from app.core.clock import utc_now
from app.core.exceptions import NotFoundError
from app.crud.base import ASCENDING, DESCENDING, Filter, Listing, Page
from app.crud.crud_conversation import Place
from app.db.mongo import Raw, find_batch, find_below
from app.models.conversation import DeletedConversation
from app.models.enums import MessageRole
from app.models.message import BLOCK, Message, TokenCounts

_PURGE_BATCH: Final = 200


class Draft(NamedTuple):
    """What somebody says, before it has its place."""

    user_id: ObjectId | None
    role: MessageRole
    content: str
    attachment_ids: Sequence[ObjectId] = ()
    model: str | None = None
    tokens: TokenCounts | None = None

    def at(self, place: Place, conversation_id: ObjectId) -> Raw:
        """The message as it is stored. Without a document in between: this is the busiest write."""
        return {
            "_id": ObjectId(),
            "created_at": utc_now(),
            "conversation_id": conversation_id,
            "seq": place.seq,
            "version": place.version,
            "block": place.seq // BLOCK,
            "nth": place.nth,
            "user_id": self.user_id,
            "role": self.role.value,
            "content": self.content,
            "attachment_ids": list(self.attachment_ids),
            "model": self.model,
            "tokens": self.tokens and self.tokens.model_dump(),
            "edited_at": None,
            "deleted_at": None,
        }


async def add(
    *,
    conversation_id: ObjectId,
    place: Place,
    user_id: ObjectId | None,
    role: MessageRole,
    content: str,
    attachment_ids: Sequence[ObjectId] = (),
    model: str | None = None,
    tokens: TokenCounts | None = None,
) -> Raw:
    """Insert a message, and give it as it is stored."""
    message = Draft(user_id, role, content, attachment_ids, model, tokens).at(place, conversation_id)
    await Message.get_pymongo_collection().insert_one(message)
    return message


async def add_all(conversation_id: ObjectId, places: Iterable[Place], drafts: Iterable[Draft]) -> list[Raw]:
    """Insert messages in order, and give them as they are stored."""
    messages = [draft.at(place, conversation_id) for place, draft in zip(places, drafts, strict=True)]
    await Message.get_pymongo_collection().insert_many(messages)
    return messages


async def find(message_id: ObjectId, conversation_id: ObjectId, *, seen_by: ObjectId | None) -> Raw | None:
    """None when there is no such message, or its conversation has no such participant, where that is given."""
    where = {"_id": message_id, "conversation_id": conversation_id}
    rows = await find_below(
        "conversations", _conversation(conversation_id, seen_by), "messages", where, sort={"_id": ASCENDING}, limit=1
    )
    return rows[0] if rows else None


async def edit(
    message_id: ObjectId, conversation_id: ObjectId, content: str, *, user_id: ObjectId | None
) -> Raw | None:
    """The message with another content; none when there is no such one (that the user said) that stands."""
    changed: Raw | None = await Message.get_pymongo_collection().find_one_and_update(
        _standing(message_id, conversation_id, user_id),
        {"$set": {"content": content, "edited_at": utc_now()}},
        return_document=ReturnDocument.AFTER,
    )
    return changed


async def empty(message_id: ObjectId, conversation_id: ObjectId, *, user_id: ObjectId | None) -> bool:
    """Leave of a message its place and what it cost. False when none (that the user said) stands there."""
    result = await Message.get_pymongo_collection().update_one(
        _standing(message_id, conversation_id, user_id),
        {"$set": {"content": "", "attachment_ids": [], "deleted_at": utc_now()}},
    )
    return result.modified_count == 1


async def latest_nth(conversation_id: ObjectId, user_id: ObjectId, *, after: int, until: int) -> int | None:
    """Which of the user's messages is the last in that stretch of the conversation; none when it said nothing there."""
    where = {"user_id": user_id, "conversation_id": conversation_id, "seq": {"$gt": after, "$lte": until}}
    rows = await find_batch("messages", where, fields={"nth": 1}, sort={"seq": DESCENDING}, limit=1)
    return rows[0]["nth"] if rows else None


async def latest(conversation_id: ObjectId, *, limit: int) -> list[Raw]:
    """The latest messages, oldest first."""
    rows = await find_batch("messages", {"conversation_id": conversation_id}, sort={"seq": DESCENDING}, limit=limit)
    return rows[::-1]


async def page(
    conversation_id: ObjectId,
    *,
    role: MessageRole | None,
    after: str | None,
    is_ascending: bool,
    limit: int,
    cursor: str | None,
    seen_by: ObjectId | None,
) -> Page[Raw] | None:
    """In the order of the conversation; none when it has no such participant as `seen_by`, where that is given.

    `after` is a message to begin behind, for polling the end of it.
    """
    where: Filter = {"conversation_id": conversation_id}
    if role is not None:
        where["role"] = role
    if after is not None:
        where["seq"] = {"$gt": await place_of(after, conversation_id)}
    listing = Listing("messages", where, ["seq"], ASCENDING if is_ascending else DESCENDING)
    conversation = _conversation(conversation_id, seen_by)
    rows = await find_below(
        "conversations", conversation, "messages", listing.after(cursor), sort=listing.order, limit=limit + 1
    )
    return None if rows is None else listing.page(rows, limit)


async def purge(conversation_id: ObjectId) -> bool:
    """Remove every message of a deleted conversation in batches, then the note that says so.

    False when the database went away before the end. Safe to repeat and to run twice at once: what one run
    leaves, the next finishes.
    """
    of_conversation = {"conversation_id": conversation_id}
    try:
        while batch := await find_batch(
            "messages", of_conversation, fields={"seq": 1}, sort={"seq": ASCENDING}, limit=_PURGE_BATCH
        ):
            last = {"seq": {"$lte": batch[-1]["seq"]}}
            await Message.get_pymongo_collection().delete_many(of_conversation | last)
        await DeletedConversation.get_pymongo_collection().delete_one({"_id": conversation_id})
    except ConnectionFailure:
        return False
    return True


async def seq_of(message_id: ObjectId, conversation_id: ObjectId) -> int | None:
    """Where a message stands in that conversation, if it does."""
    where = {"_id": message_id, "conversation_id": conversation_id}
    rows = await find_batch("messages", where, fields={"seq": 1}, limit=1)
    return rows[0]["seq"] if rows else None


async def place_of(message_id: str, conversation_id: ObjectId) -> int:
    """A malformed id is one that does not exist."""
    seq = await seq_of(ObjectId(message_id), conversation_id) if ObjectId.is_valid(message_id) else None
    if seq is None:
        raise NotFoundError("There is no such message.")
    return seq


def _conversation(conversation_id: ObjectId, seen_by: ObjectId | None) -> Filter:
    return {"_id": conversation_id, **({} if seen_by is None else {"participants.user_id": seen_by})}


def _standing(message_id: ObjectId, conversation_id: ObjectId, user_id: ObjectId | None) -> Filter:
    """One that is not deleted, and, where that is given, that the user said: not what was put under its name."""
    where: Filter = {"_id": message_id, "conversation_id": conversation_id, "deleted_at": None}
    return where if user_id is None else where | {"user_id": user_id, "role": MessageRole.USER.value}
