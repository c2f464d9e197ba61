"""How much waits in the database. Counting ends where it would cost something: more than that is too much anyway."""

from datetime import UTC, datetime
from typing import Final

from app.core.clock import utc_now
from app.db.mongo import get_database

MOST_COUNTED: Final = 10_000
_PATIENCE_MS: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def mails_due() -> int:
    return await _count("outbox", {"due_at": {"$lte": utc_now()}}, index="due")


async def mails_failed() -> int:
    """That nobody tries to send any more."""
    return await _count("outbox", {"failed_at": {"$gt": _EPOCH}}, index="failed")


async def unsealed_events() -> int:
    return await _count("audit_events", {"seq": None}, index="unsealed")


async def _count(collection: str, where: dict[str, object], *, index: str) -> int:
    found = get_database()[collection]
    return await found.count_documents(where, limit=MOST_COUNTED, hint=index, maxTimeMS=_PATIENCE_MS)
