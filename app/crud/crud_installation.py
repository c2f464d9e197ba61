"""Facts that hold once for the whole database."""

from typing import Final

from pymongo.errors import DuplicateKeyError

from app.core.clock import utc_now
from app.core.hash_chain import Link
from app.db.mongo import find_batch
from app.models.installation import Installation

_SEALED: Final = "audit_sealed"


async def mark_once(fact: str) -> bool:
    """Record that it has happened. False when it had before; inside a transaction, leave it then."""
    try:
        await Installation(id=fact).insert()
    except DuplicateKeyError:
        return False
    return True


async def note_sealed(end: Link) -> None:
    """Note how far the audit chain ever reached, apart from the chain: it is known when that is gone, head and all."""
    mark = {**end._asdict(), "at": utc_now()}
    await Installation.get_pymongo_collection().update_one({"_id": _SEALED}, {"$set": mark}, upsert=True)


async def find_sealed() -> Link | None:
    """None when nothing was ever sealed, or when somebody has made the note into nonsense."""
    for row in await find_batch("installation", {"_id": _SEALED}, limit=1):
        if isinstance(row.get("seq"), int) and isinstance(row.get("hash"), str):
            return Link(row["seq"], row["hash"])
    return None
