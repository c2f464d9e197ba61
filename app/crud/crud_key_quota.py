"""How quotas of API keys are drawn on: one conditional update a request, outside of any transaction."""

from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Final

from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from app.core.clock import utc_now
from app.core.quota import Window
from app.db.mongo import find_batch
from app.models.api_key_usage import ApiKeyQuota

_KEPT: Final = timedelta(days=7)
_MAX_REMEMBERED: Final = 20_000

# What is used up stays so until its window ends: nobody need ask again. With the limit, which may be raised.
_used_up: set[tuple[ObjectId, str, int]] = set()


async def draw(lineage: ObjectId, window: Window, limit: int) -> int | None:
    """Draw one request. How many are left then; none, and nothing drawn, when there was none."""
    name = (lineage, window.name, limit)
    if name in _used_up:
        return None
    used = await _count(lineage, window, limit)
    if used is None:  # used up, or the first request of the window
        await _make(lineage, window)
        used = await _count(lineage, window, limit)
    if used is not None:
        return limit - used
    if len(_used_up) >= _MAX_REMEMBERED:
        _used_up.clear()
    _used_up.add(name)
    return None


async def used(lineages: Iterable[ObjectId], windows: Iterable[str]) -> dict[tuple[ObjectId, str], int]:
    """How much was drawn, by lineage and name of the window. What was not drawn on is not there."""
    keys, names = list(set(lineages)), list(set(windows))
    where = {"key_id": {"$in": keys}, "window": {"$in": names}}
    rows = await find_batch("api_key_quotas", where, limit=len(keys) * len(names))
    return {(row["key_id"], row["window"]): row["used"] for row in rows}


async def _count(lineage: ObjectId, window: Window, limit: int) -> int | None:
    found = await ApiKeyQuota.get_pymongo_collection().find_one_and_update(
        {"key_id": lineage, "window": window.name, "used": {"$lt": limit}},
        {"$inc": {"used": 1}},
        {"_id": 0, "used": 1},
        return_document=ReturnDocument.AFTER,
    )
    return found["used"] if found else None


async def _make(lineage: ObjectId, window: Window) -> None:
    """Make the count of a window unless it is there."""
    where = {"key_id": lineage, "window": window.name}
    first = {"_id": ObjectId(), "used": 0, "created_at": utc_now(), "expires_at": window.resets_at + _KEPT}
    with suppress(DuplicateKeyError):  # somebody else has made it at the same moment
        await ApiKeyQuota.get_pymongo_collection().update_one(where, {"$setOnInsert": first}, upsert=True)
