"""How conversations are found and changed. `user_id` or `owner_id` limit to those with such a participant."""

from typing import Any, NamedTuple

from bson import ObjectId
from pymongo import ReturnDocument

from app.core.clock import utc_now
from app.crud.base import Filter, Listing, Page, matching
from app.db.mongo import Raw, find_batch
from app.models.conversation import MAX_PARTICIPANTS, Conversation, DeletedConversation, Participant
from app.models.enums import ParticipantRole


async def find(conversation_id: ObjectId, *, user_id: ObjectId | None) -> Raw | None:
    rows = await find_batch("conversations", _seen_by(conversation_id, user_id), limit=1)
    return rows[0] if rows else None


async def exists(conversation_id: ObjectId, *, user_id: ObjectId | None) -> bool:
    return bool(await find_batch("conversations", _seen_by(conversation_id, user_id), fields={"_id": 1}, limit=1))


def listing(*, user_id: ObjectId | None, archived: bool | None) -> Listing:
    """Conversations by last activity."""
    where: Filter = {} if user_id is None else {"participants.user_id": user_id}
    if archived is not None:
        where["archived"] = archived
    return Listing("conversations", where, ["last_activity_at", "_id"])


async def page(
    *,
    user_id: ObjectId | None,
    reader_id: ObjectId | None,
    archived: bool | None,
    limit: int,
    cursor: str | None,
) -> Page[Raw]:
    """By last activity; of each its participants are counted, and only the reader's entry is read."""
    reader = {"$filter": {"input": "$participants", "cond": {"$eq": ["$$this.user_id", reader_id]}}}
    fields: Raw = dict.fromkeys(
        [
            "title",
            "created_by",
            "archived",
            "last_seq",
            "message_count",
            "last_activity_at",
            "created_at",
            "updated_at",
        ],
        1,
    )
    fields |= {"participants": reader, "participant_count": {"$size": "$participants"}}
    found = listing(user_id=user_id, archived=archived)
    rows = await find_batch("conversations", found.after(cursor), fields=fields, sort=found.order, limit=limit + 1)
    return found.page(rows, limit)


async def change(
    conversation_id: ObjectId, changes: Raw, *, owner_id: ObjectId | None, versions: frozenset[int] | None
) -> bool:
    """False when there is no such conversation of the owner in one of the versions."""
    update = {"$set": {**changes, "updated_at": utc_now()}, "$inc": {"version": 1}}
    where = matching(_owned_by(conversation_id, owner_id), versions)
    result = await Conversation.get_pymongo_collection().update_one(where, update)
    return result.matched_count == 1


async def add_participant(conversation_id: ObjectId, participant: Participant, *, owner_id: ObjectId | None) -> bool:
    """False when it takes part already, the conversation is full, or there is none of the owner.

    What was said before it joined does not count as unread.
    """
    where = _owned_by(conversation_id, owner_id) | {
        "participants.user_id": {"$ne": participant.user_id},
        f"participants.{MAX_PARTICIPANTS - 1}": {"$exists": False},
    }
    entry = {"$mergeObjects": [{"$literal": participant.model_dump()}, {"last_read_seq": "$last_seq"}]}
    return await _set_participants(where, {"$concatArrays": ["$participants", [entry]]})


async def remove_participant(conversation_id: ObjectId, user_id: ObjectId) -> bool:
    """False when it does not take part. The last owner hands over to the longest-standing participant."""
    rest = {"$filter": {"input": "$participants", "cond": {"$ne": ["$$this.user_id", user_id]}}}
    heir = {"$mergeObjects": [{"$first": "$$rest"}, {"role": ParticipantRole.OWNER.value}]}
    has_owner = {"$or": [{"$in": [ParticipantRole.OWNER.value, "$$rest.role"]}, {"$eq": ["$$rest", []]}]}
    handed_over = {"$concatArrays": [[heir], {"$slice": ["$$rest", 1, MAX_PARTICIPANTS]}]}
    participants = {"$let": {"vars": {"rest": rest}, "in": {"$cond": [has_owner, "$$rest", handed_over]}}}
    return await _set_participants({"_id": conversation_id, "participants.user_id": user_id}, participants)


class Place(NamedTuple):
    """Where a message stands: among the messages of its conversation, and among all that happened in it."""

    seq: int
    version: int


async def take_place(conversation_id: ObjectId, *, writer_id: ObjectId | None) -> Place | None:
    """The place of the next message, counted in; none when there is no such conversation (of the writer).

    Inside the transaction that inserts the message: whoever comes second waits or is run again, so places are
    given out in order and without gaps.
    """
    now = utc_now()
    increments = {"last_seq": 1, "message_count": 1, "version": 1}
    if writer_id is not None:
        increments["participants.$.sent_since_read"] = 1
    updated: Raw | None = await Conversation.get_pymongo_collection().find_one_and_update(
        _seen_by(conversation_id, writer_id),
        {"$inc": increments, "$set": {"last_activity_at": now, "updated_at": now}},
        projection={"last_seq": 1, "version": 1},
        return_document=ReturnDocument.AFTER,
    )
    return Place(updated["last_seq"], updated["version"]) if updated else None


async def remove(
    conversation_id: ObjectId, *, owner_id: ObjectId | None, versions: frozenset[int] | None
) -> Raw | None:
    """What it was, without its participants; none when there is none of the owner in one of the versions.

    Nobody reaches its messages from then on; `crud_message.purge` removes them.
    """
    where = matching(_owned_by(conversation_id, owner_id), versions)
    removed: Raw | None = await Conversation.get_pymongo_collection().find_one_and_delete(
        where, projection={"participants": 0}
    )
    if removed is not None:
        await DeletedConversation(id=conversation_id).insert()
    return removed


async def deleted_ids() -> list[ObjectId]:
    """The conversations whose messages are still to be removed."""
    return [row["_id"] async for row in DeletedConversation.get_pymongo_collection().find({}, {"_id": 1})]


def _seen_by(conversation_id: ObjectId, user_id: ObjectId | None) -> Filter:
    return {"_id": conversation_id} if user_id is None else {"_id": conversation_id, "participants.user_id": user_id}


def _owned_by(conversation_id: ObjectId, owner_id: ObjectId | None) -> Filter:
    if owner_id is None:
        return {"_id": conversation_id}
    owner = {"user_id": owner_id, "role": ParticipantRole.OWNER}
    return {"_id": conversation_id, "participants": {"$elemMatch": owner}}


async def _set_participants(where: Filter, participants: Any) -> bool:
    update = {"participants": participants, "version": {"$add": ["$version", 1]}, "updated_at": utc_now()}
    result = await Conversation.get_pymongo_collection().update_one(where, [{"$set": update}])
    return result.matched_count == 1
