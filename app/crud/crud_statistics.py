"""What happened on a day, counted from what is written down once and never changed, in the range of that day alone."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

import pymongo
from bson import ObjectId
from pymongo import UpdateOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_concern import ReadConcern

from app.crud import crud_usage
from app.crud.base import ASCENDING, Filter
from app.db.mongo import Raw, find_batch, get_database
from app.models.daily_statistics import Counts, DailyStatistics
from app.models.enums import AuditAction, AuditOutcome

_PATIENCE: Final = 30.0  # seconds for counting one day: no request waits for it
_MOST_DAYS: Final = 400
_MADE: Final = {
    AuditAction.USER_CREATED: "users",
    AuditAction.API_KEY_CREATED: "keys",
    AuditAction.SERVICE_BOOTSTRAPPED: "keys",
    AuditAction.UPLOAD_CREATED: "uploads",
}
_SIGNED_IN: Final = [AuditAction.SESSION_CREATED, AuditAction.SESSION_REFRESHED]


class Present(NamedTuple):
    """How many there are now, whenever they were made."""

    users: int
    messages: int
    keys: int
    uploads: int


async def count(day: date) -> Counts:
    """What is known of the day at this moment. Each query is served by an index over the range of the day."""
    with pymongo.timeout(_PATIENCE):
        made = await _made(day)
        return Counts(
            **made, active_users=await _active_users(day), messages=await _messages(day), failures=await _failures(day)
        )


async def keep(counts: Mapping[date, Counts], *, counted_at: datetime) -> None:
    """Write them down. No number gets less, so of two who count at once the one that saw more has the last word."""
    writes = [
        UpdateOne({"_id": day.isoformat()}, {"$max": {**numbers.model_dump(), "counted_at": counted_at}}, upsert=True)
        for day, numbers in counts.items()
    ]
    if writes:
        await DailyStatistics.get_pymongo_collection().bulk_write(writes, ordered=False)


async def since(day: date) -> dict[date, Raw]:
    """What is written down of that day and of those after it."""
    where = {"_id": {"$gte": day.isoformat()}}
    rows = await find_batch("daily_statistics", where, sort={"_id": ASCENDING}, limit=_MOST_DAYS)
    return {date.fromisoformat(row["_id"]): row for row in rows}


async def first_day(since: date) -> date | None:
    """The first day from that one on of which there is anything to count."""
    event = {"time": {"$gte": _midnight(since)}}
    message = {"_id": {"$gte": ObjectId.from_datetime(_midnight(since))}}
    events = await find_batch("audit_events", event, fields={"time": 1}, sort={"time": ASCENDING}, limit=1)
    messages = await find_batch("messages", message, fields={"_id": 1}, sort={"_id": ASCENDING}, limit=1)
    moments = [row["time"].replace(tzinfo=UTC) for row in events] + [row["_id"].generation_time for row in messages]
    return min(moments).date() if moments else None


async def present() -> Present:
    """From what the database knows without looking."""
    names = ("users", "messages", "api_keys", "uploads")
    return Present(*await asyncio.gather(*(get_database()[name].estimated_document_count() for name in names)))


async def _made(day: date) -> dict[str, int]:
    by_action: list[Raw] = [
        {"$match": {"action": {"$in": list(_MADE)}, "time": _range(day)}},
        {"$group": {"_id": "$action", "count": {"$sum": 1}}},
    ]
    counts = dict.fromkeys(_MADE.values(), 0)
    async for row in await _lasting("audit_events").aggregate(by_action):
        counts[_MADE[AuditAction(row["_id"])]] += row["count"]
    return counts


async def _active_users(day: date) -> int:
    """Each once, on whichever of the two they are found. The server counts; no list of them comes here."""
    counters = {"expires_at": crud_usage.expiry_of(day.isoformat()), "messages": {"$gt": 0}}
    signed_in: Filter = {"action": {"$in": _SIGNED_IN}, "time": _range(day), "actor.kind": "user"}
    wrote = [{"$match": counters}, {"$project": {"_id": 0, "user": "$user_id"}}]
    return await _number(
        "audit_events",
        [
            {"$match": signed_in},
            {"$project": {"_id": 0, "user": "$actor.id"}},
            {"$unionWith": {"coll": "usage_counters", "pipeline": wrote}},
            {"$group": {"_id": "$user"}},
            {"$group": {"_id": None, "number": {"$sum": 1}}},
        ],
    )


async def _messages(day: date) -> int:
    """By their ids, which are made when they are."""
    first, last = (ObjectId.from_datetime(_midnight(each)) for each in (day, day + timedelta(days=1)))
    of_day: Filter = {"_id": {"$gte": first, "$lt": last}}
    return await _number("messages", [{"$match": of_day}, {"$group": {"_id": None, "number": {"$sum": 1}}}])


async def _failures(day: date) -> int:
    """One event may tell of many refusals."""
    refused: Filter = {"outcome": AuditOutcome.FAILURE, "time": _range(day)}
    times = {"$cond": [{"$isNumber": "$details.count"}, "$details.count", 1]}
    return await _number("audit_events", [{"$match": refused}, {"$group": {"_id": None, "number": {"$sum": times}}}])


async def _number(collection: str, pipeline: list[Raw]) -> int:
    rows = await (await _lasting(collection).aggregate(pipeline)).to_list()
    return int(rows[0]["number"]) if rows else 0


def _lasting(collection: str) -> AsyncCollection[Raw]:
    """As the majority of the servers has it: what is lost with one that fails must not stay counted."""
    return get_database().get_collection(collection, read_concern=ReadConcern("majority"))


def _range(day: date) -> Filter:
    return {"$gte": _midnight(day), "$lt": _midnight(day + timedelta(days=1))}


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
