"""What the database says of itself."""

import asyncio
import time
from typing import Any

from pymongo.errors import OperationFailure

from app.db.mongo import get_database


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
