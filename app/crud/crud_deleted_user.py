"""How archived accounts are found, taken back and purged.

One whose purge has begun is out of sight: it is neither listed nor restored.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final

from bson import ObjectId
from pymongo import ReturnDocument

from app.core.exceptions import NotFoundError
from app.core.normalise import name_key
from app.crud.base import ASCENDING, Filter, Listing, Page, find_one_and_delete, find_one_and_update
from app.models.deleted_user import DeletedUser

_AFTER_ALL: Final = "\U0010ffff"
_KEPT: Final[Filter] = {"purge_started_at": None}


async def page(*, q: str | None, limit: int, cursor: str | None) -> Page[DeletedUser]:
    """The latest deletion first. `q` is the beginning of an e-mail address."""
    where: Filter = {**_KEPT, "email_key": {"$gte": name_key(q), "$lt": name_key(q) + _AFTER_ALL}} if q else _KEPT
    listing = Listing("deleted_users", where, ["deleted_at", "_id"])
    rows = await DeletedUser.find(listing.after(cursor)).sort(listing.beanie_order).limit(limit + 1).to_list()
    return listing.page(rows, limit)


async def take(user_id: ObjectId) -> DeletedUser:
    """Remove it from the archive and give it as it was. Of two who try, one does."""
    taken = await find_one_and_delete(DeletedUser, {"_id": user_id, **_KEPT})
    if taken is None:
        raise _absent()
    return taken


async def mark_purge_started(user_id: ObjectId, *, at: datetime) -> DeletedUser:
    """Make it due, and out of reach for everybody but the purge."""
    update = {"$set": {"purge_started_at": at, "purge_at": at}}
    marked = await find_one_and_update(DeletedUser, {"_id": user_id, **_KEPT}, update)
    if marked is None:
        raise _absent()
    return marked


async def due(*, at: datetime) -> AsyncIterator[DeletedUser]:
    """What is to be purged, the longest due first."""
    async for archived in DeletedUser.find({"purge_at": {"$lte": at}}).sort("+purge_at"):
        yield archived


async def claim_due(*, holder: ObjectId, at: datetime, until: datetime) -> DeletedUser | None:
    """Take the purge of one that is due and that nobody is at; of one whose holder has died as well.

    Its purge has begun with that.
    """
    where = {"purge_at": {"$lte": at}, "claimed_until": {"$not": {"$gt": at}}}
    begun = {"$ifNull": ["$purge_started_at", at]}
    update = [{"$set": {"purge_started_at": begun, "claimed_by": holder, "claimed_until": until}}]
    raw = await DeletedUser.get_pymongo_collection().find_one_and_update(
        where, update, sort={"purge_at": ASCENDING}, return_document=ReturnDocument.AFTER
    )
    return DeletedUser.model_validate(raw) if raw else None


async def note_progress(claim: DeletedUser, removed: Mapping[str, int], *, until: datetime, **changes: Any) -> bool:
    """Count what was removed, and hold the claim for longer. False when somebody else has taken it."""
    update: dict[str, Any] = {"$set": {"claimed_until": until, **changes}}
    if removed:
        update["$inc"] = {f"removed.{kind}": count for kind, count in removed.items()}
    result = await DeletedUser.get_pymongo_collection().update_one(_held(claim), update)
    return result.matched_count == 1


async def release(claim: DeletedUser) -> None:
    """Let the next one go on at once."""
    await DeletedUser.get_pymongo_collection().update_one(_held(claim), {"$set": {"claimed_until": None}})


async def remove_claimed(claim: DeletedUser) -> DeletedUser | None:
    """The end of a purge. None when somebody else has taken it."""
    return await find_one_and_delete(DeletedUser, _held(claim))


def _held(claim: DeletedUser) -> Filter:
    return {"_id": claim.id, "claimed_by": claim.claimed_by}


def _absent() -> NotFoundError:
    return NotFoundError("There is no such deleted user.")
