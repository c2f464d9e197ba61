import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from app.core import live_cache
from app.core.clock import utc_now
from app.core.live_cache import LiveCache, changes_seen
from app.crud import crud_credit
from app.db.change_feed import follow_changes
from app.db.mongo import connected
from tests.core.active import activate

Client = MongoClient[dict[str, Any]]
ADA, BEN = ObjectId(), ObjectId()


@pytest.fixture
async def _connection(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(live_cache, "_caches", [])
    activate(auth_cache_seconds=60)
    live_cache.go_deaf()
    async with connected(database_url):
        yield


@pytest.fixture
def cache(_connection: None) -> LiveCache[str]:
    return LiveCache()


@pytest.fixture
def elsewhere(mongodb: Client, database_url: str) -> Any:
    """The same database in the hands of another client."""
    return mongodb[database_url.rpartition("/")[2].partition("?")[0]]


@asynccontextmanager
async def followed() -> AsyncIterator[None]:
    """Changes are followed, and are being heard of when the block begins."""
    feed = asyncio.create_task(follow_changes(asyncio.Event()))
    try:
        probe: LiveCache[str] = LiveCache()
        await until(lambda: knows(probe, "probe", ObjectId()))
        yield
    finally:
        assert await ends(feed)


async def ends(feed: asyncio.Task[None]) -> bool:
    """Whether one request to end is enough. It never outlives its test."""
    feed.cancel()
    is_over, _ = await asyncio.wait([feed], timeout=2)
    while not feed.done():
        feed.cancel()
        await asyncio.wait([feed], timeout=0.1)
    return bool(is_over)


def knows(cache: LiveCache[str], key: str, tag: ObjectId) -> bool:
    """Put a value; true when it is believed."""
    cache.put(key, "value", tags=[tag], seen=changes_seen())
    return cache.get(key) is not None


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it depends on a clock too
            await asyncio.sleep(0.005)


class TestFollowChanges:
    @pytest.mark.parametrize("collection", ["sessions", "api_keys", "users"])
    @pytest.mark.parametrize("change", ["update", "replace", "delete"])
    async def test_drops_what_another_client_has_changed(
        self, cache: LiveCache[str], elsewhere: Any, collection: str, change: str
    ) -> None:
        row = {"_id": ADA, "email_key": "ada", "key_id": "ada"}
        elsewhere[collection].insert_one(row)
        async with followed():
            assert knows(cache, "ada", ADA)
            assert knows(cache, "ben", BEN)

            if change == "update":
                elsewhere[collection].update_one({"_id": ADA}, {"$set": {"is_active": False}})
            elif change == "replace":
                elsewhere[collection].replace_one({"_id": ADA}, {**row, "role": "guest"})
            else:
                elsewhere[collection].delete_one({"_id": ADA})

            await until(lambda: cache.get("ada") is None, 0.25)
            assert cache.get("ben") is not None

    async def test_keeps_what_it_knows_of_a_key_that_was_used(self, cache: LiveCache[str], elsewhere: Any) -> None:
        elsewhere["api_keys"].insert_one({"_id": ADA, "key_id": "ada"})
        elsewhere["users"].insert_one({"_id": BEN, "email_key": "ben"})
        async with followed():
            for number in range(2):  # the second time from the same address
                await until(lambda: knows(cache, "ada", ADA) and knows(cache, "ben", BEN))

                used = {"last_used_at": utc_now() + timedelta(seconds=number), "last_used_ip": "192.0.2.7"}
                elsewhere["api_keys"].update_one({"_id": ADA}, {"$set": used})
                elsewhere["users"].update_one({"_id": BEN}, {"$set": {"number": number}})

                await until(lambda: cache.get("ben") is None, 0.25)
                assert cache.get("ada") is not None

    async def test_keeps_what_it_knows_of_an_account_that_draws_credits(
        self, cache: LiveCache[str], elsewhere: Any
    ) -> None:
        rows = [{"_id": user_id, "email_key": str(user_id), "credits": 9, "version": 1} for user_id in (ADA, BEN)]
        elsewhere["users"].insert_many(rows)
        async with followed():
            assert knows(cache, "ada", ADA)
            assert knows(cache, "ben", BEN)

            await crud_credit.draw(ADA, 2)
            await crud_credit.draw_from_many({ADA: 3})
            await crud_credit.give(ADA, 1)
            elsewhere["users"].update_one(
                {"_id": BEN}, {"$set": {"role": "guest"}, "$inc": {"credits": 1, "version": 1}}
            )

            await until(lambda: cache.get("ben") is None, 0.25)
            assert cache.get("ada") is not None
            assert elsewhere["users"].find_one({"_id": ADA})["credits"] == 5

    async def test_hears_of_the_last_use_of_a_session(self, cache: LiveCache[str], elsewhere: Any) -> None:
        elsewhere["sessions"].insert_one({"_id": ADA})
        async with followed():
            assert knows(cache, "ada", ADA)

            elsewhere["sessions"].update_one({"_id": ADA}, {"$set": {"last_used_at": utc_now()}})

            await until(lambda: cache.get("ada") is None, 0.25)

    async def test_hears_of_the_next_change_too(self, cache: LiveCache[str], elsewhere: Any) -> None:
        elsewhere["users"].insert_one({"_id": ADA, "email_key": "ada"})
        async with followed():
            for number in range(3):
                await until(lambda: knows(cache, "ada", ADA))
                elsewhere["users"].update_one({"_id": ADA}, {"$set": {"number": number}})
                await until(lambda: cache.get("ada") is None, 0.25)

    async def test_goes_on_believing_while_nothing_happens(self, cache: LiveCache[str]) -> None:
        async with followed():
            assert knows(cache, "ada", ADA)

            believed = []
            for _ in range(15):
                await asyncio.sleep(0.1)
                believed.append(cache.get("ada"))

            assert believed == ["value"] * 15

    async def test_believes_nothing_before_it_begins(self, cache: LiveCache[str]) -> None:
        assert not knows(cache, "ada", ADA)

    async def test_does_not_believe_what_it_learned_before_it_began(
        self, cache: LiveCache[str], elsewhere: Any
    ) -> None:
        elsewhere["users"].insert_one({"_id": ADA, "email_key": "ada"})
        cache.put("ada", "read before", tags=[ADA], seen=changes_seen())
        elsewhere["users"].delete_one({"_id": ADA})

        async with followed():
            assert cache.get("ada") is None

    async def test_does_not_believe_what_was_read_before_it_began(self, cache: LiveCache[str], elsewhere: Any) -> None:
        elsewhere["users"].insert_one({"_id": ADA, "email_key": "ada"})
        seen = changes_seen()
        elsewhere["users"].delete_one({"_id": ADA})

        async with followed():
            cache.put("ada", "read before", tags=[ADA], seen=seen)

            assert cache.get("ada") is None

    async def test_begins_again_when_the_stream_breaks(self, cache: LiveCache[str], elsewhere: Any) -> None:
        elsewhere["users"].insert_one({"_id": ADA, "email_key": "ada"})
        async with followed():
            await until(lambda: knows(cache, "ada", ADA))

            await asyncio.to_thread(kill_change_stream, elsewhere)
            elsewhere["users"].update_one({"_id": ADA}, {"$set": {"is_active": False}})

            await until(lambda: cache.get("ada") is None, 1.5)
            await until(lambda: knows(cache, "ada", ADA))


class TestEnding:
    # Cancelled while it connects, the driver of today leaves the socket to the garbage collector, which complains.
    @pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    @pytest.mark.usefixtures("_connection")
    async def test_takes_one_request_at_whatever_moment(self) -> None:
        for tenths_of_ms in range(0, 60, 2):
            tried = asyncio.Event()
            feed = asyncio.create_task(follow_changes(tried))
            await tried.wait()  # as the application does: the driver leaks a connection that is ended while it opens
            await asyncio.sleep(tenths_of_ms / 10_000)

            assert await ends(feed)
        gc.collect()

    async def test_leaves_nothing_to_believe(self, cache: LiveCache[str]) -> None:
        async with followed():
            assert knows(cache, "ada", ADA)

        assert cache.get("ada") is None
        assert not knows(cache, "ada", ADA)


def kill_change_stream(database: Any) -> None:
    """End the change stream on this database, as its server would that steps down."""
    mine = {"ns": f"{database.name}.$cmd.aggregate", "cursor.tailable": True}
    is_killed, give_up_at = False, time.monotonic() + 5
    while not is_killed:
        assert time.monotonic() < give_up_at, "There is no stream."
        for operation in database.client.admin.aggregate([{"$currentOp": {"idleCursors": True}}, {"$match": mine}]):
            cursors = [operation["cursor"]["cursorId"]]
            answer = database.command({"killCursors": "$cmd.aggregate", "cursors": cursors})
            is_killed = answer["cursorsKilled"] == cursors
