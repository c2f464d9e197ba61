import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from app.core import background
from app.core.context import RequestContext, current_context, set_context


@pytest.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    yield
    await background.drain(0)


class TestToTheEnd:
    async def test_gives_the_result(self) -> None:
        async def work() -> int:
            return 7

        assert await background.to_the_end(work(), name="work") == 7

    async def test_raises_what_the_work_raises(self) -> None:
        async def work() -> int:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await background.to_the_end(work(), name="work")

    async def test_goes_on_when_nobody_waits_any_more_and_is_waited_for_at_the_end(self) -> None:
        begun, gate, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            await gate.wait()
            done.set()

        waiting = asyncio.create_task(background.to_the_end(work(), name="work"))
        await begun.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not done.is_set()

        gate.set()
        await background.drain()

        assert done.is_set()

    async def test_tells_of_a_failure_that_nobody_waits_for_any_more(self) -> None:
        begun, gate = asyncio.Event(), asyncio.Event()

        async def fail() -> None:
            begun.set()
            await gate.wait()
            raise ValueError("kettle")

        waiting = asyncio.create_task(background.to_the_end(fail(), name="tea"))
        await begun.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        with capture_logs() as logs:
            gate.set()
            await background.drain()

        (line,) = logs
        assert (line["event"], line["work"], line["log_level"]) == ("background_work_failed", "tea", "error")


class TestStart:
    async def test_goes_on_beside_the_caller(self) -> None:
        gate, done = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            await gate.wait()
            done.set()

        background.start(work(), name="work")
        assert not done.is_set()

        gate.set()
        await asyncio.wait_for(done.wait(), 1)

    async def test_runs_without_the_request_that_started_it(self) -> None:
        seen: list[str | None] = []
        set_context(RequestContext(request_id="req-7"))

        async def work() -> None:
            seen.append(current_context().request_id)

        background.start(work(), name="work")
        await background.drain()

        assert seen == [None]

    async def test_tells_of_a_failure_and_goes_on(self) -> None:
        async def fail() -> None:
            raise ValueError("kettle")

        with capture_logs() as logs:
            background.start(fail(), name="tea")
            await background.drain()

        (line,) = logs
        assert (line["event"], line["work"], line["log_level"]) == ("background_work_failed", "tea", "error")
        assert isinstance(line["exc_info"], ValueError)


class TestDrain:
    async def test_waits_for_everything_started(self) -> None:
        gate, done = asyncio.Event(), []

        async def work(number: int) -> None:
            await gate.wait()
            done.append(number)

        for number in range(3):
            background.start(work(number), name="work")
        asyncio.get_running_loop().call_later(0.05, gate.set)
        await background.drain()

        assert sorted(done) == [0, 1, 2]

    async def test_waits_for_what_the_others_start(self) -> None:
        ended = []

        async def work(rest: int) -> None:
            await asyncio.sleep(0.01)
            if rest:
                background.start(work(rest - 1), name="work")
            ended.append(rest)

        background.start(work(2), name="work")
        await background.drain()

        assert ended == [2, 1, 0]

    async def test_returns_at_once_when_there_is_nothing(self) -> None:
        await asyncio.wait_for(background.drain(), 0.5)

    async def test_ends_what_is_late(self) -> None:
        ended = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("late")

        background.start(work(), name="work")
        started = time.monotonic()
        await background.drain(0.05)

        assert time.monotonic() - started < 2
        assert ended == ["late"]
