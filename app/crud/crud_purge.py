"""What is held of a user, wherever it is, and how it is removed: in batches, each safe to repeat.

A collection that holds something of users belongs into one of these lists, with an index on the field.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.crud import crud_upload
from app.db.mongo import Raw, find_batch, get_database
from app.models.conversation import Conversation, DeletedConversation
from app.models.message import Message
from app.models.upload import DeletedUpload


class Place(NamedTuple):
    """A field that names the user."""

    collection: str
    field: str


# What goes with its user. What lets somebody in goes first.
OWNED: Final = (
    Place("sessions", "user_id"),
    Place("one_time_tokens", "user_id"),
    Place("api_keys", "owner_id"),
    Place("items", "owner_id"),
    Place("usage_counters", "user_id"),
    Place("message_logs", "user_id"),
    Place("credit_holds", "user_id"),
    Place("outbox", "user_id"),
    Place("conversation_events", "data.user_id"),
)
# What stays and forgets who it was.
SIGNED: Final = (
    Place("conversations", "created_by"),
    Place("api_keys", "created_by"),
    Place("deleted_users", "deleted_by"),
    Place("conversation_events", "data.owner_id"),
)
UPLOADED: Final = Place("uploads", "owner_id")
TAKING_PART: Final = Place("conversations", "participants.user_id")
WRITTEN: Final = Place("messages", "user_id")
SAID_IN: Final = Place("messages", "conversation_id")


async def some(place: Place, named: ObjectId, *, limit: int) -> list[ObjectId]:
    """The ids of some documents that name it there, but for the archived account, which goes last."""
    where = {place.field: named, "_id": {"$ne": named}}
    rows = await find_batch(place.collection, where, fields={"_id": 1}, limit=limit)
    return [row["_id"] for row in rows]


async def remove(place: Place, named: ObjectId, ids: Sequence[ObjectId]) -> int:
    """How many of them there were."""
    where = {"_id": {"$in": ids}, place.field: named}
    return (await get_database()[place.collection].delete_many(where)).deleted_count


async def remove_uploads(place: Place, named: ObjectId, ids: Sequence[ObjectId]) -> int:
    """The same with notes that their bytes are to follow. What they count for goes with the user's totals."""
    rows = await find_batch(
        place.collection,
        {"_id": {"$in": ids}, place.field: named},
        fields={"stem": 1, "link_ends_at": 1},
        limit=len(ids),
    )
    if rows:
        await DeletedUpload.insert_many([crud_upload.note_of(row) for row in rows])
    return await remove(place, named, [row["_id"] for row in rows])


async def forget(place: Place, named: ObjectId, ids: Sequence[ObjectId]) -> int:
    """Let them no longer name it. How many did."""
    where = {"_id": {"$in": ids}, place.field: named}
    return (await get_database()[place.collection].update_many(where, {"$set": {place.field: None}})).modified_count


async def empty(place: Place, named: ObjectId, ids: Sequence[ObjectId]) -> int:
    """Leave of messages their place and what they cost: no content, no author, deleted. How many had an author."""
    blank: Raw = {"content": "", "attachment_ids": [], place.field: None}
    blank["deleted_at"] = {"$ifNull": ["$deleted_at", utc_now()]}
    where = {"_id": {"$in": ids}, place.field: named}
    return (await Message.get_pymongo_collection().update_many(where, [{"$set": blank}])).modified_count


async def remove_if_alone(conversation_id: ObjectId, user_id: ObjectId) -> Raw | None:
    """Remove a conversation in which nobody else takes part, with the note that its messages are to follow.

    Who created it and its version; none when there is no such conversation.
    """
    where = {"_id": conversation_id, "participants.user_id": user_id, "participants.1": {"$exists": False}}
    removed: Raw | None = await Conversation.get_pymongo_collection().find_one_and_delete(
        where, {"created_by": 1, "version": 1}
    )
    if removed is not None:
        await DeletedConversation(id=conversation_id).insert()
    return removed


async def remove_note(conversation_id: ObjectId) -> None:
    """All messages of the deleted conversation are gone."""
    await DeletedConversation.get_pymongo_collection().delete_one({"_id": conversation_id})
