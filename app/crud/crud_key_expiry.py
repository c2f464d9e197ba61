"""API keys by when they end."""

from datetime import datetime
from typing import Final

from bson import ObjectId

from app.core import live_cache
from app.crud.base import ASCENDING, Filter, Listing, Page
from app.db.mongo import after_commit, find_batch
from app.models.api_key import ApiKey

# What was rotated ends as it was meant to, and needs nobody's attention.
_EXPIRING: Final = Listing("api_keys", {"is_active": True, "grace_until": None}, ["expires_at", "_id"], ASCENDING)


async def page_expiring(*, after: datetime, until: datetime, limit: int, cursor: str | None) -> Page[ApiKey]:
    """Active keys that expire in that time, the first to do so first."""
    where: Filter = {"$and": [{"expires_at": {"$gt": after, "$lte": until}}, _EXPIRING.after(cursor)]}
    rows = await ApiKey.find(where).sort(_EXPIRING.beanie_order).limit(limit + 1).to_list()
    return _EXPIRING.page(rows, limit)


async def deactivate_some(at: datetime, *, limit: int) -> list[ObjectId]:
    """Deactivate keys that have expired. Which ones; call it inside of a transaction, so that no other takes them."""
    over: Filter = {"is_active": True, "expires_at": {"$lte": at}}
    found = await find_batch("api_keys", over, fields={"_id": 1}, sort={"expires_at": ASCENDING}, limit=limit)
    ids = [row["_id"] for row in found]
    changes = {"is_active": False, "updated_at": at}
    await ApiKey.get_pymongo_collection().update_many({"_id": {"$in": ids}}, {"$set": changes})
    after_commit(lambda: live_cache.forget(*ids))
    return ids


async def some_to_warn_of(*, after: datetime, until: datetime, days: int, limit: int) -> list[ApiKey]:
    """Active keys that expire in that time and of which nobody was warned so many days before."""
    where: Filter = {
        "is_active": True,
        "grace_until": None,
        "expires_at": {"$gt": after, "$lte": until},
        "$or": [{"noticed_days": None}, {"noticed_days": {"$gt": days}}],
    }
    return await ApiKey.find(where).sort("expires_at").limit(limit).to_list()


async def note_warning(key: ApiKey, days: int) -> bool:
    """Note that its holder is warned so many days before. False when somebody was faster, or the key has changed."""
    where: Filter = {
        "_id": key.id,
        "is_active": True,
        "grace_until": None,
        "expires_at": key.expires_at,
        "$or": [{"noticed_days": None}, {"noticed_days": {"$gt": days}}],
    }
    result = await ApiKey.get_pymongo_collection().update_one(where, {"$set": {"noticed_days": days}})
    return result.matched_count == 1
