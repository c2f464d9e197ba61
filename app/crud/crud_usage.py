"""How usage is counted: by conditional updates of documents that are there before the transaction begins.

An upsert with the limit in its filter could not tell a limit that is reached from a document that somebody else has
just made. So the document is made first, outside of the transaction, once for each process.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, DuplicateKeyError

from app.core.clock import utc_now
from app.crud.base import Filter
from app.db.mongo import Raw, find_batch
from app.models.usage_counter import UsageCounter, UsageTotal

_KEPT: Final = timedelta(days=400)
_MAX_REMEMBERED: Final = 20_000
_DUPLICATE: Final = 11000

# What this process knows to be there: the days of users, and users for their totals.
_known: set[object] = set()


class Used(NamedTuple):
    """What a user has used of what plans limit."""

    messages_today: int
    conversations: int
    storage_bytes: int


async def open_day(user_id: ObjectId, at: datetime) -> str:
    """The day of that moment (UTC), with a counter of the user that is there. Not inside of a transaction."""
    day = day_of(at)
    where = {"user_id": user_id, "day": day}
    await _make_once(UsageCounter.get_pymongo_collection(), where, _first_of(day, at), (user_id, day))
    return day


async def open_days(days: Iterable[tuple[ObjectId, str]]) -> None:
    """See to it that the counters of these users and days are there. Not inside of a transaction."""
    now = utc_now()
    made = [
        UpdateOne({"user_id": user_id, "day": day}, {"$setOnInsert": _first_of(day, now)}, upsert=True)
        for user_id, day in days
    ]
    try:
        if made:
            await UsageCounter.get_pymongo_collection().bulk_write(made, ordered=False)
    except BulkWriteError as error:
        # Somebody else has made some of them at the same moment.
        if any(fault["code"] != _DUPLICATE for fault in error.details["writeErrors"]):
            raise


async def open_totals(user_id: ObjectId) -> None:
    """See to it that the totals of the user are there. Not inside of a transaction."""
    first = {"conversations": 0, "storage_bytes": 0, "created_at": utc_now()}
    await _make_once(UsageTotal.get_pymongo_collection(), {"_id": user_id}, first, user_id)


async def count_messages(user_id: ObjectId, *, day: str, limit: int | None, count: int = 1) -> bool:
    """Count messages of a day that was opened. False when that would be more than the limit; then none is counted."""
    where: Filter = {"user_id": user_id, "day": day}
    if limit is not None:
        where["messages"] = {"$lte": limit - count}
    result = await UsageCounter.get_pymongo_collection().update_one(where, {"$inc": {"messages": count}})
    return _has_counted(result.matched_count, (user_id, day))


async def count_tokens(tokens: Mapping[tuple[ObjectId, str], int]) -> None:
    """Count tokens of users and days that were opened. Where a counter is gone, so is what it was kept for."""
    counts = [
        UpdateOne({"user_id": user_id, "day": day}, {"$inc": {"tokens": count}})
        for (user_id, day), count in tokens.items()
    ]
    if counts:
        await UsageCounter.get_pymongo_collection().bulk_write(counts, ordered=False)


async def count_conversation(user_id: ObjectId, *, limit: int | None) -> bool:
    """Count one more in totals that were opened. False when that would be more than the limit."""
    where: Filter = {"_id": user_id}
    if limit is not None:
        where["conversations"] = {"$lt": limit}
    result = await UsageTotal.get_pymongo_collection().update_one(where, {"$inc": {"conversations": 1}})
    return _has_counted(result.matched_count, user_id)


async def give_back_conversation(user_id: ObjectId) -> None:
    """Count one less. Never below zero: what was there before anything was counted is not counted back."""
    await UsageTotal.get_pymongo_collection().update_one(
        {"_id": user_id, "conversations": {"$gt": 0}}, {"$inc": {"conversations": -1}}
    )


async def count_storage(user_id: ObjectId, size: int, *, limit: int | None) -> bool:
    """Count so many bytes more in totals that were opened. False when that would be more than the limit."""
    where: Filter = {"_id": user_id}
    if limit is not None:
        where["storage_bytes"] = {"$lte": limit - size}
    result = await UsageTotal.get_pymongo_collection().update_one(where, {"$inc": {"storage_bytes": size}})
    return _has_counted(result.matched_count, user_id)


async def give_back_storage(user_id: ObjectId, size: int) -> None:
    """Count so many bytes less. Of totals that are gone with their user nothing is left to give back."""
    await UsageTotal.get_pymongo_collection().update_one({"_id": user_id}, {"$inc": {"storage_bytes": -size}})


async def reset_messages(user_id: ObjectId, *, day: str) -> None:
    """Begin the count of messages of the day anew. What else was used on it, no limit asks for: it stays."""
    await UsageCounter.get_pymongo_collection().update_one({"user_id": user_id, "day": day}, {"$set": {"messages": 0}})


async def remove_totals(user_id: ObjectId) -> None:
    await UsageTotal.get_pymongo_collection().delete_one({"_id": user_id})


async def used(user_id: ObjectId, *, day: str) -> Used:
    counters = await find_batch("usage_counters", {"user_id": user_id, "day": day}, fields={"messages": 1}, limit=1)
    totals = await find_batch("usage_totals", {"_id": user_id}, limit=1)
    return Used(
        messages_today=counters[0]["messages"] if counters else 0,
        conversations=totals[0]["conversations"] if totals else 0,
        storage_bytes=totals[0]["storage_bytes"] if totals else 0,
    )


def day_of(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"


def expiry_of(day: str) -> datetime:
    """Until when counters of the day are kept: the same for all of them, and an index finds them by it."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC) + _KEPT


def _first_of(day: str, at: datetime) -> Raw:
    """The counter of a day on which nothing has been used yet, kept from its midnight on."""
    counts = {"messages": 0, "tokens": 0, "bytes": 0}
    return {"_id": ObjectId(), **counts, "created_at": at, "expires_at": expiry_of(day)}


async def _make_once(collection: AsyncCollection[dict[str, Any]], where: Filter, first: Raw, name: object) -> None:
    if name in _known:
        return
    with suppress(DuplicateKeyError):  # somebody else has made it at the same moment
        await collection.update_one(where, {"$setOnInsert": first}, upsert=True)
    if len(_known) >= _MAX_REMEMBERED:
        _known.clear()
    _known.add(name)


def _has_counted(matched: int, name: object) -> bool:
    if matched == 0:
        _known.discard(name)  # it may also be gone: the next one looks again
    return matched == 1
