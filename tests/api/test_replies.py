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

from app.api import http_protocol, reply_stream
from app.core import background
from app.core.clock import utc_now
from app.core.config import Settings
from app.core.scopes import Role
from app.crud import crud_message
from app.main import create_app
from app.models.audit_event import AuditEvent
from app.models.conversation import Conversation
from app.models.credit_hold import CreditHold
from app.models.message import Message
from app.models.usage_counter import UsageCounter
from app.models.user import User
from app.services import assistant_provider, credit_service, message_service
from tests.assistant_server import Assistant, Exchange, Says, answers, open_assistant, says
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


async def make_chat(*others: StoredUser, balance: int = 100, messages: int = 1) -> Chat:
    """A conversation of Ada, who has said something."""
    ada = await make_signed_in(credits=balance)
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


async def assert_nothing_came_of_it(chat: Chat, balance: int = 100) -> None:
    await until(no_hold_is_left)
    stored = await Conversation.get(chat.conversation.id)
    assert stored is not None
    assert await replies_in(chat.conversation) == []
    assert (stored.last_seq, stored.message_count) == (1, 1)
    assert await credits_of(chat.ada) == balance


def outcome(response: Response) -> tuple[int, str, str | None]:
    return response.status_code, response.json()["code"], response.headers.get("retry-after")


class SlowStoring:
    """Holds a reply at the moment at which it is stored, and tells when its stream has ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_begun, self.let_go, self.stream_has_ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._add, self._stream = crud_message.add, reply_stream.ReplyResponse.__call__

        async def stream(*args: Any) -> None:
            try:
                await self._stream(*args)
            finally:
                self.stream_has_ended.set()

        monkeypatch.setattr(crud_message, "add", self.add)
        monkeypatch.setattr(reply_stream.ReplyResponse, "__call__", stream)

    async def add(self, **fields: Any) -> Any:
        self.has_begun.set()
        await self.let_go.wait()
        return await self._add(**fields)


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

    async def test_is_stored_in_its_turn(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        """With what is posted and changed in the conversation at the same time it would be run again and again."""
        chat, storing = await make_chat(), SlowStoring(monkeypatch)
        asked = asyncio.create_task(client.post(chat.path, headers=chat.ada.headers))
        await storing.has_begun.wait()

        turn = message_service.turns_in_conversations._locks.get(chat.conversation.id)
        has_turn = turn is not None and turn.locked()
        storing.let_go.set()

        assert (await asked).status_code == 200
        assert has_turn

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


class TestCredits:
    @pytest.mark.parametrize(
        ("prompt", "completion", "cost"), [(999, 1, 1), (1000, 1, 2), (1, 0, 1), (0, 0, 0), (1999, 1001, 3)]
    )
    async def test_pay_for_every_thousand_tokens_begun(
        self, client: AsyncClient, assistant: Assistant, prompt: int, completion: int, cost: int
    ) -> None:
        assistant.usually = says("Hi", usage={"prompt_tokens": prompt, "completion_tokens": completion})
        chat = await make_chat()

        response = await client.post(chat.path, headers=chat.ada.headers)

        assert events_of(response.text)[-1].data["tokens"] == {"prompt": prompt, "completion": completion}
        assert await credits_of(chat.ada) == 100 - cost
        assert await CreditHold.count() == 0

    async def test_are_estimated_where_the_provider_does_not_count(
        self, client: AsyncClient, assistant: Assistant
    ) -> None:
        assistant.usually = says("x" * 5000, usage=None)
        chat = await make_chat()

        response = await client.post(chat.path, headers=chat.ada.headers)

        # "Question 1" is ten bytes, and a message has four tokens around it.
        assert events_of(response.text)[-1].data["tokens"] == {"prompt": 7, "completion": 1250}
        assert await credits_of(chat.ada) == 98

    @pytest.mark.parametrize(("balance", "status"), [(0, 429), (2, 429), (3, 200)])
    async def test_must_cover_the_most_it_may_cost(
        self, client: AsyncClient, assistant: Assistant, balance: int, status: int
    ) -> None:
        chat = await make_chat(balance=balance)  # the question, and 2,048 tokens at most

        response = await client.post(chat.path, headers=chat.ada.headers)

        assert response.status_code == status
        if status == 429:
            assert outcome(response) == (429, "credits_exhausted", None)
            assert assistant.exchanges == []
            await assert_nothing_came_of_it(chat, balance=balance)
        else:
            assert await credits_of(chat.ada) == 2

    async def test_are_held_while_it_comes(self, serve_live: Live, assistant: Assistant) -> None:
        behaviour = Says("Hi")
        assistant.script.append(behaviour)
        async with serve_live() as client:
            chat = await make_chat(balance=10)
            async with client.stream("POST", chat.path, headers=chat.ada.headers) as response:
                await behaviour.asked.get()
                during, [hold] = await credits_of(chat.ada), await CreditHold.find_all().to_list()
                behaviour.let_go.set()
                await response.aread()

            assert (during, hold.amount, hold.user_id) == (7, 3, chat.ada.id)
            assert timedelta(minutes=6) < hold.expires_at - utc_now() < timedelta(minutes=8)
            assert await credits_of(chat.ada) == 9

    async def test_are_never_less_than_none(self, client: AsyncClient, assistant: Assistant) -> None:
        assistant.usually = says("Hi", usage={"prompt_tokens": 90_000, "completion_tokens": 0})
        chat = await make_chat(balance=10)

        response = await client.post(chat.path, headers=chat.ada.headers)

        assert events_of(response.text)[-1].name == "message"
        assert await credits_of(chat.ada) == 0

    async def test_are_exact_when_many_ask_at_once(self, client: AsyncClient, assistant: Assistant) -> None:
        """Ten credits are three replies of three at most, one of which each costs: the fourth must wait."""
        behaviours = [Says("Hi") for _ in range(3)]
        assistant.script.extend(behaviours)
        chat = await make_chat(balance=10)

        asked = [asyncio.create_task(client.post(chat.path, headers=chat.ada.headers)) for _ in range(12)]
        for behaviour in behaviours:
            await behaviour.asked.get()
        async with asyncio.timeout(10):
            for _, answer in zip(range(9), asyncio.as_completed(asked), strict=False):
                await answer
        held = await credits_of(chat.ada)
        for behaviour in behaviours:
            behaviour.let_go.set()
        responses = await asyncio.gather(*asked)

        assert held == 1
        assert sorted(response.status_code for response in responses) == [200] * 3 + [429] * 9
        assert {response.json()["code"] for response in responses if response.status_code == 429} == {
            "credits_exhausted"
        }
        assert len(assistant.exchanges) == 3
        assert await credits_of(chat.ada) == 7
        assert len(await replies_in(chat.conversation)) == 3

    async def test_let_three_replies_be_under_way(self, client: AsyncClient, assistant: Assistant) -> None:
        behaviours = [Says("Hi") for _ in range(3)]
        assistant.script.extend(behaviours)
        chat = await make_chat()
        asked = [asyncio.create_task(client.post(chat.path, headers=chat.ada.headers)) for _ in range(3)]
        for behaviour in behaviours:
            await behaviour.asked.get()

        fourth = await client.post(chat.path, headers=chat.ada.headers)
        for behaviour in behaviours:
            behaviour.let_go.set()
        await asyncio.gather(*asked)

        assert outcome(fourth) == (429, "rate_limited", "5")
        assert await credits_of(chat.ada) == 97
        assert (await client.post(chat.path, headers=chat.ada.headers)).status_code == 200

    async def test_are_those_of_a_personal_keys_owner(self, client: AsyncClient) -> None:
        chat = await make_chat()
        key = await make_api_key("read", "write", owner=chat.ada)

        response = await client.post(chat.path, headers=key.headers)

        assert response.status_code == 200
        assert await credits_of(chat.ada) == 99

    async def test_are_nobodys_where_a_service_asks(self, client: AsyncClient) -> None:
        chat, key = await make_chat(balance=0), await make_api_key("admin")

        response = await client.post(chat.path, headers=key.headers)

        assert events_of(response.text)[-1].name == "message"
        assert await credits_of(chat.ada) == 0
        assert await UsageCounter.count() == 0

    async def test_come_back_to_an_account_that_was_deleted_meanwhile(
        self, client: AsyncClient, assistant: Assistant
    ) -> None:
        behaviour = Says("Hi")
        assistant.script.append(behaviour)
        chat, admin = await make_chat(balance=10), await make_signed_in(role=Role.SUPERUSER)
        asked = asyncio.create_task(client.post(chat.path, headers=chat.ada.headers))
        await behaviour.asked.get()

        deleted = await client.delete(f"/api/v1/users/{chat.ada.id}", headers=admin.headers)
        behaviour.let_go.set()
        await asked

        assert deleted.status_code == 204
        restored = await client.post(f"/api/v1/admin/deleted-users/{chat.ada.id}/restore", headers=admin.headers)
        assert restored.status_code == 200
        assert await credits_of(chat.ada) == 9

    @pytest.mark.usefixtures("client")
    async def test_of_a_process_that_died_come_back_once_however_many_see_to_it(self) -> None:
        ada = await make_signed_in(credits=1)
        await CreditHold(user_id=ada.id, amount=5, expires_at=utc_now() - timedelta(seconds=1)).insert()
        await CreditHold(user_id=ada.id, amount=7, expires_at=utc_now() + timedelta(minutes=1)).insert()

        rounds = await asyncio.gather(*(credit_service.give_back_expired() for _ in range(4)))

        assert sum(each.given_back for each in rounds) == 1
        assert await credits_of(ada) == 6
        assert [hold.amount for hold in await CreditHold.find_all().to_list()] == [7]

    async def test_leave_the_version_of_the_account_alone(self, client: AsyncClient) -> None:
        chat = await make_chat()

        await client.post(chat.path, headers=chat.ada.headers)

        stored = await User.get(chat.ada.id)
        assert stored is not None
        assert stored.version == chat.ada.document.version


class TestProviderThatFails:
    """Before the first word: an ordinary problem, nothing stored, nothing paid."""

    @pytest.mark.parametrize(
        ("behaviour", "wait"),
        [
            (answers(500), "5"),
            (answers(401), "5"),
            (answers(404), "5"),
            (answers(429), "5"),
            (answers(429, retry_after="77"), "77"),
            (answers(503, retry_after="3601"), "3600"),
            (answers(200, b"{}", content_type="application/json"), "5"),
            (answers(307, location="http://127.0.0.1:1/v1/chat/completions"), "5"),
            (answers(200, b"data: [DONE]\n\n", content_type="text/event-stream"), "5"),
            (answers(200, b"data: {\n\n", content_type="text/event-stream"), "5"),
            (answers(200, b"data: 7\n\n", content_type="text/event-stream"), "5"),
            (answers(200, b"data: \xff\n\n", content_type="text/event-stream"), "5"),
            (answers(200, b'data: {"error": {"message": "no"}}\n\n', content_type="text/event-stream"), "5"),
            (answers(200, b"", content_type="text/event-stream"), "5"),
            (answers(200, b"x", content_type="text/event-stream", content_encoding="gzip"), "5"),
        ],
    )
    async def test_is_unavailable(self, client: AsyncClient, assistant: Assistant, behaviour: Any, wait: str) -> None:
        assistant.usually = behaviour
        chat = await make_chat()

        response = await client.post(chat.path, headers=chat.ada.headers)

        assert outcome(response) == (503, "provider_unavailable", wait)
        assert response.headers["content-type"] == "application/problem+json"
        assert len(assistant.exchanges) == 1
        assert "sk-test" not in response.text
        await assert_nothing_came_of_it(chat)

    async def test_is_unavailable_when_it_is_not_there(self, serve: Serve, assistant: Assistant) -> None:
        settings = {**assistant.settings, "assistant_base_url": "http://127.0.0.1:1"}
        async with serve(**settings) as client:
            chat = await make_chat()

            response = await client.post(chat.path, headers=chat.ada.headers)

            assert outcome(response) == (503, "provider_unavailable", "5")
            await assert_nothing_came_of_it(chat)

    @pytest.mark.parametrize("missing", ["assistant_base_url", "assistant_model"])
    async def test_is_unavailable_when_it_is_not_configured(
        self, serve: Serve, assistant: Assistant, missing: str
    ) -> None:
        async with serve(**{**assistant.settings, missing: None}) as client:
            chat = await make_chat()

            response = await client.post(chat.path, headers=chat.ada.headers)

            assert outcome(response) == (503, "provider_unavailable", None)
            assert "ASSISTANT_BASE_URL" in response.json()["detail"]
            assert assistant.exchanges == []
            await assert_nothing_came_of_it(chat)

    async def test_is_given_up_when_it_stalls(self, serve: Serve, assistant: Assistant) -> None:
        behaviour = Says()
        assistant.script.append(behaviour)
        async with serve(**assistant.settings, assistant_idle_seconds=0.2) as client:
            chat = await make_chat()

            response = await client.post(chat.path, headers=chat.ada.headers)

            assert outcome(response) == (503, "provider_unavailable", "5")
            async with asyncio.timeout(5):
                await (await behaviour.asked.get()).gone.wait()
            await assert_nothing_came_of_it(chat)

    async def test_is_given_up_when_it_takes_too_long_although_it_never_stalls(
        self, serve: Serve, assistant: Assistant
    ) -> None:
        async def trickle(exchange: Exchange) -> None:
            await exchange.begin_events()
            while not exchange.gone.is_set():
                await exchange.chunk(b": still there\n\n")
                await asyncio.sleep(0.01)

        assistant.script.append(trickle)
        async with serve(**assistant.settings, assistant_timeout_seconds=0.5) as client:
            chat = await make_chat()

            response = await client.post(chat.path, headers=chat.ada.headers)

            assert outcome(response) == (503, "provider_unavailable", "5")
            await assert_nothing_came_of_it(chat)

    async def test_is_asked_again_when_it_wants_that(self, client: AsyncClient, assistant: Assistant) -> None:
        assistant.script.extend([answers(429, retry_after="0"), answers(503, retry_after="0")])
        chat = await make_chat()

        response = await client.post(chat.path, headers=chat.ada.headers)

        assert events_of(response.text)[-1].name == "message"
        assert len(assistant.exchanges) == 3

    async def test_is_spared_after_five_failures(self, client: AsyncClient, assistant: Assistant) -> None:
        assistant.usually = answers(500)
        chat = await make_chat()
        for _ in range(5):
            await client.post(chat.path, headers=chat.ada.headers)
        assistant.usually = says("Hi")

        response = await client.post(chat.path, headers=chat.ada.headers)

        status, code, wait = outcome(response)
        assert (status, code) == (503, "provider_unavailable")
        assert wait is not None
        assert 1 <= int(wait) <= 15
        assert len(assistant.exchanges) == 5
        await assert_nothing_came_of_it(chat)


class TestReplyThatBreaksOff:
    """After the first word: the last event is the problem; nothing stored, nothing paid."""

    @staticmethod
    async def _breaks(exchange: Exchange) -> None:
        await exchange.raw(b"20\r\ndata: {")  # a chunk of 32 bytes of which 7 come
        exchange.cut()

    @staticmethod
    async def _ends(exchange: Exchange) -> None:
        await exchange.raw(b"0\r\n\r\n")

    @staticmethod
    async def _reports(exchange: Exchange) -> None:
        await exchange.event({"error": {"message": "overloaded", "type": "server_error"}})

    @staticmethod
    async def _babbles(exchange: Exchange) -> None:
        await exchange.chunk(b"data: nonsense\n\n")

    @staticmethod
    async def _stalls(exchange: Exchange) -> None:
        await exchange.gone.wait()

    @pytest.mark.parametrize("end", ["_breaks", "_ends", "_reports", "_babbles", "_stalls"])
    async def test_ends_with_an_error(self, serve: Serve, assistant: Assistant, end: str) -> None:
        async def behave(exchange: Exchange) -> None:
            await exchange.begin_events()
            await exchange.say("Half a")
            await getattr(self, end)(exchange)

        assistant.usually = behave
        async with serve(**assistant.settings, assistant_idle_seconds=0.3) as client:
            chat = await make_chat()

            response = await client.post(chat.path, headers=chat.ada.headers)

            delta, error = events_of(response.text)
            assert response.status_code == 200
            assert delta == ("delta", {"content": "Half a"})
            assert (error.name, error.data["status"], error.data["code"]) == ("error", 503, "provider_unavailable")
            assert error.data["instance"] == chat.path
            assert error.data["request_id"] == response.headers["x-request-id"]
            assert "overloaded" not in response.text
            await assert_nothing_came_of_it(chat)

    async def test_ends_with_an_error_when_a_hundred_megabytes_of_garbage_come(
        self, serve: Serve, assistant: Assistant
    ) -> None:
        async def flood(exchange: Exchange) -> None:
            await exchange.begin_events()
            await exchange.say("Half a")
            for _ in range(1600):
                await exchange.chunk(b"x" * 65536)

        assistant.usually = flood
        async with serve(**assistant.settings) as client:
            chat = await make_chat()

            response = await client.post(chat.path, headers=chat.ada.headers)

            assert [event.name for event in events_of(response.text)] == ["delta", "error"]
            assert assistant.exchanges[0].sent < 20_000_000
            await assert_nothing_came_of_it(chat)

    async def test_ends_with_an_error_when_it_does_not_end(self, client: AsyncClient, assistant: Assistant) -> None:
        async def go_on(exchange: Exchange) -> None:
            await exchange.begin_events()
            while True:
                await exchange.say("x" * 50_000)

        assistant.usually = go_on
        chat = await make_chat()

        response = await client.post(chat.path, headers=chat.ada.headers)

        assert events_of(response.text)[-1].name == "error"
        await assert_nothing_came_of_it(chat)

    async def test_ends_with_an_error_when_the_conversation_is_gone(
        self, client: AsyncClient, assistant: Assistant
    ) -> None:
        behaviour = Says("Hi")
        assistant.script.append(behaviour)
        chat = await make_chat()
        asked = asyncio.create_task(client.post(chat.path, headers=chat.ada.headers))
        await behaviour.asked.get()

        await client.delete(chat.path.removesuffix("/reply"), headers=chat.ada.headers)
        behaviour.let_go.set()

        *_, last = events_of((await asked).text)
        assert (last.name, last.data["status"], last.data["code"]) == ("error", 404, "not_found")
        await until(no_hold_is_left)
        assert await replies_in(chat.conversation) == []
        assert await credits_of(chat.ada) == 100

    async def test_ends_with_an_error_for_who_was_removed_meanwhile(
        self, client: AsyncClient, assistant: Assistant
    ) -> None:
        behaviour = Says("Hi")
        assistant.script.append(behaviour)
        bob = await make_signed_in(credits=50)
        chat = await make_chat(bob)
        asked = asyncio.create_task(client.post(chat.path, headers=bob.headers))
        await behaviour.asked.get()

        path = chat.path.replace("/reply", f"/participants/{bob.id}")
        assert (await client.delete(path, headers=chat.ada.headers)).status_code == 200
        behaviour.let_go.set()

        *_, last = events_of((await asked).text)
        assert (last.name, last.data["status"], last.data["code"]) == ("error", 404, "not_found")
        await assert_nothing_came_of_it(chat)
        assert await credits_of(bob) == 50


class TestCallerWhoHangsUp:
    async def test_ends_the_call_while_nothing_has_come(self, serve_live: Live, assistant: Assistant) -> None:
        behaviour = Says()
        assistant.script.append(behaviour)
        async with serve_live() as client:
            chat = await make_chat()
            asked = asyncio.create_task(client.post(chat.path, headers=chat.ada.headers))
            exchange = await behaviour.asked.get()

            asked.cancel()

            async with asyncio.timeout(5):
                await exchange.gone.wait()
            await assert_nothing_came_of_it(chat)

    async def test_ends_the_call_between_two_words(self, serve_live: Live, assistant: Assistant) -> None:
        behaviour = Says("One")
        assistant.script.append(behaviour)
        async with serve_live() as client:
            chat = await make_chat()
            async with client.stream("POST", chat.path, headers=chat.ada.headers) as response:
                await anext(response.aiter_text())
                exchange = await behaviour.asked.get()

            async with asyncio.timeout(5):
                await exchange.gone.wait()
            await assert_nothing_came_of_it(chat)

    async def test_while_it_is_stored_finds_it_stored_and_paid(
        self, serve_live: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storing = SlowStoring(monkeypatch)
        async with serve_live() as client:
            chat = await make_chat()
            async with client.stream("POST", chat.path, headers=chat.ada.headers):
                await storing.has_begun.wait()
            await asyncio.wait_for(storing.stream_has_ended.wait(), 5)
            assert await replies_in(chat.conversation) == []
            storing.let_go.set()
            await background.drain()

            assert [reply.content for reply in await replies_in(chat.conversation)] == ["Hello Ada"]
            assert await credits_of(chat.ada) == 99
            assert await CreditHold.count() == 0

    async def test_but_reads_nothing_slows_the_assistant_down(
        self, serve_live: Live, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is not taken is not read either: no more is on its way than sockets hold."""
        monkeypatch.setattr(assistant_provider, "_MAX_CHARACTERS", 10**9)
        monkeypatch.setattr(assistant_provider, "_MAX_ANSWER_BYTES", 10**9)
        flood = Flood()
        assistant.usually = flood
        async with serve_live() as client:
            chat = await make_chat()
            async with reading_nothing(client, chat):
                exchange = await flood.is_stuck

                assert exchange.sent < 50_000_000
            async with asyncio.timeout(5):
                await exchange.gone.wait()
            await assert_nothing_came_of_it(chat)

    async def test_is_taken_for_one_who_reads_nothing_for_long(
        self, serve_live: Live, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(assistant_provider, "_MAX_CHARACTERS", 10**9)
        monkeypatch.setattr(assistant_provider, "_MAX_ANSWER_BYTES", 10**9)
        monkeypatch.setattr(http_protocol, "_STALLED_SECONDS", 0.3)
        flood = Flood()
        assistant.usually = flood
        async with serve_live() as client:
            chat = await make_chat()
            async with reading_nothing(client, chat):
                exchange = await flood.is_stuck
                async with asyncio.timeout(5):
                    await exchange.gone.wait()
                await assert_nothing_came_of_it(chat)


class Flood:
    """Goes on until nothing more is taken of it."""

    def __init__(self) -> None:
        self.is_stuck: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.begin_events()
        try:
            for _ in range(1600):
                async with asyncio.timeout(1):
                    await exchange.say("x" * 65_536)
        except (TimeoutError, ConnectionError):
            self.is_stuck.set_result(exchange)
        await exchange.gone.wait()


@asynccontextmanager
async def reading_nothing(client: AsyncClient, chat: Chat) -> AsyncIterator[None]:
    """Somebody who asks, sees the answer begin, and takes no more of it."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port, limit=1)
    lines = [f"POST {chat.path} HTTP/1.1", "Host: x", "Content-Length: 0"]
    lines += [f"{name}: {text}" for name, text in chat.ada.headers.items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    await reader.readexactly(1)
    try:
        yield
    finally:
        writer.transport.abort()


class TestWhoMayAsk:
    async def test_is_who_takes_part(self, client: AsyncClient) -> None:
        bob = await make_signed_in(credits=10)
        chat, eve = await make_chat(bob), await make_signed_in(credits=10)

        assert (await client.post(chat.path, headers=bob.headers)).status_code == 200
        assert (await client.post(chat.path, headers=eve.headers)).status_code == 404
        assert (await client.post(f"/api/v1/conversations/{ObjectId()}/reply", headers=bob.headers)).status_code == 404
        assert await credits_of(eve) == 10

    @pytest.mark.parametrize("scopes", [("write",), ("read",), ("conversations:write",), ("conversations:read",)])
    async def test_may_read_and_write(self, client: AsyncClient, assistant: Assistant, scopes: tuple[str, ...]) -> None:
        chat = await make_chat()
        for key in (await make_api_key(*scopes), await make_api_key(*scopes, owner=chat.ada)):
            response = await client.post(chat.path, headers=key.headers)

            assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")
            assert "conversations:" in response.headers["www-authenticate"]
        assert assistant.exchanges == []
