"""How messages are found and removed. Who may see them is decided on their conversation."""

from collections.abc import Sequence
from typing import Final

from bson import ObjectId
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
    """Insert a message, and give it as it is stored. Without a document in between: this is the busiest write."""
    message: Raw = {
        "_id": ObjectId(),
        "created_at": utc_now(),
        "conversation_id": conversation_id,
        "seq": place.seq,
        "version": place.version,
        "block": place.seq // BLOCK,
        "user_id": user_id,
        "role": role.value,
        "content": content,
        "attachment_ids": list(attachment_ids),
        "model": model,
        "tokens": tokens and tokens.model_dump(),
        "edited_at": None,
        "deleted_at": None,
    }
    await Message.get_pymongo_collection().insert_one(message)
    return message


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
        where["seq"] = {"$gt": await seq_of(after, conversation_id)}
    listing = Listing("messages", where, ["seq"], ASCENDING if is_ascending else DESCENDING)
    conversation = {"_id": conversation_id, **({} if seen_by is None else {"participants.user_id": seen_by})}
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


async def seq_of(message_id: str, conversation_id: ObjectId) -> int:
    """Where a message stands. A malformed id is one that does not exist."""
    if not ObjectId.is_valid(message_id):
        raise NotFoundError("There is no such message.")
    rows = await find_batch(
        "messages", {"_id": ObjectId(message_id), "conversation_id": conversation_id}, fields={"seq": 1}, limit=1
    )
    if not rows:
        raise NotFoundError("There is no such message.")
    seq: int = rows[0]["seq"]
    return seq
