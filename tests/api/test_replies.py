"""Replies of the assistant: the application, a real socket, and a server that speaks the protocol."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core.clock import utc_now
from app.core.config import Settings
from app.core.scopes import Role
from app.main import create_app
from app.models.audit_event import AuditEvent
from app.models.conversation import Conversation
from app.models.credit_hold import CreditHold
from app.models.message import Message
from app.models.usage_counter import UsageCounter
from app.models.user import User
from app.services import credit_service, external_api
from tests.assistant_server import USAGE, Assistant, Exchange, Says, answers, chunk_of, open_assistant, says
from tests.conftest import Serve
from tests.factories import (
    SignedInUser,
    StoredUser,
    make_api_key,
    make_conversation,
    make_messages,
    make_signed_in,
)
from tests.live_server import live

LATER = "2099-01-01T00:00:00Z"


class Event(NamedTuple):
    name: str
    data: Any


def events_of(text: str) -> list[Event]:
    """The events in what came, comments passed over."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append(Event(fields["event"], json.loads(fields["data"])))
    return found


@pytest.fixture
async def assistant() -> AsyncIterator[Assistant]:
    async with open_assistant() as opened:
        yield opened


@pytest.fixture
async def client(serve: Serve, assistant: Assistant) -> AsyncIterator[AsyncClient]:
    """The application with an assistant, called in the loop: the answer is read when it is whole."""
    async with serve(**assistant.settings) as client:
        yield client


Live = Callable[..., AbstractAsyncContextManager[AsyncClient]]


@pytest.fixture
def serve_live(make_settings: Callable[..., Settings], assistant: Assistant) -> Live:
    """The same behind a socket: the answer is read as it comes."""

    @asynccontextmanager
    async def start(**overrides: Any) -> AsyncIterator[AsyncClient]:
        app = create_app(make_settings(**{**assistant.settings, **overrides}))
        async with live(app) as url, AsyncClient(base_url=url, timeout=20) as client:
            yield client

    return start


class Chat(NamedTuple):
    ada: SignedInUser
    conversation: Conversation

    @property
    def path(self) -> str:
        return f"/api/v1/conversations/{self.conversation.id}/reply"


async def make_chat(*others: StoredUser, credits: int = 100, messages: int = 1) -> Chat:
    """A conversation of Ada, who has said something."""
    ada = await make_signed_in(credits=credits)
    conversation = await make_conversation(ada, *others)
    if messages:
        await make_messages(conversation, messages, by=ada, content="Question")
    return Chat(ada, conversation)


async def credits_of(user: StoredUser) -> int:
    stored = await User.get(user.id)
    assert stored is not None
    return stored.credits


async def replies_in(conversation: Conversation) -> list[Message]:
    return await Message.find({"conversation_id": conversation.id, "role": "assistant"}).to_list()


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await is_so():  # noqa: ASYNC110 - it is the database that changes
            await asyncio.sleep(0.01)


async def no_hold_is_left() -> bool:
    return await CreditHold.count() == 0


async def assert_nothing_came_of_it(chat: Chat, credits: int = 100) -> None:
    await until(no_hold_is_left)
    stored = await Conversation.get(chat.conversation.id)
    assert stored is not None
    assert await replies_in(chat.conversation) == []
    assert (stored.last_seq, stored.message_count) == (1, 1)
    assert await credits_of(chat.ada) == credits


def outcome(response: Response) -> tuple[int, str, str | None]:
    return response.status_code, response.json()["code"], response.headers.get("retry-after")


class TestReply:
    async def test_streams_the_words_then_the_stored_message(self, client: AsyncClient) -> None:
        chat = await make_chat()

        response = await client.post(chat.path, headers=chat.ada.headers)

        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        *deltas, last = events_of(response.text)
        assert deltas == [("delta", {"content": "Hello"}), ("delta", {"content": " Ada"})]
        [stored] = await replies_in(chat.conversation)
        assert last.name == "message"
        assert last.data == {
            "id": str(stored.id),
            "conversation_id": str(chat.conversation.id),
            "seq": 2,
            "role": "assistant",
            "content": "Hello Ada",
            "user": None,
            "attachment_ids": [],
            "model": "parrot-1",
            "tokens": {"prompt": 11, "completion": 5},
            "created_at": last.data["created_at"],
            "edited_at": None,
            "deleted_at": None,
        }
        page = await client.get(f"/api/v1/conversations/{chat.conversation.id}/messages", headers=chat.ada.headers)
        assert page.json()[-1] == last.data

    async def test_counts_with_the_conversation(self, client: AsyncClient) -> None:
        chat = await make_chat()

        await client.post(chat.path, headers=chat.ada.headers)

        stored = await Conversation.get(chat.conversation.id)
        assert stored is not None
        assert (stored.last_seq, stored.message_count) == (2, 2)
        assert stored.version == chat.conversation.version + 1

    async def test_comes_word_by_word(self, serve_live: Live, assistant: Assistant) -> None:
        behaviour = Says("First", " second")
        assistant.script.append(behaviour)
        async with serve_live() as client:
            chat = await make_chat()

            async with client.stream("POST", chat.path, headers=chat.ada.headers) as response:
                parts = response.aiter_text()
                text = ""
                while "second" not in text:
                    text += await anext(parts)
                is_stored_early = await replies_in(chat.conversation) != []
                behaviour.let_go.set()
                async for part in parts:
                    text += part

        assert not is_stored_early
        assert [event.name for event in events_of(text)] == ["delta", "delta", "delta", "message"]
        assert events_of(text)[-1].data["content"] == "First second the rest"

    async def test_asks_in_the_words_of_the_protocol(self, serve: Serve, assistant: Assistant) -> None:
        settings = {**assistant.settings, "assistant_system_prompt": "Be brief.", "assistant_max_tokens": 77}
        async with serve(**settings) as client:
            chat = await make_chat()
            service = await make_api_key("admin")
            messages = f"/api/v1/conversations/{chat.conversation.id}/messages"
            said = {"role": "assistant", "content": "Ähm …"}
            await client.post(messages, headers=service.headers, json=said)

            await client.post(chat.path, headers=chat.ada.headers)

        [exchange] = assistant.exchanges
        assert (exchange.method, exchange.path) == ("POST", "/v1/chat/completions")
        assert exchange.headers["authorization"] == "Bearer sk-test-4711"
        assert exchange.headers["accept-encoding"] == "identity"
        assert exchange.body == {
            "model": "parrot",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Question 1"},
                {"role": "assistant", "content": "Ähm …"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 77,
        }

    async def test_reads_as_much_of_the_history_as_it_is_told(self, serve: Serve, assistant: Assistant) -> None:
        async with serve(
            **assistant.settings, assistant_history=2, assistant_max_tokens_field="max_completion_tokens"
        ) as client:
            chat = await make_chat(messages=4)
            last = {"conversation_id": chat.conversation.id, "seq": 4}
            await Message.find_one(last).update({"$set": {"deleted_at": utc_now(), "content": ""}})

            await client.post(chat.path, headers=chat.ada.headers)

        body = assistant.exchanges[0].body
        assert body["messages"] == [{"role": "user", "content": "Question 3"}]
        assert body["max_completion_tokens"] == 2048
        assert "max_tokens" not in body

    async def test_uses_one_connection_for_one_after_the_other(self, client: AsyncClient, assistant: Assistant) -> None:
        chat = await make_chat()

        for _ in range(3):
            await client.post(chat.path, headers=chat.ada.headers)

        assert len(assistant.exchanges) == 3
        assert assistant.connections == 1

    async def test_is_no_message_of_the_day_and_no_event_of_the_trail(self, client: AsyncClient) -> None:
        chat = await make_chat()

        await client.post(chat.path, headers=chat.ada.headers)

        [counter] = await UsageCounter.find_all().to_list()
        assert (counter.user_id, counter.messages, counter.tokens) == (chat.ada.id, 0, 16)
        assert await AuditEvent.count() == 0

    async def test_needs_something_to_reply_to(self, client: AsyncClient, assistant: Assistant) -> None:
        chat = await make_chat(messages=0)

        response = await client.post(chat.path, headers=chat.ada.headers)

        assert (response.status_code, response.json()["code"]) == (409, "conflict")
        assert assistant.exchanges == []
        assert await credits_of(chat.ada) == 100
