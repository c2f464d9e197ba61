"""Hears of changes that other processes make, and drops what this one remembers of the changed documents."""

import asyncio
from typing import Any, Final

from pymongo.errors import PyMongoError

from app.core import live_cache
from app.core.logging_config import get_logger
from app.db.mongo import get_database

_WATCHED: Final = ("sessions", "api_keys", "users")
_WORD_EVERY_MS: Final = 100
_SILENCE_SECONDS: Final = 1.0  # a silence of this length means that the feed is dead
_RETRY_SECONDS: Final = 1.0

_log = get_logger(__name__)


async def follow_changes() -> None:
    """Follow the change stream until cancelled, starting it again when it breaks."""
    pipeline: list[dict[str, Any]] = [
        {
            "$match": {
                "ns.coll": {"$in": list(_WATCHED)},
                "operationType": {"$in": ["update", "replace", "delete"]},
            }
        },
        {"$project": {"documentKey": 1}},
    ]
    while True:
        try:
            await _follow(pipeline)
        except PyMongoError as error:
            _log.warning("change_feed_lost", error=type(error).__name__)
        finally:
            live_cache.go_deaf()
        await asyncio.sleep(_RETRY_SECONDS)


async def _follow(pipeline: list[dict[str, Any]]) -> None:
    async with await get_database().watch(pipeline, max_await_time_ms=_WORD_EVERY_MS) as stream:
        while stream.alive:
            change = await stream.try_next()
            if change is not None:
                live_cache.forget(change["documentKey"]["_id"])
            else:
                live_cache.hear(_SILENCE_SECONDS)
