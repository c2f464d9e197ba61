"""The right of one process to work on what all share, until it gives it back or stops to prolong it."""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError, PyMongoError

from app.core.logging_config import get_logger
from app.core.meanwhile import prolong_until_lost

LEASE: Final = timedelta(seconds=30)
_UNTIL: Final = {"$add": ["$$NOW", int(LEASE.total_seconds() * 1000)]}
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)

R = TypeVar("R")
_log = get_logger(__name__)


class LeaseLostError(RuntimeError):
    """Somebody else is at it by now."""


class Lease:
    """One holder of a document of `installation`. Times are the database's, so that hosts need not agree about them."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]], fact: str) -> None:
        self._collection = database["installation"]
        self._fact, self._holder = fact, ObjectId()
        self._asked_at = 0.0
        self._is_lost = False

    async def take(self) -> bool:
        """False when somebody else has it."""
        is_free = {"$lt": [{"$ifNull": ["$until", _LONG_AGO]}, "$$NOW"]}
        wanted = {"holder": self._holder, "until": _UNTIL}
        taken = {name: {"$cond": [is_free, value, f"${name}"]} for name, value in wanted.items()}
        self._asked_at = time.monotonic()
        try:
            document: Any = await self._collection.find_one_and_update(
                {"_id": self._fact}, [{"$set": taken}], upsert=True, return_document=ReturnDocument.AFTER
            )
        except DuplicateKeyError:  # both have found none
            return False
        return bool(document["holder"] == self._holder)

    async def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Do the work while the lease is prolonged, and give it back; `LeaseLostError` when it was lost meanwhile."""
        task = asyncio.ensure_future(work)
        keeper = asyncio.create_task(self._keep(task), name=f"lease {self._fact}")
        try:
            return await task
        except asyncio.CancelledError:
            if self._is_lost:
                raise LeaseLostError from None
            raise
        finally:
            keeper.cancel()
            with suppress(PyMongoError):  # then it runs out
                await self._collection.update_one(self._held(), {"$unset": {"holder": "", "until": ""}})

    async def note(self, changes: dict[str, Any]) -> None:
        """Write into the document, as long as the lease is held: who has lost it notes nothing any more."""
        if (await self._collection.update_one(self._held(), {"$set": changes})).matched_count == 0:
            raise LeaseLostError

    async def _keep(self, work: "asyncio.Task[Any]") -> None:
        """Prolong it; end the work when that was not possible in time."""
        await prolong_until_lost(self._prolong, seconds=LEASE.total_seconds(), asked_at=self._asked_at)
        _log.warning("lease_lost", of=self._fact)
        self._is_lost = True
        work.cancel()

    async def _prolong(self) -> bool:
        return (await self._collection.update_one(self._held(), [{"$set": {"until": _UNTIL}}])).matched_count == 1

    def _held(self) -> dict[str, Any]:
        return {"_id": self._fact, "holder": self._holder}
