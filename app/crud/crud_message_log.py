"""How message logs are found and removed."""

from datetime import datetime
from typing import Final

from bson import ObjectId

from app.core.normalise import name_key
from app.crud.base import ASCENDING, Filter, Listing, Page
from app.db.mongo import Raw, find_batch
from app.models.message_log import MessageLog

_LOGS: Final = "message_logs"


async def page(
    *,
    username: str | None,
    user_id: ObjectId | None,
    model: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    cursor: str | None,
) -> Page[Raw]:
    """What is named, all of it, latest first; `since` included, `until` not."""
    named = {"username_key": name_key(username) if username else None, "user_id": user_id, "model": model}
    where: Filter = {field: value for field, value in named.items() if value is not None}
    bounds = {"$gte": since, "$lt": until}
    if timestamp := {bound: at for bound, at in bounds.items() if at is not None}:
        where["timestamp"] = timestamp
    listing = Listing(_LOGS, where, ["timestamp", "_id"])
    rows = await find_batch(_LOGS, listing.after(cursor), sort=listing.order, limit=limit + 1)
    return listing.page(rows, limit)


async def remove_some_before(moment: datetime, *, limit: int) -> int:
    """Remove some of the logs of an earlier time, the oldest first. How many there were."""
    where = {"timestamp": {"$lt": moment}}
    rows = await find_batch(
        _LOGS, where, fields={"_id": 1}, sort={"timestamp": ASCENDING, "_id": ASCENDING}, limit=limit
    )
    found = {"_id": {"$in": [row["_id"] for row in rows]}}
    return (await MessageLog.get_pymongo_collection().delete_many(found)).deleted_count if rows else 0
