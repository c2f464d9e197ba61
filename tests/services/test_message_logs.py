"""How message logs end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from app.core.config import Settings, use_settings
from app.crud import crud_message_log
from app.db.mongo import connected
from app.models.message_log import MessageLog
from app.services import message_log_service
from tests.factories import make_message_log, make_user


@pytest.fixture(autouse=True)
async def database(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[None]:
    """The database without the application, which prunes by itself."""
    use_settings(make_settings())
    async with connected(database_url):
        yield


async def _pruned() -> int:
    return (await message_log_service.prune()).pruned


class TestPrune:
    @pytest.fixture
    async def logs(self) -> list[MessageLog]:
        """Seven, of which the last two are younger than 90 days."""
        ada = await make_user()
        ages = [400, 95, 94, 93, 90.01, 89.99, 0]
        return [await make_message_log(ada, timestamp=datetime.now(UTC) - timedelta(days=age)) for age in ages]

    async def left(self) -> list[ObjectId]:
        return [log.id async for log in MessageLog.find_all().sort("timestamp")]

    async def test_removes_what_is_past_the_retention(self, logs: list[MessageLog]) -> None:
        assert await message_log_service.prune() == (5,)

        assert await self.left() == [logs[5].id, logs[6].id]
        assert await message_log_service.prune() == (0,)

    async def test_follows_the_setting(self, make_settings: Callable[..., Settings], logs: list[MessageLog]) -> None:
        use_settings(make_settings(message_log_retention_days=94))

        assert await message_log_service.prune() == (3,)

        assert await self.left() == [log.id for log in logs[3:]]

    async def test_removes_nothing_where_logs_are_kept_for_good(
        self, make_settings: Callable[..., Settings], logs: list[MessageLog]
    ) -> None:
        use_settings(make_settings(message_log_retention_days=0))

        assert await message_log_service.prune() == (0,)

        assert len(await self.left()) == len(logs)

    async def test_goes_on_after_it_was_cut_off_between_two_batches(
        self, logs: list[MessageLog], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(message_log_service, "_PRUNED_AT_ONCE", 2)
        real = crud_message_log.remove_some_before

        async def swallow_the_end(*args: Any, **kwargs: Any) -> int:
            """As the driver may: only the task remembers that it was cancelled."""
            count = await real(*args, **kwargs)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            return count

        monkeypatch.setattr(crud_message_log, "remove_some_before", swallow_the_end)
        task = asyncio.create_task(_pruned())
        assert await task == 2
        first = await self.left()
        monkeypatch.setattr(crud_message_log, "remove_some_before", real)

        assert first == [log.id for log in logs[2:]]
        assert await message_log_service.prune() == (3,)
        assert await self.left() == [logs[5].id, logs[6].id]

    async def test_of_two_at_once_counts_each_log_once(
        self, logs: list[MessageLog], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(message_log_service, "_PRUNED_AT_ONCE", 2)

        both = await asyncio.gather(message_log_service.prune(), message_log_service.prune())

        assert sum(each.pruned for each in both) <= 5
        assert await message_log_service.prune() == (5 - sum(each.pruned for each in both),)
        assert await self.left() == [logs[5].id, logs[6].id]
