"""Replies of the assistant that are asked for again under their `Idempotency-Key`."""

import asyncio
from datetime import datetime, timedelta

import pytest
from httpx import AsyncClient

from app.core import background
from app.core.clock import utc_now
from app.models.idempotency_record import IdempotencyRecord
from app.services import idempotency_service
from tests.api.test_replies import (
    Chat,
    Live,
    SlowStoring,
    assert_nothing_came_of_it,
    assistant,
    client,
    credits_of,
    events_of,
    make_chat,
    outcome,
    replies_in,
    serve_live,
    until,
)
from tests.assistant_server import Assistant, Exchange, Says, answers
from tests.factories import make_api_key

__all__ = ["assistant", "client", "serve_live"]  # the fixtures


def keyed(headers: dict[str, str]) -> dict[str, str]:
    return {**headers, "Idempotency-Key": "reply-1"}


async def no_key_is_claimed() -> bool:
    return await IdempotencyRecord.count() == 0


async def assert_came_once(chat: Chat) -> None:
    await background.drain()
    assert len(await replies_in(chat.conversation)) == 1
    assert await credits_of(chat.ada) == 99


class TestReplyThatCame:
    async def test_is_given_again_and_asked_for_once(self, client: AsyncClient, assistant: Assistant) -> None:
        chat = await make_chat()

        first, again = [await client.post(chat.path, headers=keyed(chat.ada.headers)) for _ in range(2)]

        assert events_of(first.text)[-1].name == "message"
        assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
        assert again.content == first.content
        assert again.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert len(assistant.exchanges) == 1
        await assert_came_once(chat)

    async def test_tells_each_time_what_is_left_of_the_rate(self, client: AsyncClient) -> None:
        chat = await make_chat()

        first, again = [await client.post(chat.path, headers=keyed(chat.ada.headers)) for _ in range(2)]

        left = [int(response.headers["x-ratelimit-remaining"]) for response in (first, again)]
        assert left[1] == left[0] - 1
        assert len(again.headers.get_list("x-ratelimit-limit")) == 1


class TestReplyThatDidNotCome:
    """It has stored nothing and cost nothing, so that asking again asks the assistant again."""

    async def test_for_want_of_an_answer_leaves_the_key_free(self, client: AsyncClient, assistant: Assistant) -> None:
        assistant.script.append(answers(500))
        chat = await make_chat()

        refused = await client.post(chat.path, headers=keyed(chat.ada.headers))
        mended = await client.post(chat.path, headers=keyed(chat.ada.headers))

        assert outcome(refused) == (503, "provider_unavailable", "5")
        assert "idempotent-replayed" not in mended.headers
        assert events_of(mended.text)[-1].name == "message"
        await assert_came_once(chat)

    async def test_whole_leaves_the_key_free(self, client: AsyncClient, assistant: Assistant) -> None:
        async def break_off(exchange: Exchange) -> None:
            await exchange.begin_events()
            await exchange.say("Half a")
            exchange.cut()

        assistant.script.append(break_off)
        chat = await make_chat()

        broken = await client.post(chat.path, headers=keyed(chat.ada.headers))
        mended = await client.post(chat.path, headers=keyed(chat.ada.headers))

        assert [event.name for event in events_of(broken.text)] == ["delta", "error"]
        assert events_of(mended.text)[-1].name == "message"
        await assert_came_once(chat)

    @pytest.mark.parametrize("words", [(), ("One",)])
    async def test_to_who_hung_up_leaves_the_key_free(
        self, serve_live: Live, assistant: Assistant, words: tuple[str, ...]
    ) -> None:
        behaviour = Says(*words)
        assistant.script.append(behaviour)
        async with serve_live() as client:
            chat = await make_chat()
            asked = asyncio.create_task(client.post(chat.path, headers=keyed(chat.ada.headers)))
            exchange = await behaviour.asked.get()
            asked.cancel()
            async with asyncio.timeout(5):
                await exchange.gone.wait()
            await until(no_key_is_claimed)
            await assert_nothing_came_of_it(chat)

            again = await client.post(chat.path, headers=keyed(chat.ada.headers))

            assert events_of(again.text)[-1].name == "message"
            await assert_came_once(chat)


class TestReplyUnderWay:
    @pytest.mark.parametrize("by_service", [False, True])
    async def test_keeps_its_key_however_long_it_takes(
        self, client: AsyncClient, assistant: Assistant, monkeypatch: pytest.MonkeyPatch, *, by_service: bool
    ) -> None:
        """Its process says again and again that it is still there."""
        monkeypatch.setattr(idempotency_service, "_HOLD", timedelta(seconds=1.5))
        behaviour = Says("One")
        assistant.script.append(behaviour)
        chat = await make_chat()
        headers = keyed((await make_api_key("admin")).headers if by_service else chat.ada.headers)
        asked = asyncio.create_task(client.post(chat.path, headers=headers))
        await behaviour.asked.get()
        first = await held_until()

        async def is_past() -> bool:
            return utc_now() > first

        await until(is_past)
        again = await client.post(chat.path, headers=headers)
        behaviour.let_go.set()

        assert (again.status_code, again.json()["code"]) == (409, "idempotency_in_progress")
        assert events_of((await asked).text)[-1].name == "message"
        assert len(assistant.exchanges) == 1
        assert len(await replies_in(chat.conversation)) == 1

    async def test_whose_process_dies_is_succeeded(
        self, client: AsyncClient, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first is thought dead, since it says nothing: it stores nothing when it comes to its end after all."""
        monkeypatch.setattr(idempotency_service, "_HOLD", timedelta(seconds=1000))
        behaviour = Says("One")
        assistant.script.append(behaviour)
        chat = await make_chat()
        asked = asyncio.create_task(client.post(chat.path, headers=keyed(chat.ada.headers)))
        await behaviour.asked.get()
        past = utc_now() - timedelta(seconds=1)
        await IdempotencyRecord.get_pymongo_collection().update_many({}, {"$set": {"until": past}})

        second = await client.post(chat.path, headers=keyed(chat.ada.headers))
        behaviour.let_go.set()

        *_, last = events_of((await asked).text)
        assert (last.name, last.data["code"]) == ("error", "idempotency_in_progress")
        assert events_of(second.text)[-1].name == "message"
        await assert_came_once(chat)
        third = await client.post(chat.path, headers=keyed(chat.ada.headers))
        assert third.content == second.content

    async def test_is_stored_for_who_hangs_up_at_its_end_and_not_once_more(
        self, serve_live: Live, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storing = SlowStoring(monkeypatch)
        async with serve_live() as client:
            chat = await make_chat()
            async with client.stream("POST", chat.path, headers=keyed(chat.ada.headers)):
                await storing.has_begun.wait()
            await asyncio.wait_for(storing.stream_has_ended.wait(), 5)
            storing.let_go.set()
            await background.drain()

            again = await client.post(chat.path, headers=keyed(chat.ada.headers))

            assert (again.status_code, again.json()["code"]) == (409, "conflict")
            assert len(assistant.exchanges) == 1
            await assert_came_once(chat)


async def held_until() -> datetime:
    (record,) = await IdempotencyRecord.find_all().to_list()
    return record.until
