"""How API keys are found and changed."""

from datetime import datetime
from typing import Any

from bson import ObjectId

from app.core import live_cache
from app.core.clock import utc_now
from app.core.exceptions import NotFoundError
from app.crud.base import Filter, Listing, Page, find_one_and_delete, find_one_and_update
from app.db.mongo import after_commit
from app.models.api_key import ApiKey


async def find(api_key_id: ObjectId | None) -> ApiKey | None:
    return await ApiKey.find_one({"_id": api_key_id})


async def find_by_key_id(key_id: str) -> ApiKey | None:
    return await ApiKey.find_one({"key_id": key_id})


async def require(api_key_id: ObjectId, *, owner_id: ObjectId | None) -> ApiKey:
    """The key, among those of the owner when there is one."""
    key = await ApiKey.find_one(_reach(api_key_id, owner_id))
    if key is None:
        raise NotFoundError("There is no such API key.")
    return key


async def page(*, owner_id: ObjectId | None, include_inactive: bool, limit: int, cursor: str | None) -> Page[ApiKey]:
    where: Filter = {} if owner_id is None else {"owner_id": owner_id}
    if not include_inactive:
        where["is_active"] = True
    listing = Listing("api_keys", where, ["created_at", "_id"])
    rows = await ApiKey.find(listing.after(cursor)).sort(listing.beanie_order).limit(limit + 1).to_list()
    return listing.page(rows, limit)


async def change(api_key_id: ObjectId, changes: dict[str, Any], *, owner_id: ObjectId | None) -> ApiKey:
    """Change the key. Who is to be warned of its expiry is so anew when that is changed."""
    if "expires_at" in changes:
        changes = {**changes, "noticed_days": None}
    update = {"$set": {**changes, "updated_at": utc_now()}}
    changed = await find_one_and_update(ApiKey, _reach(api_key_id, owner_id), update)
    if changed is None:
        raise NotFoundError("There is no such API key.")
    after_commit(lambda: live_cache.forget(api_key_id))
    return changed


async def retire(api_key_id: ObjectId, *, until: datetime, is_active: bool, expires_at: datetime) -> bool:
    """Let a key in use end because another takes its place. Of several at once one does; false for the others."""
    changes = {"grace_until": until, "expires_at": expires_at, "is_active": is_active, "updated_at": utc_now()}
    result = await ApiKey.get_pymongo_collection().update_one(
        {"_id": api_key_id, "is_active": True, "grace_until": None}, {"$set": changes}
    )
    after_commit(lambda: live_cache.forget(api_key_id))
    return result.matched_count == 1


async def hold(api_key_id: ObjectId) -> ApiKey | None:
    """Let the transaction under way stand only if nothing changes the key before its end.

    The key as it is; none when it is not active, or has expired.
    """
    now = utc_now()
    where = {"_id": api_key_id, "is_active": True, **_lives_on(now)}
    return await find_one_and_update(ApiKey, where, {"$set": {"held_at": now}})


async def remove(api_key_id: ObjectId, *, owner_id: ObjectId | None) -> ApiKey:
    removed = await find_one_and_delete(ApiKey, _reach(api_key_id, owner_id))
    if removed is None:
        raise NotFoundError("There is no such API key.")
    after_commit(lambda: live_cache.forget(api_key_id))
    return removed


async def deactivate_all(owner_id: ObjectId) -> int:
    """Deactivate every key of a user. How many were active."""
    result = await ApiKey.get_pymongo_collection().update_many(
        {"owner_id": owner_id, "is_active": True}, {"$set": {"is_active": False, "updated_at": utc_now()}}
    )
    after_commit(lambda: live_cache.forget(owner_id))
    return result.modified_count


async def count_usable(owner_id: ObjectId) -> int:
    """How many keys of a user open its account today."""
    where = {"owner_id": owner_id, "is_active": True, **_lives_on(utc_now())}
    return await ApiKey.find(where).count()


def _lives_on(now: datetime) -> Filter:
    return {"$or": [{"expires_at": None}, {"expires_at": {"$gt": now}}]}


def _reach(api_key_id: ObjectId, owner_id: ObjectId | None) -> Filter:
    return {"_id": api_key_id} if owner_id is None else {"_id": api_key_id, "owner_id": owner_id}
