import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import uvicorn
from bson import ObjectId
from fastapi import FastAPI
from httpx import AsyncClient

from app.api import json_stream
from app.core.config import Settings
from app.core.scopes import Role
from app.crud import crud_export
from app.db.mongo import find_batch
from app.main import create_app
from app.models.audit_event import AuditActor, AuditEvent, AuditTarget
from app.models.conversation import Conversation
from app.models.message import Message
from app.models.user import Mfa, PendingMfa, User
from tests.conftest import no_event_can_be_written, running
from tests.factories import (
    SignedInUser,
    StoredUser,
    make_api_key,
    make_conversation,
    make_message_log,
    make_messages,
    make_signed_in,
    make_upload,
    make_user,
    sign_in,
)

URL = "/api/v1/users/me/export"
DAY = datetime(2026, 3, 1, tzinfo=UTC)
Raw = dict[str, Any]


async def export_of(client: AsyncClient, headers: dict[str, str]) -> Raw:
    response = await client.get(URL, headers=headers)
    assert response.status_code == 200, response.text
    content: Raw = response.json()
    return content


async def insert(collection: str, **fields: Any) -> ObjectId:
    database = User.get_pymongo_collection().database
    inserted: ObjectId = (await database[collection].insert_one(fields)).inserted_id
    return inserted


async def record(actor: ObjectId | None, target: ObjectId | None, *, kind: str = "user", **more: Any) -> AuditEvent:
    event = AuditEvent(
        actor=AuditActor(kind=more.pop("actor_kind", "user"), id=actor, name="somebody"),
        action="user:updated",
        target=AuditTarget(kind=kind, id=target),
        outcome="success",
        ip="192.0.2.7",
        user_agent="browser",
        request_id="r1",
        details={"fields": ["username"]},
    )
    await event.insert()
    return event


def names_in(value: Any) -> set[str]:
    """Every field name at any depth."""
    if isinstance(value, dict):
        return set(value) | {name for inner in value.values() for name in names_in(inner)}
    return {name for inner in value for name in names_in(inner)} if isinstance(value, list) else set()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Raw, Raw | None, int]]:
    """Every read of an export: collection, filter, order and how many rows came back."""
    seen: list[tuple[str, Raw, Raw | None, int]] = []

    async def find(collection: str, where: Raw, **options: Any) -> list[Raw]:
        rows = await find_batch(collection, where, **options)
        seen.append((collection, where, options.get("sort"), len(rows)))
        return rows

    monkeypatch.setattr(crud_export, "find_batch", find)
    return seen


class TestContent:
    async def test_is_the_account(self, client: AsyncClient) -> None:
        ada = await make_signed_in(
            email="Ada@example.com",
            username="ada",
            full_name="Ada L",
            plan="pro",
            credits=7,
            limits={"daily_messages": 9},
            last_login_at=DAY,
            last_login_ip="192.0.2.1",
            password_changed_at=DAY,
            first_verified_at=DAY,
            created_at=DAY,
            updated_at=DAY,
        )

        content = await export_of(client, ada.headers)

        assert list(content) == [
            *("exported_at", "user", "sessions", "api_keys", "items", "uploads", "conversations", "messages"),
            *("usage", "message_logs", "audit_events"),
        ]
        assert abs(datetime.fromisoformat(content["exported_at"]) - datetime.now(UTC)) < timedelta(seconds=10)
        assert content["exported_at"].endswith("Z")
        assert content["user"] == {
            "id": str(ada.id),
            "email": "Ada@example.com",
            "username": "ada",
            "full_name": "Ada L",
            "role": "user",
            "staff_level": None,
            "is_active": True,
            "is_superuser": False,
            "is_verified": False,
            "mfa_enabled": False,
            "plan": "pro",
            "created_at": "2026-03-01T00:00:00Z",
            "updated_at": "2026-03-01T00:00:00Z",
            "last_login_at": "2026-03-01T00:00:00Z",
            "limits": {"daily_messages": 9},
            "credits": 7,
            "password_changed_at": "2026-03-01T00:00:00Z",
            "first_verified_at": "2026-03-01T00:00:00Z",
            "last_login_ip": "192.0.2.1",
        }

    async def test_is_sessions_keys_items_and_usage(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada, name="ci", is_active=False)
        times = {"created_at": DAY, "updated_at": DAY}
        item = await insert("items", owner_id=ada.id, title="Milk", description=None, is_completed=True, **times)
        await insert("usage_counters", user_id=ada.id, day=DAY, messages=3, tokens=40, bytes=0)

        content = await export_of(client, ada.headers)

        (session,), (shown,) = content["sessions"], content["api_keys"]
        assert (session["id"], session["ip"], session["user_agent"]) == (str(ada.session.id), "127.0.0.1", "factory")
        assert session.keys() == {
            *("id", "created_at", "last_used_at", "expires_at", "ip", "user_agent", "device", "has_mfa"),
        }
        assert (shown["id"], shown["key_id"], shown["name"]) == (str(key.document.id), key.document.key_id, "ci")
        assert (shown["scopes"], shown["is_active"], shown["owner_id"]) == (["read"], False, str(ada.id))
        day = "2026-03-01T00:00:00Z"
        assert content["items"] == [
            {
                "id": str(item),
                "title": "Milk",
                "description": None,
                "is_completed": True,
                "created_at": day,
                "updated_at": day,
            }
        ]
        assert content["usage"] == [{"day": day, "messages": 3, "tokens": 40, "bytes": 0}]

    async def test_is_what_services_have_told_of_it_oldest_first_whatever_its_name_was(
        self, client: AsyncClient
    ) -> None:
        ada = await make_signed_in(username="Ada")
        then = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
        later = await make_message_log(ada, timestamp=then + timedelta(hours=1), username="Countess", tokens=40)
        first = await make_message_log(ada, timestamp=then, created_at=DAY, messages=3)

        logs = (await export_of(client, ada.headers))["message_logs"]

        assert logs[0] == {
            "id": str(first.id),
            "username": "Ada",
            "model": "gpt",
            "messages": 3,
            "tokens": None,
            "timestamp": f"{then:%Y-%m-%dT%H:%M:%SZ}",
            "created_at": "2026-03-01T00:00:00Z",
        }
        assert [(log["id"], log["username"], log["tokens"]) for log in logs[1:]] == [(str(later.id), "Countess", 40)]

    async def test_is_the_conversations_it_takes_part_in_and_the_messages_it_wrote(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_user()
        shared, left = await make_conversation(ben, ada, title="Tea"), await make_conversation(ben)
        [hers] = await make_messages(shared, by=ada, content="Mine")
        await make_messages(shared, by=ben, content="From Ben")
        [before] = await make_messages(left, by=ada, content="Before I left")

        content = await export_of(client, ada.headers)

        (conversation,) = content["conversations"]
        assert (conversation["id"], conversation["title"]) == (str(shared.id), "Tea")
        assert (conversation["role"], conversation["participant_count"]) == ("member", 2)
        assert (conversation["message_count"], conversation["created_by"]) == (2, str(ben.id))
        assert [(row["id"], row["content"], row["seq"]) for row in content["messages"]] == [
            (str(hers.id), "Mine 1", 1),
            (str(before.id), "Before I left 1", 1),
        ]
        assert [row["conversation_id"] for row in content["messages"]] == [str(shared.id), str(left.id)]

    async def test_is_the_events_it_acted_in_or_was_the_target_of_once_each(self, client: AsyncClient) -> None:
        ada, admin = await make_signed_in(), await make_user()
        expected = [
            await record(ada.id, ada.id),
            await record(ada.id, ObjectId(), kind="conversation"),
            await record(admin.id, ada.id),
            await record(None, ada.id, actor_kind="anonymous"),
        ]
        await record(admin.id, ObjectId())

        *events, export = (await export_of(client, ada.headers))["audit_events"]

        assert [event["id"] for event in events] == [str(event.id) for event in expected]
        assert (export["action"], export["actor"]["id"]) == ("user:exported", str(ada.id))
        assert events[1]["target"]["kind"] == "conversation"
        assert events[0]["details"] == {"fields": ["username"]}

    async def test_does_not_say_where_others_acted_from(self, client: AsyncClient) -> None:
        ada, admin = await make_signed_in(), await make_user()
        for actor in (ada.id, admin.id):
            await record(actor, ada.id)
        await record(None, ada.id, actor_kind="anonymous")

        events = (await export_of(client, ada.headers))["audit_events"]

        assert [(event["ip"], event["user_agent"]) for event in events[:3]] == [
            ("192.0.2.7", "browser"),
            (None, None),
            ("192.0.2.7", "browser"),
        ]

    async def test_is_what_is_known_of_files(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        document = await make_upload(ada, created_at=DAY, updated_at=DAY, sha256="ab" * 32)

        assert (await export_of(client, ada.headers))["uploads"] == [
            {
                "id": str(document.id),
                "filename": "tea.txt",
                "content_type": "text/plain",
                "size": 11,
                "sha256": "ab" * 32,
                "status": "clean",
                "visibility": "private",
                "conversation_id": None,
                "created_at": "2026-03-01T00:00:00Z",
                "updated_at": "2026-03-01T00:00:00Z",
            }
        ]

    async def test_is_nothing_of_others(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        await make_messages(await make_conversation(ben), 2, by=ben)
        await make_api_key("read", owner=ben)
        await make_api_key("read", created_by=ada.id)
        await insert("items", owner_id=ben.id, title="Bread", created_at=DAY)
        await insert("usage_counters", user_id=ben.id, day=DAY, messages=3)
        await make_message_log(ben)
        await make_upload(ben)

        content = await export_of(client, ada.headers)

        assert {name: len(rows) for name, rows in content.items() if isinstance(rows, list)} == {
            "sessions": 1,
            "api_keys": 0,
            "items": 0,
            "uploads": 0,
            "conversations": 0,
            "messages": 0,
            "usage": 0,
            "message_logs": 0,
            "audit_events": 1,
        }

    async def test_holds_no_secret(self, client: AsyncClient) -> None:
        factor = Mfa(encrypted_secret=b"sealed-1", last_step=1, confirmed_at=DAY, recovery_digests=[b"digest-1"])
        pending = PendingMfa(encrypted_secret=b"sealed-2", created_at=DAY)
        ada = await make_signed_in(mfa=factor, pending_mfa=pending)
        key = await make_api_key("read", owner=ada)
        await make_messages(await make_conversation(ada), by=ada)
        await User.find({"_id": ada.id}).update({"$set": {"added_later": "s3cret"}})

        text = (await client.get(URL, headers=ada.headers)).text

        sounding = {
            name
            for name in names_in(json.loads(text))
            if any(word in name for word in ("password", "hash", "digest", "secret", "token", "pending", "_key"))
        }
        assert sounding == {"api_keys", "password_changed_at", "tokens"}
        for secret in (ada.document.hashed_password, key.text, ada.refresh_token, "sealed-", "digest-1", "s3cret"):
            assert secret not in text
        assert key.document.key_hash.hex() not in text
        assert json.loads(text)["user"]["mfa_enabled"] is True

    async def test_holds_no_address_of_others(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(email="ada@example.com"), await make_user(email="ben@example.com")
        await make_messages(await make_conversation(ada, ben), by=ben)
        await record(ben.id, ada.id)

        text = (await client.get(URL, headers=ada.headers)).text

        assert set(re.findall(r"[\w.]+@[\w.]+", text)) == {"ada@example.com"}

    async def test_gives_null_for_what_older_documents_lack(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await make_messages(await make_conversation(ada), by=ada)
        await Message.get_pymongo_collection().update_many({}, {"$unset": {"model": "", "edited_at": ""}})

        (message,) = (await export_of(client, ada.headers))["messages"]

        assert (message["model"], message["edited_at"]) == (None, None)

    async def test_keeps_every_character(self, client: AsyncClient) -> None:
        ada = await make_signed_in(full_name='Ada "\\" \u2028 \U0001f419')
        await make_messages(await make_conversation(ada), by=ada, content='"]}, \n\t\\ \u00e9\U0001f419')

        content = await export_of(client, ada.headers)

        assert content["user"]["full_name"] == 'Ada "\\" \u2028 \U0001f419'
        assert content["messages"][0]["content"] == '"]}, \n\t\\ \u00e9\U0001f419 1'


class TestAnswer:
    async def test_is_a_file_that_nobody_stores(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await client.get(URL, headers=ada.headers)

        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"
        assert re.fullmatch(
            r'attachment; filename="octopus-export-\d{8}T\d{6}Z\.json"', response.headers["content-disposition"]
        )

    async def test_is_on_the_record_before_it_begins(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        async with no_event_can_be_written():
            response = await client.get(URL, headers=ada.headers)

        assert (response.status_code, response.json()["code"]) == (500, "internal_error")
        await client.get(URL, headers=ada.headers)
        (event,) = await AuditEvent.find({"action": "user:exported"}).to_list()
        assert (event.actor.id, event.target.kind, event.target.id) == (ada.id, "user", ada.id)

    async def test_is_declared(self, client: AsyncClient) -> None:
        document = (await client.get("/openapi.json")).json()

        schema = document["components"]["schemas"]["UserExport"]
        operation = document["paths"][URL]["get"]
        reference = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        assert reference == "#/components/schemas/UserExport"
        assert set(schema["required"]) == set(await export_of(client, (await make_signed_in()).headers))
        assert {"401", "403", "429"} <= operation["responses"].keys()

    async def test_is_given_ten_times_an_hour_whatever_asks(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        again, key = await sign_in(ada), await make_api_key("users:read", owner=ada)
        callers = [ada.headers, again.headers, key.headers]

        answers = [await client.get(URL, headers=callers[at % 3]) for at in range(11)]

        assert [answer.status_code for answer in answers] == [200] * 10 + [429]
        assert answers[10].json()["code"] == "rate_limited"
        assert 1 <= int(answers[10].headers["retry-after"]) <= 3600
        assert (await client.get(URL, headers=ben.headers)).status_code == 200


class TestCallers:
    @pytest.mark.parametrize("role", list(Role))
    async def test_of_every_role_get_all_of_their_own(self, client: AsyncClient, role: Role) -> None:
        caller = await make_signed_in(role=role)
        await make_messages(await make_conversation(caller), by=caller)

        content = await export_of(client, caller.headers)

        assert content["user"]["id"] == str(caller.id)
        assert (len(content["messages"]), content["api_keys"]) == (1, [])

    async def test_with_a_personal_key_act_for_its_owner(self, client: AsyncClient) -> None:
        ada = await make_user()
        key = await make_api_key("read", "api_keys:read", owner=ada)
        await make_messages(await make_conversation(ada), by=ada)

        content = await export_of(client, key.headers)

        (event,) = await AuditEvent.find({"action": "user:exported"}).to_list()
        assert content["user"]["id"] == str(ada.id)
        assert ([row["id"] for row in content["api_keys"]], len(content["messages"])) == ([str(key.document.id)], 1)
        assert (event.actor.kind, event.actor.id, event.target.id) == ("api_key", key.document.id, ada.id)

    @pytest.mark.parametrize(
        ("scopes", "withheld"),
        [
            (["users:read"], {"api_keys", "items", "uploads", "conversations", "messages"}),
            (["read"], {"api_keys"}),
            (["users:read", "conversations:read"], {"api_keys", "items", "uploads"}),
            (["admin"], set()),
        ],
    )
    async def test_with_a_personal_key_get_what_its_scopes_cover(
        self, client: AsyncClient, scopes: list[str], withheld: set[str]
    ) -> None:
        ada = await make_user()
        key = await make_api_key(*scopes, owner=ada)
        await make_messages(await make_conversation(ada), by=ada)

        content = await export_of(client, key.headers)

        assert {name for name, section in content.items() if section is None} == withheld

    async def test_with_a_key_need_the_scope(self, client: AsyncClient) -> None:
        key = await make_api_key("conversations:read", "users:write", owner=await make_user())

        response = await client.get(URL, headers=key.headers)

        assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")

    @pytest.mark.parametrize("scope", ["admin", "users:read"])
    async def test_with_a_service_key_are_nobody(self, client: AsyncClient, scope: str) -> None:
        key = await make_api_key(scope)

        response = await client.get(URL, headers=key.headers)

        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert await AuditEvent.find({"action": "user:exported"}).count() == 0

    async def test_without_credentials_are_refused(self, client: AsyncClient) -> None:
        assert (await client.get(URL)).status_code == 401


class TestSize:
    async def test_of_what_is_held_does_not_grow_with_what_is_exported(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, batches: list[tuple[str, Raw, Raw | None, int]]
    ) -> None:
        ada, ben = await make_signed_in(), await make_user()
        conversation = await make_conversation(ada, ben)
        for _ in range(5):
            await make_messages(conversation, 1000, by=ada, content="x" * 1000)
        await make_messages(conversation, 10, by=ben)
        chunks = self.watch_chunks(monkeypatch)

        content = await export_of(client, ada.headers)

        assert [row["seq"] for row in content["messages"]] == list(range(1, 5001))
        assert {row["content"] for row in content["messages"]} == {f"{'x' * 1000} {seq}" for seq in range(1, 5001)}
        assert max(rows for *_, rows in batches) == 101
        assert sum(1 for collection, *_ in batches if collection == "messages") == 51
        assert sum(chunks) > 5_000_000
        assert max(chunks) < 70_000
        assert len(chunks) < 100

    def watch_chunks(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        sizes: list[int] = []
        json_object = json_stream.json_object

        async def watched(*parts: Any) -> AsyncIterator[bytes]:
            async for chunk in json_object(*parts):
                sizes.append(len(chunk))
                yield chunk

        monkeypatch.setattr("app.api.v1.endpoints.export.json_object", watched)
        return sizes

    @pytest.mark.parametrize("counts", [(100, 1), (99, 2, 100), (100, 100), (50, 200, 50), (1, 101, 99, 101)], ids=str)
    async def test_is_complete_where_a_batch_ends_between_conversations(
        self, client: AsyncClient, counts: tuple[int, ...]
    ) -> None:
        ada, ben = await make_signed_in(), await make_user()
        expected = []
        for count in counts:
            conversation = await make_conversation(ada, ben)
            await make_messages(conversation, 1, by=ben)
            expected += [str(message.id) for message in await make_messages(conversation, count, by=ada)]

        content = await export_of(client, ada.headers)

        assert [row["id"] for row in content["messages"]] == expected

    @pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 201])
    async def test_is_complete_at_the_edges_of_batches(self, client: AsyncClient, count: int) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        if count:
            await make_messages(conversation, count, by=ada)
            for _ in range(count):
                await record(ada.id, ada.id)

        content = await export_of(client, ada.headers)

        assert [row["seq"] for row in content["messages"]] == list(range(1, count + 1))
        assert len({event["id"] for event in content["audit_events"]}) == count + 1

    async def test_of_a_batch_may_be_more_than_one_answer_of_the_database_holds(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await make_messages(conversation, 150, by=ada, content="\U0001f419" * 31_000)

        content = await export_of(client, ada.headers)

        assert [row["seq"] for row in content["messages"]] == list(range(1, 151))


class TestReading:
    async def test_loses_no_conversation_that_is_used_meanwhile(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_signed_in()
        made = [str((await make_conversation(ada)).id) for _ in range(7)]

        async def find(collection: str, where: Raw, **options: Any) -> list[Raw]:
            rows = await find_batch(collection, where, **options)
            for at, conversation_id in enumerate(made):
                activity = {"last_activity_at": datetime.now(UTC) + timedelta(seconds=at % 3)}
                await Conversation.find({"_id": ObjectId(conversation_id)}).set(activity)
            return rows

        monkeypatch.setattr(crud_export, "find_batch", find)
        monkeypatch.setattr(crud_export, "BATCH", 2)

        content = await export_of(client, ada.headers)

        assert [row["id"] for row in content["conversations"]] == sorted(made)

    async def test_is_by_an_index_that_gives_the_order(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, batches: list[tuple[str, Raw, Raw | None, int]]
    ) -> None:
        monkeypatch.setattr(crud_export, "BATCH", 10)
        ada, others = await make_signed_in(), [await make_signed_in() for _ in range(3)]
        await self.fill(ada, 35)
        for other in others:
            await self.fill(other, 35)

        await export_of(client, ada.headers)

        database = User.get_pymongo_collection().database
        read = [batch for batch in batches if batch[0] not in {"items", "uploads", "usage_counters"}]
        assert {collection for collection, *_ in read} == {
            *("sessions", "api_keys", "conversations", "messages", "message_logs", "audit_events"),
        }
        assert len(read) == 25
        for collection, where, sort, _ in read:
            command = {"find": collection, "filter": where, "sort": sort, "limit": 11}
            plan = await database.command({"explain": command, "verbosity": "executionStats"})
            stages = set(re.findall(r"'stage': '(\w+)'", str(plan["queryPlanner"]["winningPlan"])))
            assert not stages & {"COLLSCAN", "SORT"}, (collection, where)
            assert plan["executionStats"]["totalDocsExamined"] <= 22, (collection, where)

    async def fill(self, user: StoredUser, count: int) -> None:
        conversation = await make_conversation(user)
        await make_messages(conversation, count, by=user)
        for number in range(count):
            await make_conversation(user)
            await make_api_key("read", owner=user)
            await sign_in(user)
            await make_message_log(user)
            await record(*((user.id, ObjectId()) if number % 2 else (ObjectId(), user.id)))


class TestFailure:
    """What fails in the middle must not look whole to the client."""

    @pytest.fixture
    async def app(self, make_settings: Callable[..., Settings]) -> AsyncIterator[FastAPI]:
        app = create_app(make_settings())
        async with running(app):
            yield app

    @asynccontextmanager
    async def listening(self, app: FastAPI) -> AsyncIterator[str]:
        """A real server on a real socket."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            config = uvicorn.Config(app, lifespan="off", log_config=None, http="h11")
            server = uvicorn.Server(config)
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            task = asyncio.create_task(server._serve([listener]))
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                await asyncio.wait_for(task, 10)

    async def test_in_the_middle_breaks_the_connection(self, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await make_signed_in()
        await self.write_much(ada)
        reads = 0

        async def find(collection: str, where: Raw, **options: Any) -> list[Raw]:
            nonlocal reads
            reads += collection == "messages"
            if reads == 3:
                raise ValueError("the third batch fails")
            return await find_batch(collection, where, **options)

        async with self.listening(app) as url, AsyncClient(base_url=url) as client:
            whole = await client.get(URL, headers=ada.headers)
            monkeypatch.setattr(crud_export, "find_batch", find)
            received = bytearray()
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                await self.receive(client, ada, received)

        assert len(whole.json()["messages"]) == 400
        assert len(received) > 50_000
        with pytest.raises(ValueError, match=r"Unterminated|Expecting|delimiter"):
            json.loads(received)

    async def test_of_the_client_ends_the_reading(self, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await make_signed_in()
        await self.write_much(ada)
        ended, json_object = asyncio.Event(), json_stream.json_object

        async def watched(*parts: Any) -> AsyncIterator[bytes]:
            try:
                async for chunk in json_object(*parts):
                    yield chunk
                await asyncio.Event().wait()  # there is always more to come
            finally:
                ended.set()

        monkeypatch.setattr("app.api.v1.endpoints.export.json_object", watched)
        async with self.listening(app) as url, AsyncClient(base_url=url) as client:
            async with client.stream("GET", URL, headers=ada.headers) as response:
                await anext(response.aiter_bytes())

            await asyncio.wait_for(ended.wait(), 5)

    async def receive(self, client: AsyncClient, user: SignedInUser, received: bytearray) -> None:
        async with client.stream("GET", URL, headers=user.headers) as response:
            assert response.status_code == 200
            async for chunk in response.aiter_bytes():
                received += chunk

    async def write_much(self, user: SignedInUser) -> None:
        conversation = await make_conversation(user)
        await make_messages(conversation, 400, by=user, content="x" * 1000)
