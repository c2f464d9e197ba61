"""Posting is the busiest write: what it asks of the database."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from httpx import AsyncClient

from app.core import live_cache
from app.db import change_feed
from tests.api.test_usage import say
from tests.conftest import Serve
from tests.factories import make_conversation, make_signed_in
from tests.test_architecture import Profile, profile

__all__ = ["profile"]  # the fixture


@pytest.fixture
async def warm_client(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    """The application once it believes what it remembers, however slow the machine is."""
    monkeypatch.setattr(change_feed, "_SILENCE_SECONDS", 60)
    async with serve(auth_cache_seconds=60) as client:
        async with asyncio.timeout(5):
            while live_cache._State.heard_until < time.monotonic():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        yield client


class TestPost:
    async def test_is_three_writes_and_no_read(self, warm_client: AsyncClient, profile: Profile) -> None:
        ada = await make_signed_in(limits={"daily_messages": 2})
        conversation = await make_conversation(ada)
        assert (await say(warm_client, conversation, ada.headers)).status_code == 201

        profile.database.command("profile", 2)
        response = await say(warm_client, conversation, ada.headers)
        profile.database.command("profile", 0)

        asked = sorted((row["ns"].partition(".")[2], row["op"]) for row in profile.database["system.profile"].find())
        assert response.status_code == 201
        assert [row for row in asked if row[0] not in {"system.profile", "$cmd"} and row[1] != "getmore"] == [
            ("conversations", "command"),
            ("messages", "insert"),
            ("usage_counters", "update"),
        ]
