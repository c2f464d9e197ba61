"""How uploads are found and changed. `owner_id` limits to those of one user, `seen_by` to what one user may see."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.crud.base import ASCENDING, Filter, Listing, Page
from app.db.mongo import Raw, find_batch
from app.models.enums import UploadStatus, Visibility
from app.models.upload import DeletedUpload, Upload

# A link is looked at when its PUT begins: what began at its last moment is there by then.
_PUT_WITHIN: Final = timedelta(hours=1)


async def find(upload_id: ObjectId, *, seen_by: ObjectId | None) -> Upload | None:
    """None when there is no such upload, or it is neither the user's own nor one that others show it.

    Others show what is clean: to everybody by `public`, and to who takes part in its conversation.
    """
    if seen_by is None:
        return await Upload.find_one({"_id": upload_id})
    is_own = {"owner_id": seen_by}
    of_conversation = {"status": UploadStatus.CLEAN, "conversation_id": {"$ne": None}}
    found = await Upload.get_pymongo_collection().aggregate(
        [
            {"$match": {"_id": upload_id, "$or": [is_own, _PUBLIC, of_conversation]}},
            {
                "$lookup": {
                    "from": "conversations",
                    "localField": "conversation_id",
                    "foreignField": "_id",
                    "pipeline": [{"$match": {"participants.user_id": seen_by}}, {"$project": {"_id": 1}}],
                    "as": "shared",
                }
            },
            {"$match": {"$or": [is_own, _PUBLIC, {"shared": {"$ne": []}}]}},
            {"$unset": "shared"},
        ],
    )
    rows = await found.to_list()
    return Upload.model_validate(rows[0]) if rows else None


async def find_public(upload_id: ObjectId) -> Upload | None:
    """One that everybody may see."""
    return await Upload.find_one({"_id": upload_id, **_PUBLIC})


async def page(
    *,
    owner_id: ObjectId | None,
    status: UploadStatus | None,
    conversation_id: ObjectId | None,
    limit: int,
    cursor: str | None,
) -> Page[Upload]:
    """Newest first."""
    asked: dict[str, Any] = {"owner_id": owner_id, "status": status, "conversation_id": conversation_id}
    where = {name: value for name, value in asked.items() if value is not None}
    listing = Listing("uploads", where, ["created_at", "_id"])
    rows = await Upload.find(listing.after(cursor)).sort(listing.beanie_order).limit(limit + 1).to_list()
    return listing.page(rows, limit)


async def exists(upload_id: ObjectId) -> bool:
    return bool(await find_batch("uploads", {"_id": upload_id}, fields={"_id": 1}, limit=1))


async def prolong(upload_id: ObjectId, *, due_at: datetime) -> None:
    """Let one that is pending be given up later."""
    await Upload.get_pymongo_collection().update_one(_pending(upload_id), {"$set": {"due_at": due_at}})


async def grow(upload_id: ObjectId, size: int) -> bool:
    """Let one that is pending count for more bytes. False when there is none."""
    update = {"$inc": {"size": size}, "$set": {"updated_at": utc_now()}}
    return (await Upload.get_pymongo_collection().update_one(_pending(upload_id), update)).matched_count == 1


async def accept(upload_id: ObjectId, changes: Raw) -> Raw | None:
    """Let one that is pending be clean. As it was before; none when it was not."""
    accepted = {**changes, "status": UploadStatus.CLEAN, "due_at": None, "updated_at": utc_now()}
    before: Raw | None = await Upload.get_pymongo_collection().find_one_and_update(
        _pending(upload_id), {"$set": accepted}
    )
    return before


async def remove(upload_id: ObjectId, *, owner_id: ObjectId | None) -> Raw | None:
    """As it was, and a note that its bytes are to follow; none when there is no such upload (of the owner)."""
    return await _removed({"_id": upload_id} if owner_id is None else {"_id": upload_id, "owner_id": owner_id})


async def remove_pending(upload_id: ObjectId) -> Raw | None:
    """As `remove`, of one that is pending."""
    return await _removed(_pending(upload_id))


async def remove_due(upload_id: ObjectId) -> Raw | None:
    """As `remove`, of one that is to be given up."""
    return await _removed(_pending(upload_id) | {"due_at": {"$lte": utc_now()}})


async def due_ids(*, limit: int) -> list[ObjectId]:
    where = {"due_at": {"$lte": utc_now()}, "status": UploadStatus.PENDING}
    rows = await find_batch("uploads", where, fields={"_id": 1}, limit=limit)
    return [row["_id"] for row in rows]


class Reach(NamedTuple):
    """Uploads that somebody wants to attach, and what it may: its own; a service also that of services."""

    writer_id: ObjectId | None
    upload_ids: Collection[ObjectId]
    is_service: bool

    def where(self, conversation_id: ObjectId) -> Filter:
        """Those that it may attach in the conversation."""
        is_free = {"owner_id": {"$in": [self.writer_id, None]} if self.is_service else self.writer_id}
        reach: Filter = {"conversation_id": {"$in": [None, conversation_id]}, **is_free}
        if self.is_service:
            reach = {"$or": [reach, {"conversation_id": conversation_id}]}
        return {"_id": {"$in": list(self.upload_ids)}, "status": UploadStatus.CLEAN, **reach}


async def attach(conversation_id: ObjectId, reaches: Sequence[Reach]) -> int:
    """Let those in reach belong to the conversation. How many there are."""
    where = {"$or": [reach.where(conversation_id) for reach in reaches]}
    belonging = {"$set": {"conversation_id": conversation_id, "updated_at": utc_now()}}
    return (await Upload.get_pymongo_collection().update_many(where, belonging)).matched_count


async def attached(conversation_id: ObjectId, reach: Reach) -> set[ObjectId]:
    """Which of them belong to the conversation, and may be attached there."""
    where = reach.where(conversation_id)
    rows = await find_batch("uploads", where, fields={"_id": 1}, limit=len(reach.upload_ids))
    return {row["_id"] for row in rows}


async def ids_of_conversation(conversation_id: ObjectId, *, limit: int) -> list[ObjectId]:
    rows = await find_batch("uploads", {"conversation_id": conversation_id}, fields={"_id": 1}, limit=limit)
    return [row["_id"] for row in rows]


async def owned_stems(stems: Collection[str]) -> set[str]:
    """Which of them are those of an upload."""
    rows = await find_batch("uploads", {"stem": {"$in": list(stems)}}, fields={"stem": 1}, limit=len(stems))
    return {row["stem"] for row in rows}


async def by_stem(*, after: str, until: str | None, limit: int) -> list[Raw]:
    """Uploads in the order of their stems, of one stretch of these."""
    stretch = {"$gt": after} | ({} if until is None else {"$lte": until})
    fields = {"stem": 1, "status": 1, "updated_at": 1}
    return await find_batch("uploads", {"stem": stretch}, fields=fields, sort={"stem": ASCENDING}, limit=limit)


async def notes(*, after: ObjectId | None, limit: int) -> list[Raw]:
    """Uploads that are gone and whose bytes are not, as far as is known."""
    where: Filter = {"due_at": {"$not": {"$gt": utc_now()}}} | ({} if after is None else {"_id": {"$gt": after}})
    return await find_batch("deleted_uploads", where, sort={"_id": ASCENDING}, limit=limit)


async def note(upload_id: ObjectId, stem: str) -> None:
    """That there may be bytes of an upload that is gone."""
    await DeletedUpload.get_pymongo_collection().update_one(
        {"_id": upload_id}, {"$setOnInsert": {"stem": stem, "created_at": utc_now()}}, upsert=True
    )


def note_of(removed: Raw) -> DeletedUpload:
    """For whoever takes an upload away."""
    return DeletedUpload(id=removed["_id"], stem=removed["stem"], link_ends_at=removed.get("link_ends_at"))


async def settle_note(note_id: ObjectId) -> None:
    """All bytes of the deleted upload are gone. The note goes too, unless somebody might still put others there."""
    notes = DeletedUpload.get_pymongo_collection()
    over = {"$not": {"$gt": utc_now() - _PUT_WITHIN}}
    if (await notes.delete_one({"_id": note_id, "link_ends_at": over})).deleted_count == 0:
        wait = int(_PUT_WITHIN.total_seconds() * 1000)
        await notes.update_one({"_id": note_id}, [{"$set": {"due_at": {"$add": ["$link_ends_at", wait]}}}])


async def _removed(where: Filter) -> Raw | None:
    removed: Raw | None = await Upload.get_pymongo_collection().find_one_and_delete(where)
    if removed is not None:
        await note_of(removed).insert()
    return removed


def _pending(upload_id: ObjectId) -> Filter:
    return {"_id": upload_id, "status": UploadStatus.PENDING}


_PUBLIC: Filter = {"visibility": Visibility.PUBLIC, "status": UploadStatus.CLEAN}
