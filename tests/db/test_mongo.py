import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, DuplicateKeyError

from app.core import background
from app.core.exceptions import DatabaseUnavailableError
from app.db import mongo
from app.db.mongo import after_commit, connected, find_batch, get_database, is_answering, transactional
from app.db.presence import database_of

Raw = dict[str, Any]
Client = MongoClient[Raw]


@pytest.fixture
async def _connection(database_url: str) -> AsyncIterator[None]:
    async with connected(database_url) as database:
        await database["jars"].insert_one({"_id": "tea", "spoons": 10})  # a transaction makes no collection in a hurry
        yield
        await background.drain(10)


@pytest.fixture
async def _connection_with_majority(database_url: str) -> AsyncIterator[None]:
    async with connected(f"{database_url}&w=majority&journal=true") as database:
        await database["jars"].insert_one({"_id": "tea", "spoons": 10})
        yield


def seen_by_others(mongodb: Client) -> dict[str, int]:
    """What another client finds: name and spoons of every jar."""
    return {jar["_id"]: jar["spoons"] for jar in mongodb[get_database().name]["jars"].find()}


async def fill(name: str, spoons: int = 1) -> None:
    await get_database()["jars"].insert_one({"_id": name, "spoons": spoons})


async def take(name: str) -> None:
    await get_database()["jars"].update_one({"_id": name}, {"$inc": {"spoons": -1}})


@pytest.mark.usefixtures("_connection")
class TestTransactional:
    async def test_commits_every_write_and_gives_the_result(self, mongodb: Client) -> None:
        @transactional
        async def work(name: str, *, spoons: int) -> str:
            await fill(name, spoons)
            await take("tea")
            return name.upper()

        assert await work("salt", spoons=3) == "SALT"

        assert seen_by_others(mongodb) == {"tea": 9, "salt": 3}

    async def test_shows_nothing_to_others_before(self, mongodb: Client) -> None:
        before = []

        @transactional
        async def work() -> None:
            await fill("salt")
            before.append(await asyncio.to_thread(seen_by_others, mongodb))

        await work()

        assert before == [{"tea": 10}]
        assert seen_by_others(mongodb) == {"tea": 10, "salt": 1}

    async def test_undoes_the_first_write_when_the_second_fails(self, mongodb: Client) -> None:
        @transactional
        async def work() -> None:
            await fill("salt")
            await fill("tea")

        with pytest.raises(DuplicateKeyError):
            await work()

        assert seen_by_others(mongodb) == {"tea": 10}

    @pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
    async def test_undoes_every_write_when_the_work_gives_up(self, mongodb: Client, error: type[BaseException]) -> None:
        @transactional
        async def work() -> None:
            await fill("salt")
            await take("tea")
            raise error

        with pytest.raises(error):
            await work()

        assert seen_by_others(mongodb) == {"tea": 10}

    async def test_runs_the_whole_work_again_after_a_conflict(self, mongodb: Client) -> None:
        tries = []

        @transactional
        async def work() -> int:
            tries.append(ObjectId())
            await fill(f"jar {len(tries)}")
            if len(tries) < 3:
                meddle = {"_id": "tea"}, {"$inc": {"spoons": 100}}
                await asyncio.to_thread(mongodb[get_database().name]["jars"].update_one, *meddle)
            await take("tea")
            return len(tries)

        assert await work() == 3

        assert seen_by_others(mongodb) == {"tea": 209, "jar 3": 1}

    async def test_counts_exactly_when_many_change_the_same(self, mongodb: Client) -> None:
        @transactional
        async def work(number: int) -> None:
            await take("tea")
            await fill(f"spoon {number}")

        await asyncio.gather(*(work(number) for number in range(8)))

        assert seen_by_others(mongodb) == {"tea": 2} | {f"spoon {number}": 1 for number in range(8)}

    async def test_gives_up_within_five_seconds_under_a_lasting_conflict(self, mongodb: Client) -> None:
        @transactional
        async def work() -> None:
            await fill("salt")
            await take("tea")

        with mongodb.start_session() as holder, holder.start_transaction():
            jars = mongodb[get_database().name]["jars"]
            jars.update_one({"_id": "tea"}, {"$set": {"lid": "stuck"}}, session=holder)
            started = time.monotonic()
            with pytest.raises(DatabaseUnavailableError) as refusal:
                await work()
            seconds = time.monotonic() - started

        assert refusal.value.code == "database_unavailable"
        assert 1 < seconds < 5.5
        assert seen_by_others(mongodb) == {"tea": 10}

    async def test_locks_nothing_once_it_has_given_up(self, mongodb: Client) -> None:
        @transactional
        async def work() -> None:
            await fill("salt")
            await asyncio.sleep(60)

        with pytest.raises(DatabaseUnavailableError):
            await work()
        await background.drain(10)

        jars = mongodb[get_database().name].get_collection("jars")
        with pymongo.timeout(2):
            jars.insert_one({"_id": "salt", "spoons": 5})

    async def test_tries_to_give_up_for_a_bounded_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tries = []

        def fail() -> None:
            tries.append(1)
            raise ConnectionFailure

        monkeypatch.setattr(mongo, "get_database", fail)
        monkeypatch.setattr(mongo, "_RELEASE_SECONDS", 0.2)
        monkeypatch.setattr(mongo, "_RELEASE_EVERY_SECONDS", 0.01)

        await asyncio.wait_for(mongo._release({"id": b"tea"}), 5)

        assert len(tries) > 1

    async def test_lends_nobody_the_session_that_it_has_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mongo, "_TRANSACTION_SECONDS", 0.1)
        given_up: list[bytes] = []

        async def note(session_id: Mapping[str, Any]) -> None:
            given_up.append(bytes(session_id["id"]))

        monkeypatch.setattr(mongo, "_release", note)

        @transactional
        async def work() -> None:
            await take("tea")
            await asyncio.Event().wait()

        with pytest.raises(DatabaseUnavailableError):
            await work()
        await background.drain(5)
        later = [get_database().client.start_session() for _ in range(5)]

        assert len(given_up) == 1
        assert given_up[0] not in {bytes(session.session_id["id"]) for session in later}
        for session in later:
            await session.end_session()

    async def test_is_refused_inside_of_another(self, mongodb: Client) -> None:
        @transactional
        async def inner() -> None:
            await fill("salt")

        @transactional
        async def outer() -> None:
            await fill("pepper")
            await inner()

        with pytest.raises(RuntimeError):
            await outer()

        assert seen_by_others(mongodb) == {"tea": 10}

    async def test_can_follow_one_that_failed(self, mongodb: Client) -> None:
        @transactional
        async def work(name: str) -> None:
            await fill(name)

        with pytest.raises(DuplicateKeyError):
            await work("tea")
        await work("salt")

        assert seen_by_others(mongodb) == {"tea": 10, "salt": 1}

    async def test_leaves_writes_of_other_tasks_alone(self, mongodb: Client) -> None:
        is_open, may_fail = asyncio.Event(), asyncio.Event()

        @transactional
        async def work() -> None:
            await fill("salt")
            is_open.set()
            await may_fail.wait()
            raise ValueError("spilled")

        failing = asyncio.create_task(work())
        await is_open.wait()
        await fill("pepper")
        may_fail.set()

        with pytest.raises(ValueError, match="spilled"):
            await failing
        assert seen_by_others(mongodb) == {"tea": 10, "pepper": 1}


@pytest.mark.usefixtures("_connection")
class TestAfterCommit:
    async def test_is_called_once_the_change_can_be_seen(self, mongodb: Client) -> None:
        seen: list[dict[str, int]] = []

        @transactional
        async def work() -> None:
            after_commit(lambda: seen.append(seen_by_others(mongodb)))
            await take("tea")
            assert seen == []

        await work()

        assert seen == [{"tea": 9}]

    async def test_is_never_called_when_the_work_fails(self) -> None:
        called: list[str] = []

        @transactional
        async def work() -> None:
            after_commit(lambda: called.append("yes"))
            await fill("tea")

        with pytest.raises(DuplicateKeyError):
            await work()

        assert called == []

    async def test_is_called_once_however_often_the_work_runs(self, mongodb: Client) -> None:
        called: list[int] = []
        tries: list[int] = []

        @transactional
        async def work() -> None:
            tries.append(len(tries))
            number = len(tries)
            after_commit(lambda: called.append(number))
            await get_database()["jars"].find_one({"_id": "tea"})
            if number == 1:
                change = {"_id": "tea"}, {"$inc": {"spoons": 1}}
                await asyncio.to_thread(mongodb[get_database().name]["jars"].update_one, *change)
            await take("tea")

        await work()

        assert (len(tries), called) == (2, [2])

    async def test_is_called_at_once_outside_of_a_transaction(self) -> None:
        called = []

        after_commit(lambda: called.append("yes"))

        assert called == ["yes"]


@pytest.mark.usefixtures("_connection_with_majority")
class TestUrlThatAsksForTheMajority:
    async def test_writes_inside_of_a_transaction(self, mongodb: Client) -> None:
        @transactional
        async def work() -> None:
            await fill("salt")
            await take("tea")
            await get_database()["jars"].find_one_and_update({"_id": "tea"}, {"$inc": {"spoons": -1}})

        await work()

        assert seen_by_others(mongodb) == {"tea": 8, "salt": 1}

    async def test_undoes_them_there_too(self, mongodb: Client) -> None:
        @transactional
        async def work() -> None:
            await fill("salt")
            await fill("tea")

        with pytest.raises(DuplicateKeyError):
            await work()

        assert seen_by_others(mongodb) == {"tea": 10}


@pytest.mark.usefixtures("_connection")
class TestFindBatch:
    async def test_gives_what_matches_in_order(self) -> None:
        for number in range(6):
            await fill(f"jar {number}", number)

        rows = await find_batch(
            "jars", {"spoons": {"$lt": 5}}, fields={"_id": 0, "spoons": 1}, sort={"spoons": -1}, limit=3
        )

        assert rows == [{"spoons": 4}, {"spoons": 3}, {"spoons": 2}]

    async def test_gives_nothing_from_where_nothing_is(self) -> None:
        assert await find_batch("jars", {"_id": "sugar"}, limit=5) == []
        assert await find_batch("cellar", {}, limit=5) == []

    @pytest.mark.parametrize("order", [1, -1])
    async def test_gives_more_than_one_answer_can_hold(self, order: int) -> None:
        for number in range(5):
            await get_database()["jars"].insert_one({"_id": number, "filling": "x" * 6_000_000})

        rows = await find_batch("jars", {"filling": {"$exists": True}}, sort={"_id": order}, limit=100)

        assert [(row["_id"], len(row["filling"])) for row in rows] == [(number, 6_000_000) for number in range(5)][
            ::order
        ]

    async def test_keeps_to_the_limit_and_the_fields_then_too(self) -> None:
        for number in range(5):
            await get_database()["jars"].insert_one({"_id": number, "filling": "x" * 6_000_000, "lid": "red"})

        rows = await find_batch("jars", {"lid": "red"}, fields={"lid": 0}, sort={"_id": 1}, limit=4)

        assert [sorted(row) for row in rows] == [["_id", "filling"]] * 4

    async def test_leaves_no_cursor_open(self, mongodb: Client) -> None:
        for number in range(4):
            await get_database()["jars"].insert_one({"_id": number, "filling": "x" * 6_000_000})

        await find_batch("jars", {}, limit=100)

        namespace = f"{get_database().name}.jars"
        idle = mongodb.admin.aggregate([{"$currentOp": {"idleCursors": True}}, {"$match": {"ns": namespace}}])
        assert [operation for operation in idle if operation["type"] == "idleCursor"] == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("mongodb://127.0.0.1", "octopus"),
        ("mongodb://127.0.0.1/?replicaSet=rs0", "octopus"),
        ("mongodb://127.0.0.1?replicaSet=rs0", "octopus"),
        ("mongodb://127.0.0.1/tea?authSource=admin&appName=a/b", "tea"),
        ("mongodb://ada:s#cret@127.0.0.1/tea", "tea"),
        ("mongodb://ada:[s]cret@127.0.0.1/tea", "tea"),
        ("mongodb://ada:s%2Fcret%3F@127.0.0.1/tea", "tea"),
        ("mongodb://127.0.0.1/green%2Dtea", "green-tea"),
        ("mongodb+srv://ada:s#cret@database.invalid/tea", "tea"),
        ("mongodb+srv://database.invalid", "octopus"),
        ("mongodb+srv://ada:tea@cluster.example.net/tea?srvServiceName=mine&srvMaxHosts=2", "tea"),
    ],
)
def test_database_of_is_the_one_that_the_driver_uses(url: str, name: str) -> None:
    assert database_of(url) == name


class TestConnection:
    async def test_uses_the_database_that_the_url_names(self, database_url: str) -> None:
        async with connected(database_url) as database:
            assert database is get_database()
            assert f"/{database.name}?" in database_url

    async def test_is_there_only_while_it_lasts(self, database_url: str) -> None:
        async with connected(database_url):
            assert await is_answering()

        assert not await is_answering()
        with pytest.raises(RuntimeError):
            get_database()

    async def test_gives_times_with_their_zone(self, database_url: str) -> None:
        async with connected(database_url) as database:
            await database["jars"].insert_one({"_id": 1, "at": ObjectId().generation_time})

            stored = await database["jars"].find_one({"_id": 1})

        assert stored is not None
        assert stored["at"].utcoffset() is not None
