"""How tasks end."""

import asyncio
from contextlib import suppress

import pytest

from app.core import tasks
from app.core.tasks import end_if_cancelled, is_cancelled, try_to_the_last


class TestIsCancelled:
    async def test_also_where_the_cancellation_was_swallowed(self) -> None:
        begun = asyncio.Event()

        async def swallow() -> tuple[bool, bool]:
            before = is_cancelled()
            begun.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return before, is_cancelled()

        task = asyncio.create_task(swallow())
        await begun.wait()
        task.cancel()

        assert await task == (False, True)


class TestEndIfCancelled:
    async def test_ends_what_has_swallowed_its_cancellation(self) -> None:
        begun = asyncio.Event()

        async def swallow() -> None:
            end_if_cancelled()
            begun.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            end_if_cancelled()
            await asyncio.Event().wait()

        task = asyncio.create_task(swallow())
        await begun.wait()
        task.cancel()
        await asyncio.wait_for(asyncio.wait([task]), 5)

        assert task.cancelled()


class TestTryToTheLast:
    async def test_tries_until_it_went_well(self) -> None:
        answers = [False, False, True, False]

        async def work() -> bool:
            return answers.pop(0)

        assert await try_to_the_last(work) is True
        assert answers == [False]

    async def test_gives_up_when_the_time_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "LAST_SECONDS", 0.05)

        async def hang() -> bool:
            await asyncio.Event().wait()
            return True

        assert await asyncio.wait_for(try_to_the_last(hang), 5) is False

    async def test_gives_up_though_the_cancellation_was_swallowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "LAST_SECONDS", 0.05)
        tries = []

        async def swallow() -> bool:
            tries.append(1)
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return False

        assert await asyncio.wait_for(try_to_the_last(swallow), 5) is False
        assert len(tries) == 1
