"""Hears of changes that other processes make, and drops what this one remembers of the changed documents.

The change stream is read as commands, batch by batch, because only who sees the batches knows when everything that
was under way has been heard.
"""

import asyncio
from typing import Any, Final

from pymongo.errors import PyMongoError

from app.core import live_cache
from app.core.logging_config import get_logger
from app.core.tasks import end_if_cancelled
from app.db.mongo import get_database

_PIPELINE: Final[list[dict[str, Any]]] = [
    {"$changeStream": {}},
    {
        "$match": {
            "ns.coll": {"$in": ["sessions", "api_keys", "users"]},
            "operationType": {"$in": ["update", "replace", "delete"]},
            # Every busy key is given a last use every few seconds, in a write of its own.
            "$nor": [{"ns.coll": "api_keys", "updateDescription.updatedFields.last_used_at": {"$exists": True}}],
        }
    },
    {
        # Replies and message logs draw on credits, which makes the account no other version. It stands by itself since
        # MongoDB 6.0 makes of two in one `$nor` what it then refuses.
        "$match": {
            "$nor": [
                {
                    "ns.coll": "users",
                    "updateDescription.updatedFields.credits": {"$exists": True},
                    "updateDescription.updatedFields.version": {"$exists": False},
                }
            ]
        }
    },
    {"$project": {"documentKey": 1}},
]
WORD_EVERY_MS = 100
_SILENCE_SECONDS: Final = 0.25  # after a longer silence nothing is believed: what was revoked is refused by then
_RETRY_SECONDS: Final = 1.0

_log = get_logger(__name__)


async def follow_changes(tried: asyncio.Event) -> None:
    """Follow the changes until cancelled, starting again when the stream breaks.

    `tried` is set once the first stream is open, or could not be opened.
    """
    while True:
        try:
            await _follow(tried)
        except PyMongoError as error:
            _log.warning("change_feed_lost", error=type(error).__name__)
        finally:
            tried.set()
            live_cache.go_deaf()
        end_if_cancelled()
        await asyncio.sleep(_RETRY_SECONDS)


async def _follow(tried: asyncio.Event) -> None:
    database = get_database()
    async with database.client.start_session() as session:
        answer = await database.command({"aggregate": 1, "pipeline": _PIPELINE, "cursor": {}}, session=session)
        live_cache.begin_to_hear()
        tried.set()
        while (cursor := answer["cursor"])["id"]:
            for change in cursor.get("nextBatch", cursor.get("firstBatch")):
                live_cache.forget(change["documentKey"]["_id"])
            live_cache.hear(_SILENCE_SECONDS)
            end_if_cancelled()
            collection = cursor["ns"].partition(".")[2]
            answer = await database.command(
                {"getMore": cursor["id"], "collection": collection, "maxTimeMS": WORD_EVERY_MS}, session=session
            )
