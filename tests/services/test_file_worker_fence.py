"""Processes that a hostile file has taken over: what they can reach, and how they end."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from app.core.config import Settings
from app.core.exceptions import FileRejectedError
from app.core.file_work import Answer, Fault
from app.services import file_worker
from app.services.file_worker import Failure, FileWorkers, Kind, file_workers, open_file_workers
from tests.conftest import Serve

HOSTILE = Kind("tests.hostile_work", memory_bytes=1024**3, cpu_seconds=20, seconds=20)
SHORT = HOSTILE._replace(seconds=2)


@pytest.fixture
async def workers() -> AsyncIterator[FileWorkers]:
    made = FileWorkers(at_once=2)
    yield made
    await made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(b"content")
    return made


async def started(workers: FileWorkers, count: int) -> None:
    async with asyncio.timeout(10):
        while len(workers._processes) < count:  # noqa: ASYNC110 - the pool tells nobody
            await asyncio.sleep(0.01)


class TestWork:
    async def test_gives_back_facts_and_bytes(self, workers: FileWorkers, path: Path) -> None:
        answer = await workers.work(HOSTILE, path, "answer")

        assert isinstance(answer, Answer)
        assert answer.parts == [b"content", b"more"]
        assert answer.facts["pid"] != os.getpid()

    async def test_takes_a_process_of_its_own_each_time(self, workers: FileWorkers, path: Path) -> None:
        answers = [await workers.work(HOSTILE, path, "answer") for _ in range(2)]

        assert len({answer.facts["pid"] for answer in answers if isinstance(answer, Answer)}) == 2

    @pytest.mark.parametrize(
        ("way", "fault"),
        [
            ("hang", Fault.TOO_LONG),
            ("eat_memory", Fault.TOO_LARGE),
            ("crash", Fault.DIED),
            ("leave", Fault.DIED),
            ("leave_without_a_word", Fault.DIED),
            ("answer_nonsense", Fault.DIED),
            ("answer_without_end", Fault.DIED),
            ("raise_something", Fault.DAMAGED),
            ("refuse", Fault.REFUSED),
        ],
    )
    async def test_says_why_there_is_nothing(self, workers: FileWorkers, path: Path, way: str, fault: Fault) -> None:
        outcome = await workers.work(SHORT if way == "hang" else HOSTILE, path, way)

        assert isinstance(outcome, Failure)
        assert outcome.fault is fault
        assert outcome.is_final
        assert isinstance(outcome.as_error(), FileRejectedError)
        assert await works(workers, path)

    async def test_ends_what_uses_up_its_time_on_the_processor(self, workers: FileWorkers, path: Path) -> None:
        outcome = await workers.work(HOSTILE._replace(cpu_seconds=1), path, "spin")

        assert isinstance(outcome, Failure)
        assert outcome.fault is Fault.TOO_LONG

    async def test_takes_no_noise_for_an_answer(self, workers: FileWorkers, path: Path) -> None:
        answer = await workers.work(HOSTILE, path, "print_much")

        assert isinstance(answer, Answer)
        assert answer.parts == [b"content", b"more"]

    async def test_lends_nothing_but_the_file(
        self, workers: FileWorkers, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_KEY", "a secret of the service")

        answer = await workers.work(HOSTILE, path, "reach_out")

        assert isinstance(answer, Answer)
        assert answer.facts == {"done": [], "environment": ["LC_CTYPE"], "open": ["file", "device", "device", "pipe"]}

    def test_lends_no_more_in_the_loop_that_the_server_runs(self, path: Path) -> None:
        async def reach_out() -> Answer | Failure:
            return await FileWorkers(at_once=1).work(HOSTILE, path, "reach_out")

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            answer = runner.run(reach_out())

        assert isinstance(answer, Answer)
        assert answer.facts == {"done": [], "environment": ["LC_CTYPE"], "open": ["file", "device", "device", "socket"]}

    async def test_goes_on_beside_what_hangs(self, workers: FileWorkers, path: Path) -> None:
        hanging = asyncio.create_task(workers.work(HOSTILE, path, "hang"))
        await started(workers, 1)

        assert await works(workers, path)

        hanging.cancel()
        await asyncio.wait([hanging])

    async def test_lets_only_so_many_run_at_once(self, workers: FileWorkers, path: Path) -> None:
        running = [asyncio.create_task(workers.work(SHORT, path, "hang")) for _ in range(2)]
        await started(workers, 2)
        waiting = [asyncio.create_task(workers.work(HOSTILE, path, "answer")) for _ in range(2)]
        await asyncio.sleep(0)

        assert len(workers._processes) == 2
        assert all(isinstance(answer, Answer) for answer in await asyncio.gather(*waiting))
        await asyncio.gather(*running)

    async def test_ends_when_nobody_waits_for_it(self, workers: FileWorkers, path: Path) -> None:
        running = asyncio.create_task(workers.work(HOSTILE, path, "hang"))
        await started(workers, 1)
        (process,) = workers._processes

        running.cancel()
        await asyncio.wait([running])

        assert running.cancelled()
        assert process.returncode == -9
        assert not workers._processes


class TestClose:
    async def test_ends_what_runs_and_lets_nothing_begin(self, path: Path) -> None:
        workers = FileWorkers(at_once=1)
        running = asyncio.create_task(workers.work(HOSTILE, path, "hang"))
        await started(workers, 1)
        waiting = asyncio.create_task(workers.work(HOSTILE, path, "answer"))
        begun = time.monotonic()

        await workers.close()

        for outcome in (*await asyncio.gather(running, waiting), await workers.work(HOSTILE, path, "answer")):
            assert isinstance(outcome, Failure)
            assert (outcome.fault, outcome.is_final) == (Fault.CLOSED, False)
        assert time.monotonic() - begun < 5


class TestOpenFileWorkers:
    async def test_gives_the_process_its_share_of_the_processors(
        self, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: 8)

        async with open_file_workers(make_settings(workers=2)):
            assert file_workers()._turns._value == 4
        async with open_file_workers(make_settings(workers=16)):
            assert file_workers()._turns._value == 1

    async def test_is_done_by_the_application(self, serve: Serve, path: Path) -> None:
        async with serve():
            workers = file_workers()
            assert await works(workers, path)

        refused = await workers.work(HOSTILE, path, "answer")
        assert isinstance(refused, Failure)
        assert refused.fault is Fault.CLOSED

    def test_comes_before_asking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(file_worker, "_active", None)

        with pytest.raises(RuntimeError):
            file_workers()


async def works(workers: FileWorkers, path: Path) -> bool:
    return isinstance(await workers.work(HOSTILE, path, "answer"), Answer)
