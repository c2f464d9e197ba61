"""What the database says of itself, and of what waits in it."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any, Final

from pymongo.errors import OperationFailure

from app.crud.base import ASCENDING
from app.db.mongo import Raw, find_batch, get_database

_MOST: Final = 10_000
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def facts() -> dict[str, Any]:
    """Of the server and of this database, and how long a ping takes."""
    database = get_database()
    begun_at = time.monotonic()
    await database.command("ping")
    latency = time.monotonic() - begun_at
    hello, build, size, connections = await asyncio.gather(
        database.command("hello"), database.command("buildInfo"), database.command("dbStats"), _connections()
    )
    other = "secondary" if hello.get("secondary") else "other"
    return {
        "latency_ms": round(latency * 1000, 2),
        "version": build["version"],
        "replica_set": hello.get("setName"),
        "state": "primary" if hello.get("isWritablePrimary") else other,
        "members": len(hello.get("hosts", ())),
        "data_bytes": _whole(size.get("dataSize")),
        "index_bytes": _whole(size.get("indexSize")),
        "disk_bytes": _whole(size.get("totalSize")),
        **connections,
    }


async def outbox() -> dict[str, Any]:
    """What waits to be sent, and what was given up. Both are read from an index, and no further than to a bound."""
    waiting, failed = await asyncio.gather(*(_counted({name: {"$gt": _BEGINNING}}) for name in ("due_at", "failed_at")))
    oldest = waiting.get("oldest")
    return {
        "waiting": waiting.get("count", 0),
        "oldest_waiting_at": None if oldest is None else oldest.generation_time,
        "failed": failed.get("count", 0),
    }


async def unsealed_since() -> datetime | None:
    """When the oldest audit event was made that has no place in the chain."""
    order = {"_id": ASCENDING}
    rows = await find_batch("audit_events", {"seq": None}, fields={"_id": 1}, sort=order, limit=1)
    return rows[0]["_id"].generation_time if rows else None


def _whole(number: float | None) -> int | None:
    """Not every service that speaks the protocol tells everything."""
    return None if number is None else int(number)


async def _connections() -> dict[str, int | None]:
    """Not every account may ask."""
    try:
        found = (await get_database().command({"serverStatus": 1, "repl": 0, "metrics": 0}))["connections"]
    except OperationFailure:
        return {"connections": None, "connections_left": None}
    return {"connections": found["current"], "connections_left": found["available"]}


async def _counted(where: Raw) -> Raw:
    """How many, and the id of the oldest of them."""
    group: Raw = {"$group": {"_id": None, "count": {"$sum": 1}, "oldest": {"$min": "$_id"}}}
    rows = await (await get_database()["outbox"].aggregate([{"$match": where}, {"$limit": _MOST}, group])).to_list()
    return rows[0] if rows else {}
