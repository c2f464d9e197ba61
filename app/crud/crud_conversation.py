"""How conversations are found and changed. `user_id` or `owner_id` limit to those with such a participant."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from bson import ObjectId
from pymongo import ReturnDocument

from app.core.clock import utc_now
from app.core.exceptions import ConflictError
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


async def find_entry(conversation_id: ObjectId, of: ObjectId, *, user_id: ObjectId | None) -> Raw | None:
    """The counters of a conversation, with the entry of that one as its only participant, when it takes part."""
    fields = {"last_seq": 1, "participants": _entries([of])}
    rows = await find_batch("conversations", _seen_by(conversation_id, user_id), fields=fields, limit=1)
    return rows[0] if rows else None


async def page(
    *,
    user_id: ObjectId | None,
    reader_id: ObjectId | None,
    archived: bool | None,
    limit: int,
    cursor: str | None,
) -> Page[Raw]:
    """By last activity; of each its participants are counted, and only the reader's entry is read."""
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
    fields |= {"participants": _entries([reader_id]), "participant_count": {"$size": "$participants"}}
    found = listing(user_id=user_id, archived=archived)
    rows = await find_batch("conversations", found.after(cursor), fields=fields, sort=found.order, limit=limit + 1)
    return found.page(rows, limit)


async def change(
    conversation_id: ObjectId, changes: Raw, *, owner_id: ObjectId | None, versions: frozenset[int] | None
) -> int | None:
    """The version it has then; none when there is no such conversation of the owner in one of the versions."""
    update = {"$set": {**changes, "updated_at": utc_now()}, "$inc": {"version": 1}}
    return _version_of(await _updated(matching(_owned_by(conversation_id, owner_id), versions), update))


async def raise_version(conversation_id: ObjectId, *, user_id: ObjectId | None) -> int | None:
    """The version that a change of one of its messages makes; none when there is no such conversation (of the user)."""
    update = {"$set": {"updated_at": utc_now()}, "$inc": {"version": 1}}
    return _version_of(await _updated(_seen_by(conversation_id, user_id), update))


async def add_participant(
    conversation_id: ObjectId, participant: Participant, *, owner_id: ObjectId | None
) -> int | None:
    """The version it has then; none when that one takes part already, it is full, or there is none of the owner.

    What was said before it joined does not count as unread.
    """
    where = _owned_by(conversation_id, owner_id) | {
        "participants.user_id": {"$ne": participant.user_id},
        f"participants.{MAX_PARTICIPANTS - 1}": {"$exists": False},
    }
    entry = {"$mergeObjects": [{"$literal": participant.model_dump()}, {"last_read_seq": "$last_seq"}]}
    update = _with_participants({"$concatArrays": ["$participants", [entry]]})
    return _version_of(await _updated(where, update))


class Departure(NamedTuple):
    """The version that it made of a conversation that somebody left, and who owns that now in its place, if anybody."""

    version: int
    heir_id: ObjectId | None


async def remove_participant(conversation_id: ObjectId, user_id: ObjectId) -> Departure | None:
    """None when it does not take part. The last owner hands over to the longest-standing participant."""
    rest = {"$filter": {"input": "$participants", "cond": {"$ne": ["$$this.user_id", user_id]}}}
    heir = {"$mergeObjects": [{"$first": "$$rest"}, {"role": ParticipantRole.OWNER.value}]}
    has_owner = {"$or": [{"$in": [ParticipantRole.OWNER.value, "$$rest.role"]}, {"$eq": ["$$rest", []]}]}
    handed_over = {"$concatArrays": [[heir], {"$slice": ["$$rest", 1, MAX_PARTICIPANTS]}]}
    participants = {"$let": {"vars": {"rest": rest}, "in": {"$cond": [has_owner, "$$rest", handed_over]}}}
    before: Raw | None = await Conversation.get_pymongo_collection().find_one_and_update(
        _seen_by(conversation_id, user_id),
        _with_participants(participants),
        projection={"version": 1, "participants": {"user_id": 1, "role": 1}},
    )
    return Departure(before["version"] + 1, _heir(before["participants"], user_id)) if before else None


class Place(NamedTuple):
    """Where a message stands: among the messages of its conversation, and among all that happened in it.

    `nth` is its place among what its writer has said since it joined.
    """

    seq: int
    version: int
    nth: int | None = None


async def take_place(conversation_id: ObjectId, *, writer_id: ObjectId | None) -> Place | None:
    """The place of the next message, counted in; none when there is no such conversation (of the writer)."""
    places = await take_places(conversation_id, [writer_id])
    return places[0] if places else None


async def take_places(conversation_id: ObjectId, writer_ids: Sequence[ObjectId | None]) -> list[Place] | None:
    """The places of the next messages, by these writers, counted in; none when one of them takes no part.

    Inside the transaction that inserts the messages: whoever comes second waits or is run again, so places are
    given out in order and without gaps.
    """
    now, count = utc_now(), len(writer_ids)
    sent = Counter(writer_id for writer_id in writer_ids if writer_id is not None)
    writers = _writers(sent)
    increments = {"last_seq": count, "message_count": count, "version": count} | writers.increments
    updated = await _updated(
        {"_id": conversation_id} | writers.where,
        {"$inc": increments, "$set": {"last_activity_at": now, "updated_at": now}},
        array_filters=writers.array_filters,
        projection={"last_seq": 1, "version": 1, "participants": writers.entries},
    )
    if updated is None:
        return None
    last = {entry["user_id"]: entry["sent"] - sent[entry["user_id"]] for entry in updated["participants"]}
    places = []
    for behind, writer_id in zip(range(count - 1, -1, -1), writer_ids, strict=True):
        if writer_id is not None:
            last[writer_id] += 1
        nth = None if writer_id is None else last[writer_id]
        places.append(Place(updated["last_seq"] - behind, updated["version"] - behind, nth))
    return places


async def mark_read(conversation_id: ObjectId, user_id: ObjectId, *, seq: int, sent_before_mark: int) -> Raw:
    """Move the mark of a participant, which is further back: what `find_entry` finds then, and the version."""
    behind = {"user_id": user_id, "last_read_seq": {"$lt": seq}}
    mark = {"participants.$.last_read_seq": seq, "participants.$.sent_before_mark": sent_before_mark}
    marked = await _updated(
        {"_id": conversation_id, "participants": {"$elemMatch": behind}},
        {"$set": mark, "$inc": {"version": 1}},
        projection={"last_seq": 1, "version": 1, "participants": _entries([user_id])},
    )
    if marked is None:
        raise ConflictError("The mark was moved by somebody else meanwhile. Try again.")
    return marked


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


def _entries(user_ids: Sequence[ObjectId | None]) -> Raw:
    """Of the participants, in a projection, only these."""
    return {"$filter": {"input": "$participants", "cond": {"$in": ["$$this.user_id", user_ids]}}}


class _Writers(NamedTuple):
    """How an update finds those who write among the participants, counts what they send, and shows their entries."""

    where: Filter
    increments: dict[str, int]
    array_filters: list[Raw] | None
    entries: Raw


def _writers(sent: Counter[ObjectId]) -> _Writers:
    if len(sent) == 1:  # nearly always, and this costs the server less
        [(writer_id, own)] = sent.items()
        entry = {"user_id": writer_id}
        return _Writers({"participants.user_id": writer_id}, {"participants.$.sent": own}, None, {"$elemMatch": entry})
    increments = {f"participants.$[w{at}].sent": own for at, own in enumerate(sent.values())}
    filters: list[Raw] = [{f"w{at}.user_id": writer_id} for at, writer_id in enumerate(sent)]
    where: Filter = {"participants.user_id": {"$all": list(sent)}} if sent else {}
    return _Writers(where, increments, filters or None, _entries(list(sent)))


def _with_participants(participants: Any) -> list[Raw]:
    return [{"$set": {"participants": participants, "version": {"$add": ["$version", 1]}, "updated_at": utc_now()}}]


def _heir(entries: Sequence[Raw], user_id: ObjectId) -> ObjectId | None:
    """Who takes over from the one that leaves; nobody when another owner is there, or nobody at all."""
    rest = [entry for entry in entries if entry["user_id"] != user_id]
    has_owner = any(entry["role"] == ParticipantRole.OWNER for entry in rest)
    return None if has_owner or not rest else rest[0]["user_id"]


async def _updated(
    where: Filter,
    update: Raw | list[Raw],
    *,
    projection: Raw | None = None,
    array_filters: list[Raw] | None = None,
) -> Raw | None:
    """The conversation as the update leaves it; none when there is none."""
    updated: Raw | None = await Conversation.get_pymongo_collection().find_one_and_update(
        where,
        update,
        projection=projection or {"version": 1},
        array_filters=array_filters,
        return_document=ReturnDocument.AFTER,
    )
    return updated


def _version_of(updated: Raw | None) -> int | None:
    return updated["version"] if updated else None
