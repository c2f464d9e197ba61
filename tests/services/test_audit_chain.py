import asyncio
import hashlib
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import DatetimeMS, ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from app.core.config import Settings, use_settings
from app.core.hash_chain import Link
from app.core.logging_config import configure_logging
from app.core.principal import Principal
from app.crud import crud_audit_event
from app.db.mongo import connected, get_database, transactional
from app.models.enums import AuditAction
from app.services import audit_chain_service, audit_service
from app.services.audit_chain_service import ChainBrokenError
from app.services.audit_verify_service import verify
from tests.conftest import SECRET

Database = AsyncDatabase[dict[str, Any]]
Raw = dict[str, Any]
OPERATOR = Principal.system("test")
Sealer = Callable[[], Awaitable[Process]]
PROJECT = Path(__file__).parents[2]
ZERO = "0" * 64


# A process of its own that seals in small batches, after a word from outside, and tells of every batch.
SEALER = """
import asyncio, sys
from app.core.config import Settings, use_settings
from app.db.mongo import connected
from app.services import audit_chain_service
from app.db import mongo

mongo._TRANSACTION_SECONDS = 60.0  # on a busy machine none may be told to come back
audit_chain_service._BATCH = 2
append = audit_chain_service._append
async def tell(*arguments):
    done = await append(*arguments)
    print(done, flush=True)
    return done
audit_chain_service._append = tell
async def main():
    use_settings(Settings(_env_file=None, environment="test", secret_key=sys.argv[2]))
    async with connected(sys.argv[1]):
        print("ready", flush=True)
        sys.stdin.readline()
        await audit_chain_service.seal()
asyncio.run(main())
"""


class Killed(BaseException):
    """The end of a process: nothing of it catches this."""


@pytest.fixture(autouse=True)
async def database(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Database]:
    """The database without the application, which seals by itself."""
    use_settings(make_settings())
    async with connected(database_url) as database:
        yield database


@pytest.fixture
async def sealer(database_url: str) -> AsyncIterator[Sealer]:
    started = []

    async def start() -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SEALER, database_url, SECRET, cwd=PROJECT, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def word_of(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()


async def happen(count: int = 1) -> None:
    for number in range(count):
        await audit_service.record(AuditAction.ITEM_CREATED, by=OPERATOR, target=("item", ObjectId()), number=number)


async def chain(count: int) -> list[Raw]:
    """So many sealed events."""
    await happen(count)
    await audit_chain_service.seal()
    return await stored()


async def stored() -> list[Raw]:
    return await get_database()["audit_events"].find({"seq": {"$exists": True}}).sort("seq").to_list()


async def head() -> Raw:
    found = await get_database()["audit_chain"].find_one({"_id": "chain"})
    assert found is not None
    return found


async def sound() -> int:
    """How many events verify finds; all of them must be right."""
    report = await verify()
    assert report.fault is None
    assert report.valid
    return report.checked


class TestSeal:
    async def test_gives_places_without_gaps(self) -> None:
        rows = await chain(3)

        assert [row["seq"] for row in rows] == [1, 2, 3]
        assert [row["prev_hash"] for row in rows] == [ZERO, rows[0]["hash"], rows[1]["hash"]]
        end = await head()
        assert (end["seq"], end["hash"]) == (3, rows[2]["hash"])
        assert await sound() == 3

    async def test_says_how_many_there_were(self) -> None:
        await happen(3)

        assert await audit_chain_service.seal() == (3,)
        assert await audit_chain_service.seal() == (0,)

    async def test_hashes_what_anybody_can_hash(self) -> None:
        """Pinned: a change here makes every chain that there is invalid."""
        await get_database()["audit_events"].insert_one(
            {
                "_id": ObjectId("6746d0a8f8f8f8f8f8f8f8f8"),
                "created_at": datetime(2026, 3, 1, tzinfo=UTC),
                "time": datetime(2026, 3, 1, 12, 30, 1, 5000, tzinfo=UTC),
                "actor": {"kind": "user", "id": ObjectId("6746d0a8f8f8f8f8f8f8f8f9"), "name": "Ádá \U0001f43b"},
                "action": "user:updated",
                "target": {"kind": "user", "id": None},
                "outcome": "success",
                "ip": "192.0.2.7",
                "user_agent": 'a "b" \\ / \t',
                "request_id": None,
                "details": {"z": [1, ObjectId("6746d0a8f8f8f8f8f8f8f8f9")], "a": datetime(2026, 3, 1, tzinfo=UTC)},
            }
        )

        await audit_chain_service.seal()

        (row,) = await stored()
        text = (
            r'{"action":"user:updated","actor":{"id":"6746d0a8f8f8f8f8f8f8f8f9","kind":"user","name":"Ádá 🐻"},'
            r'"details":{"a":"2026-03-01T00:00:00.000Z","z":[1,"6746d0a8f8f8f8f8f8f8f8f9"]},'
            r'"id":"6746d0a8f8f8f8f8f8f8f8f8","ip":"192.0.2.7","outcome":"success",'
            rf'"prev_hash":"{ZERO}","request_id":null,"seq":1,"target":{{"id":null,"kind":"user"}},'
            r'"time":"2026-03-01T12:30:01.005Z","user_agent":"a \"b\" \\ / \t"}'
        )
        assert row["hash"] == hashlib.sha256(text.encode()).hexdigest()

    async def test_goes_on_where_it_ended(self) -> None:
        first = await chain(2)
        rows = await chain(2)

        assert [row["seq"] for row in rows] == [1, 2, 3, 4]
        assert rows[2]["prev_hash"] == first[1]["hash"]
        assert await sound() == 4

    async def test_takes_an_event_that_is_committed_late_after_younger_ones(self) -> None:
        begun, released = asyncio.Event(), asyncio.Event()

        @transactional
        async def slow() -> None:
            await audit_service.record(AuditAction.ITEM_DELETED, by=OPERATOR, target=("item", None))
            begun.set()
            await released.wait()

        late = asyncio.create_task(slow())
        await begun.wait()
        early = await chain(1)
        released.set()
        await late
        await audit_chain_service.seal()

        assert [row["action"] for row in early] == ["item:created"]
        assert [row["action"] for row in await stored()] == ["item:created", "item:deleted"]
        assert await sound() == 2

    async def test_works_in_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit_chain_service, "_BATCH", 2)

        assert [row["seq"] for row in await chain(5)] == [1, 2, 3, 4, 5]
        assert await sound() == 5

    async def test_seals_nothing_of_a_transaction_that_failed(self) -> None:
        @transactional
        async def fail() -> None:
            await happen()
            raise ValueError

        with pytest.raises(ValueError):  # noqa: PT011 - ours
            await fail()

        assert await audit_chain_service.seal() == (0,)

    @pytest.mark.usefixtures("patience")
    async def test_is_done_once_by_many_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit_chain_service, "_BATCH", 3)
        await happen(40)

        counts = await asyncio.gather(*(audit_chain_service.seal() for _ in range(4)))

        assert sum(count.sealed for count in counts) == 40
        assert [row["seq"] for row in await stored()] == list(range(1, 41))
        assert await sound() == 40

    @pytest.mark.parametrize("moment", ["move_head", "seal"])
    async def test_leaves_a_whole_chain_when_it_is_killed(self, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
        monkeypatch.setattr(audit_chain_service, "_BATCH", 2)
        await happen(6)
        real, calls = getattr(crud_audit_event, moment), []

        async def die_at_the_second(*arguments: Any) -> Any:
            done = await real(*arguments)
            calls.append(done)
            if len(calls) == 2:
                raise Killed
            return done

        monkeypatch.setattr(crud_audit_event, moment, die_at_the_second)
        with pytest.raises(Killed):
            await audit_chain_service.seal()
        monkeypatch.setattr(crud_audit_event, moment, real)

        assert [row["seq"] for row in await stored()] == [1, 2]
        assert (await head())["seq"] == 2
        assert await sound() == 2
        assert await audit_chain_service.seal() == (4,)
        assert await sound() == 6

    async def test_is_done_once_by_processes_of_which_one_is_killed(self, sealer: Sealer) -> None:
        await happen(300)
        processes = [await sealer() for _ in range(3)]
        for process in processes:
            assert await word_of(process) == "ready"
            assert process.stdin is not None
            process.stdin.write(b"go\n")

        for _ in range(5):
            assert await word_of(processes[0]) in {"True", "False"}
        processes[0].kill()
        for process in processes:
            await process.communicate()

        assert [process.returncode for process in processes] == [-9, 0, 0]
        assert await audit_chain_service.seal() == (0,)
        assert [row["seq"] for row in await stored()] == list(range(1, 301))
        assert await sound() == 300

    async def test_does_not_begin_a_chain_anew_that_has_lost_its_head(self, database: Database) -> None:
        await chain(2)
        await database["audit_chain"].delete_many({})
        await happen()

        with pytest.raises(ChainBrokenError):
            await audit_chain_service.seal()

        assert await database["audit_chain"].find_one() is None
        assert len(await stored()) == 2

    async def test_does_not_seal_behind_an_event_with_a_made_up_place(self, database: Database) -> None:
        await chain(1)
        await happen(2)
        await database["audit_events"].find_one_and_update({"seq": None}, {"$set": {"seq": 2}})

        with pytest.raises(ChainBrokenError):
            await audit_chain_service.seal()

        assert (await head())["seq"] == 1

    @pytest.mark.parametrize("change", [{"seq": "many"}, {"seq": "1"}, {"hash": 5}], ids=str)
    async def test_ends_when_the_head_makes_no_sense(self, database: Database, change: Raw) -> None:
        await chain(1)
        await database["audit_chain"].update_one({}, {"$set": change})
        await happen()

        with pytest.raises(ChainBrokenError):
            await asyncio.wait_for(audit_chain_service.seal(), 10)

    async def test_tells_the_log_where_the_chain_ends(self, capfd: pytest.CaptureFixture[str]) -> None:
        configure_logging("INFO")
        rows = await chain(2)

        (line,) = [line for line in capfd.readouterr().err.splitlines() if "audit_sealed" in line]
        told = json.loads(line)
        assert (told["log.level"], told["octopus.count"], told["octopus.seq"], told["octopus.head"]) == (
            "info",
            2,
            2,
            rows[1]["hash"],
        )


class TestPrune:
    @pytest.fixture
    async def aged(self, database: Database, make_settings: Callable[..., Settings]) -> list[Raw]:
        """Ten sealed events, the first six older than the 30 days they are kept."""
        use_settings(make_settings(audit_retention_days=30))
        await happen(10)
        ids = [row["_id"] async for row in database["audit_events"].find().sort("_id")]
        for number, event_id in enumerate(ids):
            at = datetime.now(UTC) - timedelta(days=31 if number < 6 else 29)
            await database["audit_events"].update_one({"_id": event_id}, {"$set": {"time": at}})
        await audit_chain_service.seal()
        return await stored()

    async def test_removes_the_beginning_and_notes_where_the_chain_begins(self, aged: list[Raw]) -> None:
        assert await audit_chain_service.prune() == (6,)

        assert [row["seq"] for row in await stored()] == [7, 8, 9, 10]
        assert (await head())["begins_after"] == {"seq": 6, "hash": aged[5]["hash"]}
        report = await verify()
        assert (report.valid, report.first_seq, report.checked) == (True, 7, 4)

    async def test_is_an_event(self, aged: list[Raw], database: Database) -> None:
        await audit_chain_service.prune()

        (event,) = await database["audit_events"].find({"seq": None}).to_list()
        assert (event["action"], event["actor"]["name"]) == ("audit:pruned", "audit retention")
        assert event["details"] == {"count": 6, "seq": 6, "last": aged[5]["hash"]}

    async def test_keeps_everything_without_a_retention(
        self, aged: list[Raw], make_settings: Callable[..., Settings]
    ) -> None:
        use_settings(make_settings())

        assert await audit_chain_service.prune() == (0,)
        assert await stored() == aged

    async def test_ends_before_the_first_event_that_is_young(self, aged: list[Raw], database: Database) -> None:
        await database["audit_events"].update_one({"seq": 3}, {"$set": {"time": datetime.now(UTC)}})

        assert await audit_chain_service.prune() == (2,)
        assert len(await stored()) == len(aged) - 2

    async def test_leaves_a_beginning_alone_that_has_a_gap(self, aged: list[Raw], database: Database) -> None:
        await database["audit_events"].delete_one({"seq": 3})

        with pytest.raises(ChainBrokenError):
            await audit_chain_service.prune()

        assert len(await stored()) == len(aged) - 1

    @pytest.mark.parametrize("time", [None, "2026", DatetimeMS(2**60)], ids=repr)
    async def test_takes_what_has_no_time_for_as_old_as_its_neighbours(
        self, aged: list[Raw], database: Database, time: object
    ) -> None:
        await database["audit_events"].update_one({"seq": 3}, {"$set": {"time": time}})

        assert await audit_chain_service.prune() == (6,)
        assert [row["seq"] for row in await stored()] == [row["seq"] for row in aged[6:]]

    @pytest.mark.usefixtures("with_lists")
    @pytest.mark.parametrize("change", [{"seq": [6]}, {"seq": 5.5}, {"hash": None}], ids=str)
    async def test_leaves_a_beginning_alone_that_ends_in_what_was_never_sealed(
        self, aged: list[Raw], database: Database, change: Raw
    ) -> None:
        await database["audit_events"].update_one({"seq": 6}, {"$set": change})

        with pytest.raises(ChainBrokenError):
            await audit_chain_service.prune()

        assert await database["audit_events"].count_documents({}) == len(aged)

    async def test_works_in_batches_and_goes_on_after_a_kill(
        self, aged: list[Raw], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit_chain_service, "_PRUNED_AT_ONCE", 2)
        real, calls = crud_audit_event.remove, []

        async def die_at_the_second(first: int, last: int) -> int:
            calls.append(await real(first, last))
            if len(calls) == 2:
                raise Killed
            return calls[-1]

        monkeypatch.setattr(crud_audit_event, "remove", die_at_the_second)
        with pytest.raises(Killed):
            await audit_chain_service.prune()
        monkeypatch.setattr(crud_audit_event, "remove", real)

        assert [row["seq"] for row in await stored()] == [row["seq"] for row in aged[2:]]
        assert (await verify()).valid
        assert await audit_chain_service.prune() == (4,)
        assert (await verify()).valid

    async def test_goes_on_while_events_are_sealed(self, aged: list[Raw], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit_chain_service, "_PRUNED_AT_ONCE", 1)
        await happen(20)

        await asyncio.gather(audit_chain_service.prune(), audit_chain_service.seal())
        await audit_chain_service.seal()

        report = await verify()
        assert (report.valid, report.first_seq) == (True, 7)
        assert report.head is not None
        assert report.head.seq == len(aged) + 20 + 6  # the prunings are events as well

    async def test_shows_a_beginning_that_somebody_else_has_removed(self, aged: list[Raw], database: Database) -> None:
        begins = {"seq": 2, "hash": aged[1]["hash"]}
        await database["audit_events"].delete_many({"seq": {"$lte": 2}})
        await database["audit_chain"].update_one({}, {"$set": {"begins_after": begins}})

        report = await verify()

        assert report.fault is not None
        assert (report.fault.kind, report.fault.seq) == ("removed", 2)

    async def test_keeps_an_anchor_that_is_where_the_chain_begins(self, aged: list[Raw]) -> None:
        await audit_chain_service.prune()

        assert (await verify(Link(6, aged[5]["hash"]))).valid
        assert (await verify(Link(6, "1" * 64))).fault is not None
