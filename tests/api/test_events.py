"""Events of a conversation, as those who follow it are told of them. What needs a server: test_events_server.py."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import pytest
from bson import ObjectId
from httpx import AsyncClient
from pymongo import MongoClient, ReturnDocument
from pymongo.errors import ConnectionFailure

from app.core.clock import utc_now
from app.core.principal import Principal
from app.core.scopes import Role
from app.core.tokens import new_access_token
from app.crud import crud_conversation_event, crud_event_log
from app.db.mongo import transactional
from app.models.conversation import Conversation
from app.models.conversation_event import ConversationEvent
from app.models.enums import ConversationEventType
from app.models.message import Message
from app.services import (
    auth_service,
    event_frames,
    event_hub,
    event_service,
    event_subscription,
    key_expiry_service,
    purge_service,
)
from app.services.event_hub import EventHub, get_hub
from app.services.event_subscription import Subscription
from tests.commands import Commands
from tests.conftest import Serve
from tests.factories import (
    SignedInUser,
    archive,
    make_api_key,
    make_conversation,
    make_messages,
    make_signed_in,
    make_user,
    sign_in,
)
from tests.streams import Event, answer_of, opened

BASE = "/api/v1/conversations"
Kind = ConversationEventType


async def happen(conversation: Conversation, kind: Kind, **ids: ObjectId) -> int:
    """Something other than a message: the version that it made."""
    changed = await Conversation.get_pymongo_collection().find_one_and_update(
        {"_id": conversation.id}, {"$inc": {"version": 1}}, return_document=ReturnDocument.AFTER
    )
    assert changed is not None
    version: int = changed["version"]
    await crud_conversation_event.add(conversation.id, version, kind, dict(ids))
    return version


async def say(client: AsyncClient, conversation: Conversation, user: SignedInUser, content: str = "Hello") -> Any:
    said = await client.post(f"{BASE}/{conversation.id}/messages", headers=user.headers, json={"content": content})
    assert said.status_code == 201
    return said.json()


def ids(events: list[Event]) -> list[str | None]:
    return [event.id for event in events]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the hub, many times as fast."""
    monkeypatch.setattr(event_hub, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(event_hub, "_TICK_SECONDS", 0.01)


@pytest.fixture(autouse=True)
def _nobody_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_service, "_typed_at", {})


class TestStream:
    async def test_tells_of_a_message(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(username="ada"), await make_signed_in()
        tea = await make_conversation(ada, ben)
        async with opened(client, tea.id, ben.headers) as stream:
            ready = await stream.next()
            said = await say(client, tea, ada, "Hello\nyou")
            created = await stream.next()

        assert ready == Event("1-0", "ready", {"conversation_id": str(tea.id)})
        assert created == Event("2-1", "message.created", said)
        assert said["user"] == {"id": str(ada.id), "username": "ada"}

    async def test_is_one_that_no_proxy_keeps(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        async with opened(client, (await make_conversation(ada)).id, ada.headers) as stream:
            first = await stream.block()

        assert stream.status == 200
        assert stream.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert (stream.headers["cache-control"], stream.headers["x-accel-buffering"]) == ("no-store", "no")
        assert int(stream.headers["x-ratelimit-remaining"]) == 99999
        assert first is not None
        assert 1000 <= int(first.split("\n")[0].removeprefix("retry: ")) <= 3000

    async def test_tells_only_of_its_conversation(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea, coffee = await make_conversation(ada), await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as stream:
            await stream.next()
            await say(client, coffee, ada, "Coffee")
            await say(client, tea, ada, "Tea")

            created = await stream.next()

        assert created is not None
        assert created.data["content"] == "Tea"

    async def test_names_who_joined(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_user(username="ben")
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as stream:
            await stream.next()
            await happen(tea, Kind.PARTICIPANT_ADDED, user_id=ben.id)

            added = await stream.next()

        person = {"id": str(ben.id), "username": "ben"}
        assert added == Event("2-0", "participant.added", {"conversation_id": str(tea.id), "user": person})

    async def test_shows_a_changed_message(self, client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada")
        tea = await make_conversation(ada)
        [message] = await make_messages(tea, by=ada)
        async with opened(client, tea.id, ada.headers) as stream:
            await stream.next()
            path = f"{BASE}/{tea.id}/messages/{message.id}"
            assert (await client.patch(path, headers=ada.headers, json={"content": "Better"})).status_code == 200

            updated = await stream.next()

        assert updated is not None
        assert (updated.id, updated.type) == ("3-1", "message.updated")
        assert (updated.data["id"], updated.data["content"]) == (str(message.id), "Better")
        assert updated.data["user"]["username"] == "ada"

    async def test_names_a_message_that_is_gone(self, client: AsyncClient) -> None:
        ada, message_id = await make_signed_in(), ObjectId()
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as stream:
            await stream.next()
            await happen(tea, Kind.MESSAGE_DELETED, message_id=message_id)

            deleted = await stream.next()

        names = {"conversation_id": str(tea.id), "message_id": str(message_id)}
        assert deleted == Event("2-0", "message.deleted", names)

    async def test_is_made_once_for_all(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        made = []
        frames_of = event_frames.frames_of

        async def counted(entries: Any) -> list[bytes]:
            made.extend(entries)
            return await frames_of(entries)

        monkeypatch.setattr(event_frames, "frames_of", counted)
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(opened(client, tea.id, ada.headers)) for _ in range(5)]
            await say(client, tea, ada)
            told = [await stream.take(2) for stream in streams]

        assert [ids(events) for events in told] == [["1-0", "2-1"]] * 5
        assert len(made) == 1

    @pytest.mark.usefixtures("quick")
    async def test_shows_that_it_is_alive(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        async with opened(client, (await make_conversation(ada)).id, ada.headers) as stream:
            blocks = [await stream.block() for _ in range(3)]

        assert blocks[1:] == [": heartbeat", ": heartbeat"]

    async def test_leaves_nothing_behind(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        hub = get_hub()
        async with opened(client, tea.id, ada.headers) as stream:
            await stream.next()
            assert len(hub._subscriptions()) == 1

        assert (hub._channels, hub._of_holder, hub._watch._of_tag) == ({}, {}, {})

    @pytest.mark.parametrize("is_error", [True, False])
    async def test_ends_with_the_application_whatever_the_driver_makes_of_that(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch, *, is_error: bool
    ) -> None:
        is_asked, has_swallowed = asyncio.Event(), asyncio.Event()

        async def renewed(by: Principal, **_: Any) -> Principal:
            is_asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                if has_swallowed.is_set():
                    raise
                has_swallowed.set()
                if is_error:
                    raise ConnectionFailure("operation cancelled") from error
            return by

        async with AsyncExitStack() as stack, serve() as client:
            ada = await make_signed_in()
            tea = await make_conversation(ada)
            monkeypatch.setattr(auth_service, "renewed", renewed)
            stream = await stack.enter_async_context(opened(client, tea.id, ada.headers))
            await is_asked.wait()
            checker = next(task for task in asyncio.all_tasks() if task.get_name() == "event_guard")
            checker.cancel()
            await asyncio.wait([checker], timeout=5)
            has_ended = checker.done()
            checker.cancel()
            await stream.next()

        assert has_ended

    async def test_ends_with_the_application(self, serve: Serve) -> None:
        async with AsyncExitStack() as stack:
            async with serve() as client:
                ada = await make_signed_in()
                tea = await make_conversation(ada)
                stream = await stack.enter_async_context(opened(client, tea.id, ada.headers))
                await stream.next()

            assert await stream.rest() == []


class TestResuming:
    async def test_goes_on_behind_the_event(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        for number in range(5):
            await say(client, tea, ada, f"cup {number}")

        async with opened(client, tea.id, ada.headers, last_event_id="3-2") as stream:
            told = await stream.take(4)
            await say(client, tea, ada, "cup 5")
            told += await stream.take(1)

        assert ids(told) == ["3-2", "4-3", "5-4", "6-5", "7-6"]
        assert [event.data["content"] for event in told[1:]] == ["cup 2", "cup 3", "cup 4", "cup 5"]

    async def test_tells_all_in_order_page_by_page(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_user()
        tea = await make_conversation(ada)
        for number in range(150):
            if number % 3 or number > 100:
                await happen(tea, Kind.CONVERSATION_UPDATED if number % 2 else Kind.PARTICIPANT_READ, user_id=ben.id)
            else:
                await say(client, tea, ada)

        async with opened(client, tea.id, ada.headers, last_event_id="1-0") as stream:
            told = await stream.take(151)
            await say(client, tea, ada)
            told += await stream.take(1)

        versions = [int((event.id or "").partition("-")[0]) for event in told]
        assert versions == list(range(1, 153))
        assert told[-1].id == "152-35"
        assert len([event for event in told if event.type == "message.created"]) == 35

    async def test_takes_the_id_in_the_query(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        await say(client, tea, ada)
        async with answer_of(client, f"{BASE}/{tea.id}/events?last_event_id=1-0", ada.headers) as stream:
            assert ids(await stream.take(2)) == ["1-0", "2-1"]

    async def test_does_not_repeat_what_passes(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        tea = await make_conversation(ada, ben)
        assert (await client.post(f"{BASE}/{tea.id}/typing", headers=ben.headers)).status_code == 204
        await say(client, tea, ada)
        async with opened(client, tea.id, ada.headers, last_event_id="1-0") as stream:
            assert ids(await stream.take(2)) == ["1-0", "2-1"]

    async def test_says_when_something_is_no_longer_known(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        for _ in range(3):
            await happen(tea, Kind.CONVERSATION_UPDATED)
        await ConversationEvent.find({"version": {"$lt": 4}}).delete()
        await say(client, tea, ada)

        async with opened(client, tea.id, ada.headers, last_event_id="1-0") as stream:
            told = await stream.take(4)

        assert [event.type for event in told] == ["ready", "reload", "conversation.updated", "message.created"]
        assert ids(told) == ["1-0", None, "4-0", "5-1"]

    async def test_says_so_also_of_the_latest(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada, version=4)
        async with opened(client, tea.id, ada.headers, last_event_id="1-0") as stream:
            told = await stream.take(2)
            await say(client, tea, ada)
            told += await stream.take(1)

        assert [event.type for event in told] == ["ready", "reload", "message.created"]

    @pytest.mark.parametrize("foreign", ["abc", "1", "1-0-0", "-1-0", "9-0", "1-9", "1-\u0660", "9" * 40 + "-1"])
    async def test_refuses_an_id_of_elsewhere(self, client: AsyncClient, foreign: str) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)

        answer = await client.get(f"{BASE}/{tea.id}/events", params={"last_event_id": foreign}, headers=ada.headers)

        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert get_hub()._channels == {}

    @pytest.mark.parametrize("forged", ["4-0", "4-1", "1-1", "2-2", "5-2", "6-2"])
    async def test_refuses_an_id_that_no_event_ever_had(self, client: AsyncClient, forged: str) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        await say(client, tea, ada)
        await happen(tea, Kind.CONVERSATION_UPDATED)
        await say(client, tea, ada)
        await say(client, tea, ada)
        async with opened(client, tea.id, ada.headers, last_event_id="3-1") as stream:
            assert ids(await stream.take(3)) == ["3-1", "4-2", "5-3"]

        async with opened(client, tea.id, ada.headers, last_event_id=forged) as refused:
            assert refused.status == 400

    async def test_keeps_little_of_large_messages_while_they_are_not_taken(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        for number in range(5):
            await say(client, tea, ada, f"{number}" + "é" * 31_000)
        kept = []
        fitting = event_service._fitting

        def seen(made: list[bytes]) -> int:
            kept.append(sum(map(len, made[: fitting(made)])))
            return fitting(made)

        monkeypatch.setattr(event_service, "_fitting", seen)
        async with opened(client, tea.id, ada.headers, last_event_id="1-0") as stream:
            told = await stream.take(6)

        assert ids(told) == ["1-0", "2-1", "3-2", "4-3", "5-4", "6-5"]
        assert max(kept) <= 256 * 1024
        assert len(kept) == 2

    async def test_begins_where_no_failover_can_take_it_back(self, serve: Serve, commands: Commands) -> None:
        async with serve():
            ada = await make_signed_in()
            tea = await make_conversation(ada)
            commands.taken()
            await crud_event_log.require_head(tea.id, user_id=ada.id)

            [read] = commands.taken()

        assert (read.name, read.shape["readConcern"]) == ("find", {"level": None})

    async def test_misses_nothing_that_is_written_meanwhile(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": None})
        tea = await make_conversation(ada)
        writer = asyncio.create_task(self._write(client, tea, ada, 60))
        told: list[Event] = []
        last = "1-0"
        while len(told) < 60:
            async with opened(client, tea.id, ada.headers, last_event_id=last) as stream:
                await stream.next()
                some = await stream.take(min(7, 60 - len(told)))
            told += some
            last = some[-1].id or ""
        await writer

        assert [event.data["seq"] for event in told] == list(range(1, 61))

    @staticmethod
    async def _write(client: AsyncClient, conversation: Conversation, user: SignedInUser, count: int) -> None:
        for _ in range(count):
            await say(client, conversation, user)


class TestBatch:
    async def test_is_told_message_by_message(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": None})
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as stream:
            body = {"messages": [{"content": f"cup {number}"} for number in range(500)]}
            path = f"{BASE}/{tea.id}/messages/batch"
            assert (await client.post(path, headers=ada.headers, json=body)).status_code == 201

            told = await stream.take(501)

        assert ids(told) == [f"{number + 1}-{number}" for number in range(501)]
        assert [event.data["content"] for event in told[1:]] == [f"cup {number}" for number in range(500)]


class TestOrder:
    async def test_is_that_of_versions_whatever_comes_first(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as stream:
            await stream.next()
            await self._write_backwards(tea)
            await say(client, tea, ada)

            told = await stream.take(4)

        assert ids(told) == ["2-0", "3-0", "4-0", "5-1"]

    @staticmethod
    @transactional
    async def _write_backwards(conversation: Conversation) -> None:
        await Conversation.get_pymongo_collection().update_one({"_id": conversation.id}, {"$inc": {"version": 3}})
        for version in (4, 3, 2):
            await crud_conversation_event.add(conversation.id, version, Kind.CONVERSATION_UPDATED, {})

    async def test_does_not_wait_for_a_version_that_nothing_tells_of(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as stream:
            await stream.next()
            await Conversation.get_pymongo_collection().update_one({"_id": tea.id}, {"$inc": {"version": 2}})
            await say(client, tea, ada)

            assert ids(await stream.take(1)) == ["4-1"]


class TestEnd:
    async def test_comes_with_ones_removal(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        tea = await make_conversation(ada, ben)
        async with (
            opened(client, tea.id, ada.headers) as of_ada,
            opened(client, tea.id, ben.headers) as of_ben,
        ):
            removed = await client.delete(f"{BASE}/{tea.id}/participants/{ben.id}", headers=ada.headers)
            assert removed.status_code == 200
            await say(client, tea, ada, "He is gone")

            of_the_removed = await of_ben.rest()
            of_the_other = await of_ada.take(3)

        assert [event.type for event in of_the_removed] == ["ready", "participant.removed"]
        assert [event.type for event in of_the_other] == ["ready", "participant.removed", "message.created"]

    async def test_comes_with_a_removal_that_is_read_late(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The removal is committed when the client has been let in, and has not begun to listen."""
        ada, ben = await make_signed_in(), await make_signed_in()
        tea = await make_conversation(ada, ben)
        require_head = crud_event_log.require_head

        async def and_then_removed(*args: Any, **kwargs: Any) -> Any:
            head = await require_head(*args, **kwargs)
            version = await happen(tea, Kind.PARTICIPANT_REMOVED, user_id=ben.id)
            await say(client, tea, ada, "He is gone")
            channel = get_hub()._channels[tea.id]
            async with asyncio.timeout(5):
                while channel.heard < version + 1:  # noqa: ASYNC110 - the feed has no event for it
                    await asyncio.sleep(0.005)
            return head

        monkeypatch.setattr(crud_event_log, "require_head", and_then_removed)
        async with opened(client, tea.id, ben.headers) as stream:
            assert [event.type for event in await stream.rest()] == ["ready", "participant.removed"]

    async def test_does_not_come_with_a_removal_that_was_undone(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        tea = await make_conversation(ada, ben)
        await happen(tea, Kind.PARTICIPANT_REMOVED, user_id=ben.id)
        await happen(tea, Kind.PARTICIPANT_ADDED, user_id=ben.id)
        async with opened(client, tea.id, ben.headers, last_event_id="1-0") as stream:
            told = await stream.take(3)
            await say(client, tea, ada)
            told += await stream.take(1)

        assert ids(told) == ["1-0", "2-0", "3-0", "4-1"]

    async def test_does_not_come_for_who_reads_everything(self, client: AsyncClient) -> None:
        ada, admin = await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        service = await make_api_key("conversations:read")
        tea = await make_conversation(ada, admin)
        for headers in (admin.headers, service.headers):
            async with opened(client, tea.id, headers) as stream:
                await stream.next()
                await happen(tea, Kind.PARTICIPANT_REMOVED, user_id=admin.id)
                await say(client, tea, ada)

                assert [event.type for event in await stream.take(2)] == ["participant.removed", "message.created"]

    async def test_comes_with_that_of_the_conversation(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        service = await make_api_key("conversations:read")
        tea = await make_conversation(ada)
        async with (
            opened(client, tea.id, ada.headers) as of_ada,
            opened(client, tea.id, service.headers) as of_service,
        ):
            assert (await client.delete(f"{BASE}/{tea.id}", headers=ada.headers)).status_code == 204

            for stream in (of_ada, of_service):
                assert [event.type for event in await stream.rest()] == ["ready", "conversation.deleted"]

    async def test_comes_with_the_purge_of_who_took_part_alone(self, client: AsyncClient) -> None:
        ada, service = await make_signed_in(), await make_api_key("conversations:read")
        tea = await make_conversation(ada)
        async with opened(client, tea.id, service.headers) as stream:
            await archive(ada, days_ago=31)
            await purge_service.purge_due()

            assert [event.type for event in await stream.rest()] == ["ready", "conversation.deleted"]

    async def test_does_not_come_for_others_with_the_purge_of_one(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        tea = await make_conversation(ada, ben)
        async with opened(client, tea.id, ben.headers) as stream:
            await archive(ada, days_ago=31)
            await purge_service.purge_due()
            await say(client, tea, ben)
            told = await stream.take(3)

        assert [event.type for event in told] == ["ready", "participant.removed", "message.created"]
        assert told[1].data["owner_id"] == str(ben.id)

    async def test_comes_with_that_of_the_session(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        other = await sign_in(ada)
        tea = await make_conversation(ada)
        async with (
            opened(client, tea.id, ada.headers) as ended,
            opened(client, tea.id, other.headers) as other_stream,
        ):
            assert (await client.post("/api/v1/auth/logout", headers=ada.headers)).status_code == 204

            assert [event.type for event in await ended.rest()] == ["ready"]
            await say(client, tea, other)
            assert len(await other_stream.take(2)) == 2

    async def test_comes_with_that_of_the_session_between_the_look_at_it_and_the_beginning(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serve(auth_cache_seconds=0) as client:  # so that nothing tells of it later
            ada = await make_signed_in()
            tea = await make_conversation(ada)
            join = EventHub.join

            async def join_late(hub: EventHub, subscription: Subscription) -> None:
                assert (await client.post("/api/v1/auth/logout", headers=ada.headers)).status_code == 204
                await join(hub, subscription)

            monkeypatch.setattr(EventHub, "join", join_late)
            async with opened(client, tea.id, ada.headers) as stream:
                assert [event.type for event in await stream.rest()] == ["ready"]

    async def test_comes_with_a_new_password_only_for_the_sessions_that_it_ends(self, serve: Serve) -> None:
        async with serve(auth_cache_seconds=0) as client:  # so that both are looked at together, and only once
            ada = await make_signed_in()
            other = await sign_in(ada)
            tea = await make_conversation(ada)
            async with opened(client, tea.id, other.headers) as ended, opened(client, tea.id, ada.headers) as kept:
                body = {"current_password": ada.password, "password": "parsnip-Lantern-42-orbit"}
                changed = await client.post("/api/v1/auth/password/change", headers=ada.headers, json=body)
                assert changed.status_code == 204, changed.text

                assert [event.type for event in await ended.rest()] == ["ready"]
                await say(client, tea, ada)
                assert ids(await kept.take(2)) == ["1-0", "2-1"]

    async def test_comes_with_the_account_that_is_deactivated(self, client: AsyncClient) -> None:
        ada, admin = await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        key = await make_api_key("conversations:read", owner=ada)
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as one, opened(client, tea.id, key.headers) as other:
            changed = await client.patch(f"/api/v1/users/{ada.id}", headers=admin.headers, json={"is_active": False})
            assert changed.status_code == 200

            for stream in (one, other):
                assert [event.type for event in await stream.rest()] == ["ready"]

    async def test_comes_when_a_role_no_longer_reads_everything(self, client: AsyncClient) -> None:
        ada, admin = await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        root = await make_signed_in(role=Role.SUPERUSER)
        tea = await make_conversation(ada)
        async with opened(client, tea.id, admin.headers) as stream:
            changed = await client.patch(f"/api/v1/users/{admin.id}", headers=root.headers, json={"role": "user"})
            assert changed.status_code == 200

            assert [event.type for event in await stream.rest()] == ["ready"]

    @pytest.mark.parametrize(
        "change", [{"is_active": False}, {"scopes": ["items:read"]}, {"allowed_ips": ["203.0.113.9"]}]
    )
    async def test_comes_with_that_of_the_right_of_a_key(self, client: AsyncClient, change: dict[str, Any]) -> None:
        ada, service = await make_signed_in(), await make_api_key("admin")
        key = await make_api_key("conversations:read")
        tea = await make_conversation(ada)
        async with opened(client, tea.id, key.headers) as stream:
            path = f"/api/v1/api-keys/{key.document.id}"
            if "is_active" in change:
                changed = await client.post(f"{path}/deactivate", headers=service.headers)
            else:
                changed = await client.patch(path, headers=service.headers, json=change)
            assert changed.status_code == 200, changed.text

            assert [event.type for event in await stream.rest()] == ["ready"]

    async def test_does_not_come_with_what_changes_no_right(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as stream:
            await stream.next()
            changed = await client.patch("/api/v1/users/me", headers=ada.headers, json={"full_name": "Ada Lovelace"})
            assert changed.status_code == 200
            async with asyncio.timeout(5):
                while get_hub()._watch._suspects:  # noqa: ASYNC110 - the check has no event for it
                    await asyncio.sleep(0.005)

            await say(client, tea, ada)
            assert ids(await stream.take(1)) == ["2-1"]

    @pytest.mark.usefixtures("quick")
    async def test_comes_with_that_of_the_token(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        principal = Principal.of_user(ada.id, name=None, role=Role.USER, session_id=ada.session.id)
        token, _ = new_access_token(principal, session_ends_at=utc_now() + timedelta(seconds=2))
        async with opened(client, tea.id, {"Authorization": f"Bearer {token}"}) as stream:
            assert [event.type for event in await stream.rest()] == ["ready"]

        assert (await client.get(f"{BASE}/{tea.id}", headers=ada.headers)).status_code == 200

    async def test_comes_with_that_of_a_key_that_was_to_live_longer(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            key_expiry_service, "_deactivate_some", AsyncMock(return_value=0)
        )  # nobody waits for the job
        ada, service = await make_signed_in(), await make_api_key("admin")
        key = await make_api_key("conversations:read")
        tea = await make_conversation(ada)
        async with opened(client, tea.id, key.headers) as stream:
            path = f"/api/v1/api-keys/{key.document.id}/rotate"
            rotated = await client.post(path, headers=service.headers, json={"grace_seconds": 2})
            assert rotated.status_code == 200, rotated.text
            await say(client, tea, ada)

            assert [event.type for event in await stream.rest()] == ["ready", "message.created"]

    async def test_comes_for_each_token_of_a_session_with_its_own(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        principal = Principal.of_user(ada.id, name=None, role=Role.USER, session_id=ada.session.id)
        brief, _ = new_access_token(principal, session_ends_at=utc_now() + timedelta(seconds=2))
        async with (
            opened(client, tea.id, ada.headers) as lasting,
            opened(client, tea.id, {"Authorization": f"Bearer {brief}"}) as ending,
        ):
            get_hub()._watch.suspect(ada.id)  # so that both are looked at together

            assert [event.type for event in await ending.rest()] == ["ready"]
            await say(client, tea, ada)
            assert ids(await lasting.take(2)) == ["1-0", "2-1"]

    @pytest.mark.usefixtures("quick")
    async def test_comes_with_that_of_the_session_without_a_cache(self, serve: Serve) -> None:
        async with serve(auth_cache_seconds=0) as client:
            ada = await make_signed_in()
            tea = await make_conversation(ada)
            async with opened(client, tea.id, ada.headers) as stream:
                await ada.session.delete()

                assert [event.type for event in await stream.rest()] == ["ready"]

    @pytest.mark.usefixtures("quick")
    async def test_comes_when_one_no_longer_takes_part_though_nothing_tells_of_it(self, serve: Serve) -> None:
        async with serve(auth_cache_seconds=0) as client:
            ada = await make_signed_in()
            tea = await make_conversation(ada)
            async with opened(client, tea.id, ada.headers) as stream:
                await tea.set({"participants": []})

                assert [event.type for event in await stream.rest()] == ["ready"]


class TestGuard:
    @pytest.mark.usefixtures("client")
    async def test_looks_at_a_few_streams_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        people = [Principal.of_user(ObjectId(), name=None, role=Role.USER, session_id=ObjectId()) for _ in range(20)]
        streams = [Subscription(ObjectId(), by=by, ip=None) for by in people]
        under_way, counts, are_eight = 0, [], asyncio.Event()

        async def renewed(*_: Any, **__: Any) -> None:
            nonlocal under_way
            under_way += 1
            counts.append(under_way)
            if under_way == 8:
                are_eight.set()
            await are_eight.wait()
            await asyncio.sleep(0)
            under_way -= 1

        monkeypatch.setattr(auth_service, "renewed", renewed)
        for stream in streams:
            get_hub()._watch.add(stream)
        async with asyncio.timeout(5):
            for stream in streams:
                assert await stream.take() == []

        assert (len(counts), max(counts)) == (20, 8)


class TestFailure:
    """What can't be read now ends the stream, in order, and is resumed."""

    async def test_to_make_an_event(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as stream:
            await stream.next()
            with monkeypatch.context() as broken:
                broken.setattr(event_frames, "frames_of", self._fail)
                await say(client, tea, ada)
                assert await stream.rest() == []

        async with opened(client, tea.id, ada.headers, last_event_id="1-0") as again:
            assert ids(await again.take(2)) == ["1-0", "2-1"]

    async def test_to_read_what_was_missed(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        await say(client, tea, ada)
        monkeypatch.setattr(crud_event_log, "page", self._fail)
        async with opened(client, tea.id, ada.headers, last_event_id="1-0") as stream:
            assert ids(await stream.rest()) == ["1-0"]

    async def test_to_read_what_was_missed_is_that_of_one_client_alone(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        await say(client, tea, ada)
        page, is_asked_twice, may_go_on = crud_event_log.page, asyncio.Event(), asyncio.Event()
        reads = iter([0, 1])

        async def first_fails(*args: Any, **kwargs: Any) -> Any:
            if next(reads) == 0:
                await is_asked_twice.wait()
                raise ConnectionFailure
            is_asked_twice.set()
            await may_go_on.wait()
            return await page(*args, **kwargs)

        monkeypatch.setattr(crud_event_log, "page", first_fails)
        async with (
            opened(client, tea.id, ada.headers, last_event_id="1-0") as broken,
            opened(client, tea.id, ada.headers, last_event_id="1-0") as stream,
        ):
            assert ids(await broken.rest()) == ["1-0"]
            may_go_on.set()
            told = await stream.take(2)
            await happen(tea, Kind.CONVERSATION_UPDATED)
            told += await stream.take(1)

        assert ids(told) == ["1-0", "2-1", "3-1"]

    @staticmethod
    async def _fail(*_: Any, **__: Any) -> Any:
        raise ConnectionFailure


class TestRight:
    async def test_is_that_of_participants(self, client: AsyncClient) -> None:
        ada, eve = await make_signed_in(), await make_signed_in()
        tea = await make_conversation(ada)

        for url in (f"{BASE}/{tea.id}/events", f"{BASE}/{ObjectId()}/events", f"{BASE}/nonsense/events"):
            answer = await client.get(url, headers=eve.headers)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert get_hub()._channels == {}

    async def test_takes_a_scope(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("items:read", owner=ada)
        tea = await make_conversation(ada)

        answer = await client.get(f"{BASE}/{tea.id}/events", headers=key.headers)

        assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")


class TestLimit:
    async def test_holds_for_all_streams_of_an_account_that_are_open(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(event_service, "_STREAMS_OF_AN_ACCOUNT", 2)
        ada, ben = await make_signed_in(), await make_signed_in()
        tea = await make_conversation(ada, ben)
        async with opened(client, tea.id, ada.headers) as first:
            async with opened(client, tea.id, (await make_api_key("read", owner=ada)).headers):
                refused = await client.get(f"{BASE}/{tea.id}/events", headers=ada.headers)
                async with opened(client, tea.id, ben.headers) as of_another:
                    assert of_another.status == 200
            async with opened(client, tea.id, ada.headers) as again:
                assert again.status == 200
            assert first.status == 200

        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert int(refused.headers["retry-after"]) > 0


class TestSlowClient:
    """What a subscription keeps for one; that the connection ends is tested on a server."""

    @pytest.mark.parametrize(("size", "most"), [(100, 1000), (10_000, 26), (300_000, 1)])
    async def test_is_cut_off_before_it_uses_memory(self, size: int, most: int) -> None:
        subscription = Subscription(ObjectId(), by=Principal.system("test"), ip=None)
        event = event_subscription.Event(b"x" * size)

        taken = [subscription.put(event) for _ in range(most + 1)]

        assert taken == [True] * most + [False]
        assert subscription.is_over
        assert await subscription.take() == []

    async def test_may_lag_behind_again_once_it_has_caught_up(self) -> None:
        subscription = Subscription(ObjectId(), by=Principal.system("test"), ip=None)
        for _ in range(3):
            assert [subscription.put(event_subscription.Event(b"x" * 100_000)) for _ in range(2)] == [True, True]
            assert len(await subscription.take()) == 2

    async def test_gets_no_heartbeats_in_front_of_what_it_has_not_taken(self) -> None:
        subscription = Subscription(ObjectId(), by=Principal.system("test"), ip=None)
        for _ in range(3):
            subscription.beat(event_subscription.Event(b": heartbeat\n\n"))

        assert len(await subscription.take()) == 1

    async def test_that_was_cut_off_stays_cut_off(self) -> None:
        subscription = Subscription(ObjectId(), by=Principal.system("test"), ip=None)
        subscription.listen(1)
        subscription.end()

        subscription.beat(event_subscription.Event(b": heartbeat\n\n"))

        assert subscription.is_over
        assert await subscription.take() == []

    @pytest.mark.usefixtures("client")
    async def test_that_was_removed_hears_nothing_behind_that(self) -> None:
        ada, tea = ObjectId(), ObjectId()
        by = Principal.of_user(ada, name=None, role=Role.USER, session_id=ObjectId())
        subscription = Subscription(tea, by=by, ip=None)
        subscription.listen(1)
        removal = crud_event_log.Entry(tea, 2, None, "participant.removed", {"user_id": ada})
        subscription.put(event_subscription.Event(b"removed", removal))
        taken = await subscription.take()  # and the client is slow to receive it

        subscription.beat(event_subscription.Event(b": heartbeat\n\n"))

        later = crud_event_log.Entry(tea, 3, 1, "message.created", {})
        assert not subscription.wants(event_subscription.Event(b"secret", later))
        assert ([event.frame for event in taken], await subscription.take()) == ([b"removed"], [])


class TestTyping:
    async def test_is_told_to_the_others(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(username="ada"), await make_signed_in()
        tea = await make_conversation(ada, ben)
        async with (
            opened(client, tea.id, ada.headers) as of_ada,
            opened(client, tea.id, ben.headers) as of_ben,
        ):
            assert (await client.post(f"{BASE}/{tea.id}/typing", headers=ada.headers)).status_code == 204
            await say(client, tea, ada)

            person = {"id": str(ada.id), "username": "ada"}
            typing = Event(None, "typing", {"conversation_id": str(tea.id), "user": person})
            assert (await of_ben.take(3))[1:2] == [typing]
            assert [event.type for event in await of_ada.take(2)] == ["ready", "message.created"]

    async def test_is_told_once_in_a_while(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        tea, coffee = await make_conversation(ada, ben), await make_conversation(ada)
        for conversation, user in ((tea, ada), (tea, ada), (tea, ben), (coffee, ada)):
            url = f"{BASE}/{conversation.id}/typing"
            assert (await client.post(url, headers=user.headers)).status_code == 204
        told = [
            (event.conversation_id, event.data["user_id"]) for event in await ConversationEvent.find_all().to_list()
        ]
        assert sorted(told) == sorted([(tea.id, ada.id), (tea.id, ben.id), (coffee.id, ada.id)])

        monkeypatch.setattr(event_service, "_TYPING_EVERY_SECONDS", 0.0)
        await client.post(f"{BASE}/{tea.id}/typing", headers=ada.headers)
        assert await ConversationEvent.find_all().count() == 4

    async def test_is_for_who_takes_part(self, client: AsyncClient) -> None:
        ada, eve, admin = await make_signed_in(), await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        service = await make_api_key("conversations:write")
        url = f"{BASE}/{(await make_conversation(ada)).id}/typing"

        answers = [await client.post(url, headers=each.headers) for each in (eve, admin, service)]

        assert [answer.status_code for answer in answers] == [404, 403, 403]
        assert await ConversationEvent.find_all().count() == 0

    async def test_is_forgotten_within_a_minute_or_two(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await client.post(f"{BASE}/{(await make_conversation(ada)).id}/typing", headers=ada.headers)

        [event] = await ConversationEvent.find_all().to_list()
        assert timedelta(seconds=55) < event.expires_at - utc_now() <= timedelta(seconds=60)
        assert event.version is None


class TestFeed:
    async def test_is_one_however_many_follow(self, client: AsyncClient) -> None:
        ada, before = await make_signed_in(), await self._cursors()
        async with AsyncExitStack() as stack:
            for _ in range(5):
                tea = await make_conversation(ada)
                await stack.enter_async_context(opened(client, tea.id, ada.headers))
            assert len(await self._cursors() - before) == 1

    async def test_ends_when_nobody_follows(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(event_hub, "_LINGER_SECONDS", 0.0)
        ada, before = await make_signed_in(), await self._cursors()
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers):
            assert len(await self._cursors() - before) == 1
        async with asyncio.timeout(5):
            while await self._cursors() - before:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.01)

        async with opened(client, tea.id, ada.headers) as stream:
            await say(client, tea, ada)
            assert len(await stream.take(2)) == 2

    async def test_that_broke_goes_on_where_it_was(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tea = await make_conversation(ada)
        async with opened(client, tea.id, ada.headers) as stream:
            for _ in range(3):
                await self._kill()
                await say(client, tea, ada)
                await say(client, tea, ada)

            assert ids(await stream.take(7)) == ["1-0", "2-1", "3-2", "4-3", "5-4", "6-5", "7-6"]

    async def test_that_can_not_go_on_ends_all_streams(
        self, serve: Serve, database_url: str, mongodb: MongoClient[Any]
    ) -> None:
        name = f"gone_{uuid4().hex[:8]}"
        async with serve(database_url=database_url.replace("/test_", f"/{name}_")) as client:
            ada = await make_signed_in()
            tea = await make_conversation(ada)
            try:
                async with opened(client, tea.id, ada.headers) as stream:
                    mongodb.drop_database(Message.get_pymongo_collection().database.name)

                    assert [event.type for event in await stream.rest()] == ["ready"]
            finally:
                mongodb.drop_database(Message.get_pymongo_collection().database.name)

    async def test_that_is_not_opened_in_time_is_a_database_that_does_not_answer(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(event_hub, "_OPENING_SECONDS", 0.0)
        ada = await make_signed_in()
        tea = await make_conversation(ada)

        answer = await client.get(f"{BASE}/{tea.id}/events", headers=ada.headers)

        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert get_hub()._channels == {}

    async def _kill(self) -> None:
        """As an operator ends a cursor, or a server that is overtaxed."""
        async with asyncio.timeout(5):
            while not (cursors := await self._cursors()):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.005)
        killed = await Message.get_pymongo_collection().database.command(
            {"killCursors": "$cmd.aggregate", "cursors": list(cursors)}
        )
        assert killed["cursorsKilled"]

    @staticmethod
    async def _cursors() -> set[int]:
        """The change streams on what is said here, between two reads and during one."""
        database = Message.get_pymongo_collection().database
        stage: dict[str, Any] = {"$currentOp": {"idleCursors": True}}
        rows = [row async for row in await database.client.admin.aggregate([stage])]
        here = [
            row["cursor"] for row in rows if row.get("ns", "").startswith(f"{database.name}.$cmd") and "cursor" in row
        ]
        return {cursor["cursorId"] for cursor in here if "conversation_events" in str(cursor["originatingCommand"])}
