"""How the use of API keys is written, in batches, and read."""

from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from app.core.clock import utc_now
from app.core.exceptions import ConflictError
from app.core.key_usage import Counts, KeyHour
from app.models.api_key import ApiKey
from app.models.api_key_usage import ApiKeyUsage, ApiKeyUsageBatch

_MAX_REMEMBERED: Final = 50_000

# The hours of keys that this process knows to be there.
_known: set[KeyHour] = set()


async def open_hours(counts: Counts) -> None:
    """See to it that the hours are there. Not inside of a transaction: two that make the same one would meet."""
    new = [name for name in counts if name not in _known]
    if not new:
        return
    with suppress(BulkWriteError):  # somebody else has made one at the same moment
        await ApiKeyUsage.get_pymongo_collection().bulk_write([_addition(name, 0, 0) for name in new], ordered=False)
    if len(_known) >= _MAX_REMEMBERED:
        _known.clear()
    _known.update(new)


async def add(batch_id: ObjectId, counts: Counts) -> None:
    """Add the counts, with the mark that this batch was added. `ConflictError` when it was before.

    Call it inside of a transaction, so that the mark is there exactly when all the counts are.
    """
    try:
        await ApiKeyUsageBatch.get_pymongo_collection().insert_one({"_id": batch_id, "created_at": utc_now()})
    except DuplicateKeyError as error:
        raise ConflictError from error
    additions = [_addition(name, count.requests, count.denied) for name, count in counts.items()]
    await ApiKeyUsage.get_pymongo_collection().bulk_write(additions, ordered=False)


async def note_last_uses(counts: Counts) -> None:
    """Write when keys were last used, unless a later use is known. Nothing else is written with it.

    The change feed does not tell of such a write: whoever remembers the key goes on doing so.
    """
    updates = [
        UpdateOne(
            {
                "_id": name.key_id,
                "$or": [{"last_used_at": None}, {"last_used_at": {"$lt": count.last_used_at}}],
            },
            {"$set": {"last_used_at": count.last_used_at, "last_used_ip": count.last_used_ip}},
        )
        for name, count in counts.items()
        if count.last_used_at is not None
    ]
    if updates:
        await ApiKey.get_pymongo_collection().bulk_write(updates, ordered=False)


async def by_bucket(api_key_id: ObjectId, *, begin: datetime, end: datetime, unit: str) -> dict[datetime, Any]:
    """The requests and refusals of each hour or day in which there were any, by its beginning."""
    pipeline = [
        {"$match": {"key_id": api_key_id, "hour": {"$gte": begin, "$lt": end}}},
        {
            "$group": {
                "_id": {"$dateTrunc": {"date": "$hour", "unit": unit}},
                "requests": {"$sum": "$requests"},
                "denied": {"$sum": "$denied"},
            }
        },
    ]
    rows = await (await ApiKeyUsage.get_pymongo_collection().aggregate(pipeline)).to_list()
    return {row.pop("_id"): row for row in rows}


def _addition(name: KeyHour, requests: int, denied: int) -> UpdateOne:
    return UpdateOne(
        {"key_id": name.key_id, "hour": name.hour},
        {"$inc": {"requests": requests, "denied": denied}, "$setOnInsert": {"created_at": utc_now()}},
        upsert=True,
    )
