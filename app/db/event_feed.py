"""Hears of what is written into conversations: one change stream for all that this process has to tell of it.

It is read as commands, as the change feed is. When the connection or the cursor breaks it goes on where it was.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Final, NamedTuple

from pymongo.errors import OperationFailure, PyMongoError

from app.core.logging_config import get_logger
from app.core.tasks import end_if_cancelled
from app.db import change_feed
from app.db.mongo import NAIVE_UTC, Raw, get_database

_INSERTS: Final[list[Raw]] = [
    {"$match": {"ns.coll": {"$in": ["messages", "conversation_events"]}, "operationType": "insert"}},
    {"$project": {"ns.coll": 1, "fullDocument": 1}},
]
# What the server says when it can't go on from where the stream was: that is no longer in its log, or was never.
_LOST: Final = frozenset({260, 280, 286})
_RETRY_SECONDS: Final = 0.5

_log = get_logger(__name__)


class Inserted(NamedTuple):
    collection: str
    document: Raw


class FeedLostError(Exception):
    """Something may have been written that was not heard of."""


async def inserts(opened: asyncio.Event) -> AsyncGenerator[list[Inserted], None]:
    """What is inserted from the moment on at which `opened` is set, in order, for ever.

    Every now and then an empty batch. `FeedLostError` when it can't go on without a gap.
    """
    token: Any = None
    while True:
        try:
            async with aclosing(_batches(token)) as batches:
                async for batch, behind in batches:
                    opened.set()
                    yield batch
                    token = behind
        except PyMongoError as error:
            code = error.code if isinstance(error, OperationFailure) else None
            _log.warning("event_feed_interrupted", error=type(error).__name__, code=code)
            if code in _LOST:
                raise FeedLostError from error
        end_if_cancelled()
        await asyncio.sleep(_RETRY_SECONDS)


async def _batches(token: Any) -> AsyncGenerator[tuple[list[Inserted], Any], None]:
    """Each batch with the place behind it, beginning behind that one. The first comes once the stream is open."""
    database = get_database()
    stream: Raw = {"$changeStream": {} if token is None else {"resumeAfter": token}}
    async with database.client.start_session() as session:
        answer = await database.command(
            {"aggregate": 1, "pipeline": [stream, *_INSERTS], "cursor": {}}, codec_options=NAIVE_UTC, session=session
        )
        try:
            while True:
                cursor = answer["cursor"]
                yield _batch(cursor), cursor["postBatchResumeToken"]
                end_if_cancelled()
                if not cursor["id"]:
                    raise FeedLostError  # the database itself was dropped
                command = {"getMore": cursor["id"], "collection": cursor["ns"].partition(".")[2]}
                answer = await database.command(
                    {**command, "maxTimeMS": change_feed.WORD_EVERY_MS}, codec_options=NAIVE_UTC, session=session
                )
        finally:
            with suppress(PyMongoError):  # it goes by itself, only later
                await database.command(
                    {"killCursors": cursor["ns"].partition(".")[2], "cursors": [cursor["id"]]}, session=session
                )


def _batch(cursor: Raw) -> list[Inserted]:
    changes = cursor["nextBatch"] if "nextBatch" in cursor else cursor["firstBatch"]
    return [Inserted(change["ns"]["coll"], change["fullDocument"]) for change in changes]
