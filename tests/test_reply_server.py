"""Replies of the service as it is run: told to stop, killed, and with two workers."""

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, RemoteProtocolError
from pymongo import MongoClient
from pymongo.database import Database

from tests.assistant_server import Assistant, Exchange, Says, open_assistant
from tests.test_server import Server, Start, bearer, sign_up, start, until

__all__ = ["start"]  # the fixture
Raw = dict[str, Any]


@pytest.fixture
async def assistant() -> AsyncIterator[Assistant]:
    async with open_assistant() as opened:
        yield opened


@pytest.fixture
def database(mongodb: MongoClient[Raw], database_url: str) -> Database[Raw]:
    return mongodb[database_url.rpartition("/")[2].partition("?")[0]]


class Chat:
    """A conversation of Ada at a server, in which she has said something, and ten credits."""

    def __init__(self, server: Server, database: Database[Raw]) -> None:
        self.database = database
        self.token = sign_up(server)
        database["users"].update_one({}, {"$set": {"credits": 10}})
        self.id = server.post("/api/v1/conversations", {"title": "Tea"}, self.token).json()["id"]
        path = f"/api/v1/conversations/{self.id}"
        assert server.post(f"{path}/messages", {"content": "Hello"}, self.token).status_code == 201
        self.url = f"{server.client.base_url}{path}/reply".replace("//api", "/api")

    @property
    def credits(self) -> int:
        return int((self.database["users"].find_one() or {})["credits"])

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many messages there are, and what the conversation says about it."""
        stored = self.database["conversations"].find_one({"_id": ObjectId(self.id)}) or {}
        return self.database["messages"].count_documents({}), stored["message_count"], stored["last_seq"]

    async def ask(self) -> str:
        """All that comes, be it cut off or not."""
        text = ""
        async with (
            AsyncClient(timeout=30, headers=bearer(self.token)) as client,
            client.stream("POST", self.url) as response,
        ):
            async for part in response.aiter_text():
                text += part
        return text


def settings_of(assistant: Assistant, database_url: str) -> dict[str, str]:
    return {
        "ASSISTANT_BASE_URL": assistant.url,
        "ASSISTANT_MODEL": "parrot",
        "DATABASE_URL": database_url,
    }


async def ready(start: Start, **settings: str) -> Server:
    server = start(**settings)
    await asyncio.to_thread(server.ready)
    return server


async def begun(server: Server, assistant: Assistant, database: Database[Raw]) -> tuple[Chat, Says, asyncio.Task[str]]:
    """A reply of which one word has been said."""
    chat, behaviour = Chat(server, database), Says("One")
    assistant.script.append(behaviour)
    asked = asyncio.create_task(chat.ask())
    await behaviour.asked.get()
    return chat, behaviour, asked


class TestStop:
    async def test_lets_a_reply_come_to_its_end(
        self, start: Start, assistant: Assistant, database: Database[Raw], database_url: str
    ) -> None:
        server = await ready(start, **settings_of(assistant, database_url))
        chat, behaviour, asked = await begun(server, assistant, database)

        stopped = asyncio.create_task(asyncio.to_thread(server.stop))
        await asyncio.to_thread(until, lambda: "Shutting down" in server.log.read_text())
        behaviour.let_go.set()

        assert "event: message" in await asked
        assert await stopped == -signal.SIGTERM
        assert "Traceback" not in server.log.read_text()
        assert chat.counts == (2, 2, 2)
        assert chat.credits == 9

    async def test_ends_replies_that_go_on_and_gives_back_what_they_held(
        self, start: Start, assistant: Assistant, database: Database[Raw], database_url: str
    ) -> None:
        server = await ready(start, WORKERS="2", **settings_of(assistant, database_url))
        chat, speaking, silent = Chat(server, database), Says("One"), Says()
        assistant.script.extend([speaking, silent])
        asked = [asyncio.create_task(chat.ask())]
        exchanges = [await speaking.asked.get()]
        asked.append(asyncio.create_task(chat.ask()))
        exchanges.append(await silent.asked.get())
        assert chat.credits == 4

        code = await asyncio.to_thread(server.stop)

        cut_off, refused = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(cut_off, RemoteProtocolError)
        assert "provider_unavailable" in str(refused)
        for exchange in exchanges:
            await asyncio.wait_for(exchange.gone.wait(), 5)
        assert code == 0
        assert "Traceback" not in server.log.read_text()
        assert chat.counts == (1, 1, 1)
        assert (chat.credits, database["credit_holds"].count_documents({})) == (10, 0)


class TestKill:
    async def test_leaves_nothing_half_written_and_the_hold_to_the_next_process(
        self, start: Start, assistant: Assistant, database: Database[Raw], database_url: str
    ) -> None:
        server = await ready(start, **settings_of(assistant, database_url))
        chat, _, asked = await begun(server, assistant, database)

        server.kill()
        await asyncio.gather(asked, return_exceptions=True)
        assert chat.counts == (1, 1, 1)
        assert (chat.credits, database["credit_holds"].count_documents({})) == (7, 1)

        past = datetime(2020, 1, 1, tzinfo=UTC)
        database["credit_holds"].update_many({}, {"$set": {"expires_at": past}})
        database["jobs"].update_many({}, {"$set": {"due_at": past}, "$unset": {"holder": "", "leased_until": ""}})
        await ready(start, **settings_of(assistant, database_url))
        await asyncio.to_thread(until, lambda: not database["credit_holds"].count_documents({}), 30)
        assert chat.credits == 10


class TestWorkers:
    async def test_together_hold_no_more_than_there_is(
        self, start: Start, assistant: Assistant, database: Database[Raw], database_url: str
    ) -> None:
        """Ten credits, three of which a reply may cost: of forty at once three are had, whichever worker is asked."""
        server = await ready(start, WORKERS="2", **settings_of(assistant, database_url))
        chat, let_go = Chat(server, database), asyncio.Event()
        under_way: asyncio.Queue[Exchange] = asyncio.Queue()

        async def wait(exchange: Exchange) -> None:
            await exchange.begin_events()
            await exchange.say("One")
            under_way.put_nowait(exchange)
            await let_go.wait()
            await exchange.finish()

        assistant.usually = wait
        asked = [asyncio.create_task(chat.ask()) for _ in range(40)]
        for _ in range(3):
            await asyncio.wait_for(under_way.get(), 20)
        await asyncio.to_thread(until, lambda: sum(task.done() for task in asked) == 37)
        held = chat.credits
        let_go.set()
        texts = await asyncio.gather(*asked)

        assert held == 1
        assert sum("credits_exhausted" in text for text in texts) == 37
        assert sum("event: message" in text for text in texts) == 3
        assert len(assistant.exchanges) == 3
        assert chat.counts == (4, 4, 4)
        assert chat.credits == 7
