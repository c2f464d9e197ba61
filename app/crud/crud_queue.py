"""How much waits in the database. Counting ends where it would cost something: more than that is too much anyway."""

from datetime import UTC, datetime
from typing import Final, NamedTuple

from app.core.clock import utc_now
from app.db.mongo import Raw, get_database

MOST_COUNTED: Final = 10_000
_PATIENCE_MS: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Waiting(NamedTuple):
    """How many there are, and since when the oldest."""

    number: int
    since: datetime | None


async def mails_due() -> int:
    return await _count("outbox", {"due_at": {"$lte": utc_now()}}, index="due")


async def mails_waiting() -> Waiting:
    """That are to be sent still, now or when it is tried again."""
    group: Raw = {"$group": {"_id": None, "count": {"$sum": 1}, "oldest": {"$min": "$_id"}}}
    pipeline: list[Raw] = [{"$match": {"due_at": {"$gt": _EPOCH}}}, {"$limit": MOST_COUNTED}, group]
    cursor = await get_database()["outbox"].aggregate(pipeline, hint="due", maxTimeMS=_PATIENCE_MS)
    rows = await cursor.to_list()
    return Waiting(rows[0]["count"], rows[0]["oldest"].generation_time) if rows else Waiting(0, None)


async def mails_failed() -> int:
    """That nobody tries to send any more."""
    return await _count("outbox", {"failed_at": {"$gt": _EPOCH}}, index="failed")


async def unsealed_events() -> int:
    return await _count("audit_events", {"seq": None}, index="unsealed")


async def _count(collection: str, where: dict[str, object], *, index: str) -> int:
    found = get_database()[collection]
    return await found.count_documents(where, limit=MOST_COUNTED, hint=index, maxTimeMS=_PATIENCE_MS)
