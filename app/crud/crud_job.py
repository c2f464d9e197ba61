"""Jobs and their leases. Times are the database's own, so that hosts need not agree about the clock."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from app.crud.base import find_one_and_update
from app.db.mongo import Raw, get_database
from app.models.enums import JobOutcome
from app.models.job import Job

_NOW: Final = "$$NOW"
_IS_FREE: Final = {"$lte": [{"$ifNull": ["$leased_until", _NOW]}, _NOW]}
_IS_DUE: Final = {"$and": [{"$lte": ["$due_at", _NOW]}, _IS_FREE]}
_IS_OVERDUE: Final = {"$and": [_IS_DUE, {"$lt": ["$due_at", {"$subtract": [_NOW, 120_000]}]}]}


class JobState(NamedTuple):
    """A job, whether somebody is at it, and whether nobody is though it is due, or has been for two minutes."""

    job: Job
    is_held: bool
    is_due: bool
    is_overdue: bool


async def add_missing(names: Sequence[str]) -> None:
    """Jobs that the database has not heard of yet are due at once."""
    new = [{"q": {"_id": name}, "u": [{"$set": _unless_there("due_at", _NOW)}], "upsert": True} for name in names]
    await get_database().command({"update": "jobs", "updates": new, "ordered": False})


async def by_name(names: Collection[str]) -> dict[str, JobState]:
    """Of these jobs: the database may remember others of an earlier version."""
    state = {"is_held": {"$not": [_IS_FREE]}, "is_due": _IS_DUE, "is_overdue": _IS_OVERDUE}
    known: Raw = {"$match": {"_id": {"$in": list(names)}}}
    rows = await (await Job.get_pymongo_collection().aggregate([known, {"$set": state}])).to_list()
    return {row["_id"]: JobState(Job.model_validate(row), *(row[flag] for flag in state)) for row in rows}


async def due() -> list[str]:
    """Names of the jobs that are due and that nobody is at."""
    rows = await Job.get_pymongo_collection().find({"$expr": _IS_DUE}, {"_id": 1}).to_list()
    return [row["_id"] for row in rows]


async def make_due(name: str) -> None:
    """Have it run now, or once more when it is running."""
    await Job.get_pymongo_collection().update_one({"_id": name}, [{"$set": {"due_at": _NOW}}], upsert=True)


async def claim(name: str, holder: str, lease: timedelta) -> Job | None:
    """Take the lease of a job that is due. Of several who ask one gets it; none when it is not due any more."""
    taken = {"holder": holder, "leased_until": _in(lease), "started_at": _NOW}
    return await find_one_and_update(Job, {"_id": name, "$expr": _IS_DUE}, [{"$set": taken}])


async def prolong(name: str, holder: str, lease: timedelta) -> bool:
    """False when somebody else has taken the job over."""
    result = await Job.get_pymongo_collection().update_one(
        {"_id": name, "holder": holder}, [{"$set": {"leased_until": _in(lease)}}]
    )
    return result.matched_count == 1


async def finish(
    name: str, holder: str, outcome: JobOutcome, *, due_at: datetime | None, result: dict[str, Any], error: str | None
) -> None:
    """Give the lease back with how it went. It stays due when it was asked for meanwhile.

    `due_at` is by the clock of the database; none: at once.
    """
    was_asked_for = {"$gt": ["$due_at", "$started_at"]}
    end = {
        "holder": None,
        "leased_until": None,
        "finished_at": _NOW,
        **({"succeeded_at": _NOW} if outcome is JobOutcome.SUCCESS else {}),
        "duration_ms": {"$dateDiff": {"startDate": "$started_at", "endDate": _NOW, "unit": "millisecond"}},
        "due_at": {"$cond": [was_asked_for, "$due_at", due_at or _NOW]},
        "outcome": outcome,
        "result": {"$literal": result},
        "error": {"$literal": error},
    }
    await Job.get_pymongo_collection().update_one({"_id": name, "holder": holder}, [{"$set": end}])


def _in(span: timedelta) -> dict[str, Any]:
    return {"$add": [_NOW, int(span.total_seconds() * 1000)]}


def _unless_there(field: str, value: str) -> dict[str, Any]:
    return {field: {"$ifNull": [f"${field}", value]}}
