"""How far a restore of this database has come: the journal that it keeps, and what it forbids meanwhile.

Before `REPLACING` the database is as it was. From then on it is being replaced, one collection after the other, and
nothing else may happen in it until that is done. What is `DISCARDING` is never replaced any more.
"""

from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase

from app.core.exceptions import AppError

JOURNAL: Final = "restore_journal"
ENTRY: Final = "restore"
LOADING, LOADED, REPLACING, DISCARDING = "loading", "loaded", "replacing", "discarding"


class RestoreUnfinishedError(AppError):
    """Part of the database is the old one, part the restored one."""

    message = (
        "A restore of this database was cut off while it put the collections in place, so nothing may work on it now. "
        "Finish it: python3 scripts/backup_db.py restore --resume"
    )


async def require_whole(database: AsyncDatabase[dict[str, Any]]) -> None:
    """Refuse a database that is being replaced: `RestoreUnfinishedError`."""
    if await database[JOURNAL].find_one({"_id": ENTRY, "state": REPLACING}):
        raise RestoreUnfinishedError
