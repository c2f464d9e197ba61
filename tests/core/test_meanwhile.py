"""What is done again and again beside something larger."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import pytest

from app.core import meanwhile as module
from app.core.meanwhile import meanwhile, prolong_until_lost


class Answers:
    """Something to do that goes as it is told: True and False are answers, errors are raised; then it hangs."""

    def __init__(self, answers: Sequence[bool | Exception] = ()) -> None:
        self._answers = list(answers)
        self.hangs = asyncio.Event()

    async def __call__(self) -> bool:
        if not self._answers:
            self.hangs.set()
            await asyncio.Event().wait()
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class TestMeanwhile:
    async def test_goes_on_after_a_failure_and_ends_with_what_is_inside(self) -> None:
        work = Answers([True, RuntimeError("away"), True])

        async with meanwhile(work, every_seconds=0.001):
            await asyncio.wait_for(work.hangs.wait(), 5)
            [keeper] = asyncio.all_tasks() - {asyncio.current_task()}

        await asyncio.wait_for(asyncio.wait([keeper]), 5)
        assert keeper.cancelled()


class TestProlongUntilLost:
    async def test_ends_when_somebody_else_has_it(self) -> None:
        await asyncio.wait_for(prolong_until_lost(Answers([True, False]), seconds=0.1, asked_at=time.monotonic()), 5)

    async def test_goes_on_after_any_failure_as_long_as_there_is_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PROLONGATIONS", 60_000)
        prolong = Answers([RuntimeError("away"), True, OSError(), True])
        keeping = asyncio.create_task(prolong_until_lost(prolong, seconds=60, asked_at=time.monotonic()))

        await asyncio.wait_for(prolong.hangs.wait(), 5)

        keeping.cancel()
        await asyncio.wait_for(asyncio.wait([keeping]), 5)
        assert keeping.cancelled()

    @pytest.mark.parametrize("answers", [(), (True,), (True, RuntimeError("away"))])
    async def test_ends_with_the_lease_though_no_answer_comes(self, answers: tuple[bool | Exception, ...]) -> None:
        await asyncio.wait_for(prolong_until_lost(Answers(answers), seconds=0.1, asked_at=time.monotonic()), 5)

    async def test_never_asks_when_it_is_over_by_now(self) -> None:
        prolong = Answers()

        await asyncio.wait_for(prolong_until_lost(prolong, seconds=0.1, asked_at=time.monotonic() - 1), 5)

        assert not prolong.hangs.is_set()

    async def test_ends_though_the_cancellation_becomes_an_error(self) -> None:
        async def prolong() -> bool:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            raise ConnectionError

        await asyncio.wait_for(prolong_until_lost(prolong, seconds=0.1, asked_at=time.monotonic()), 5)
