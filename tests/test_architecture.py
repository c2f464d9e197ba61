"""Rules that hold for every endpoint and every query, also for those that are not written yet."""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from itertools import combinations
from typing import Any, NamedTuple

import pytest
from bson import ObjectId
from fastapi import FastAPI
from fastapi.routing import APIRoute
from httpx import AsyncClient
from pymongo import MongoClient
from pymongo.database import Database
from starlette.routing import Route

from app.core.clock import utc_now
from app.core.config import Settings
from app.core.scopes import Role
from app.main import create_app
from app.models.api_key_usage import ApiKeyQuota, ApiKeyUsage
from app.models.audit_event import AuditEvent
from app.models.conversation_event import ConversationEvent
from app.models.credit_hold import CreditHold
from app.models.deleted_user import DeletedUser
from app.models.enums import ConversationEventType
from app.models.job import Job
from app.models.usage_counter import UsageCounter, UsageTotal
from app.models.user import User
from app.services import (
    audit_chain_service,
    credit_service,
    key_expiry_service,
    key_usage_service,
    message_log_service,
    purge_service,
    upload_removal_service,
)
from tests import sharding
from tests.api.test_openapi import Document, operations, references, resolved
from tests.assistant_server import open_assistant
from tests.conftest import client_of, running
from tests.factories import (
    PASSWORD,
    StoredUser,
    make_api_key,
    make_conversation,
    make_item,
    make_message_log,
    make_messages,
    make_signed_in,
    make_upload,
    make_user,
    sign_in,
)
from tests.streams import opened

# Who adds a line here opens an endpoint to everybody.
PUBLIC = {
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/metrics"),  # has a token of its own, which staging and production want
    ("POST", "/bootstrap"),
    ("POST", "/api/v1/auth/register"),
    ("POST", "/api/v1/auth/login"),
    ("POST", "/api/v1/auth/token"),
    ("POST", "/api/v1/auth/refresh"),
    ("POST", "/api/v1/auth/password/forgot"),
    ("POST", "/api/v1/auth/password/reset"),
    ("GET", "/api/v1/auth/password/reset"),
    ("POST", "/api/v1/auth/password/reset/form"),
    ("POST", "/api/v1/auth/email/verify"),
    ("GET", "/api/v1/auth/email/verify"),
    ("POST", "/api/v1/auth/email/verify/form"),
    ("POST", "/api/v1/auth/email/verify/request"),
    ("POST", "/api/v1/users"),
    ("GET", "/api/v1/users/username/{username}"),
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/api/v1/uploads/{upload_id}"),
    # For public uploads, and for who has a signed link.
    ("GET", "/api/v1/uploads/{upload_id}/content"),
    ("GET", "/api/v1/uploads/{upload_id}/thumbnail"),
    ("GET", "/api/v1/uploads/{upload_id}/text"),
    ("PUT", "/api/v1/uploads/{upload_id}/bytes"),
}
# What whoever is signed in does to its own account needs no scope.
SIGNED_IN = {
    ("GET", "/api/v1/auth/me"),
    ("POST", "/api/v1/auth/logout"),
    ("POST", "/api/v1/auth/logout-all"),
    ("GET", "/api/v1/auth/sessions"),
    ("DELETE", "/api/v1/auth/sessions/{session_id}"),
    ("POST", "/api/v1/auth/password/change"),
    ("POST", "/api/v1/auth/mfa/totp"),
    ("POST", "/api/v1/auth/mfa/totp/confirm"),
    ("DELETE", "/api/v1/auth/mfa/totp"),
    ("POST", "/api/v1/auth/mfa/recovery-codes"),
}
SECRET_WORDS = ("password", "hash", "digest", "secret", "token", "key")
# What answers may hold although it sounds like a secret: tokens at sign-in, a key where it is made, public names.
SHOWN = {
    "TokenPair": {"access_token", "token_type", "refresh_token"},
    "Bootstrapped": {"api_key"},
    "TotpSetUp": {"secret"},
    "ApiKeyCreated": {"key", "key_id"},
    "ApiKeyRead": {"key_id"},
    "ExportedApiKey": {"key_id"},
    "KeyVerification": {"key_id"},
    "PrincipalRead": {"key_id"},
    "Introspection": {"token_type"},
    "JsonWebKeySet": {"keys"},
    "AuditEventRead": {"prev_hash", "hash"},
    "ChainHead": {"hash"},
    "ExportedUser": {"password_changed_at"},
    "ExportedMessage": {"tokens"},
    "ExportedUsage": {"tokens"},
    "ExportedMessageLog": {"tokens"},
    "MessageLogRead": {"tokens"},
    "MessageRead": {"tokens"},
    "UserExport": {"api_keys"},
    "PresentNumbers": {"keys"},
    "StatisticsDay": {"keys"},
    "StatisticsNumbers": {"keys"},
}
COLLECTIONS = {
    "users",
    "sessions",
    "api_keys",
    "conversations",
    "items",
    "messages",
    "audit_events",
}
COLLECTIONS |= {"api_key_quotas", "api_key_usage"}
COLLECTIONS |= {"deleted_users", "usage_counters", "usage_totals"}
COLLECTIONS |= {"audit_chain"}
COLLECTIONS |= {"message_logs"}
COLLECTIONS |= {"conversation_events"}
COLLECTIONS |= {"credit_holds"}
COLLECTIONS |= {"uploads"}
COLLECTIONS |= {"daily_statistics", "outbox"}
EVENT = {
    "actor": {"kind": "user", "id": ObjectId(), "name": None},
    "action": "item:created",
    "target": {"kind": "item", "id": None},
    "outcome": "success",
    "ip": "198.51.100.7",
    "user_agent": None,
    "request_id": None,
    "details": {},
    "time": "2025-06-01T00:00:00Z",
}
STRANGERS = 300


class Endpoint(NamedTuple):
    method: str
    path: str

    @property
    def url(self) -> str:
        return "/".join(str(ObjectId()) if part.startswith("{") else part for part in self.path.split("/"))


@pytest.fixture
async def app(make_settings: Callable[..., Settings]) -> AsyncIterator[FastAPI]:
    """The application without a memory, so that every query is made, and with an assistant."""
    async with open_assistant() as assistant:
        yield create_app(make_settings(auth_cache_seconds=0, **assistant.settings))


def endpoints_of(app: FastAPI) -> set[Endpoint]:
    routes = [route for route in app.routes if isinstance(route, Route | APIRoute)]
    assert len(routes) == len(app.routes)  # a mounted application would hide its own
    return {Endpoint(method, route.path) for route in routes for method in (route.methods or set()) - {"HEAD"}}


class TestEndpoints:
    async def test_turn_strangers_away_unless_they_are_listed_here(self, app: FastAPI) -> None:
        closed = endpoints_of(app) - PUBLIC
        async with running(app), client_of(app) as client:
            answers = {endpoint: await client.request(endpoint.method, endpoint.url) for endpoint in closed}

        assert len(closed) > 20
        assert {answer.status_code for answer in answers.values()} == {401}
        assert {answer.json()["code"] for answer in answers.values()} == {"not_authenticated"}

    async def test_are_listed_here_only_when_they_are_open(self, app: FastAPI) -> None:
        async with running(app), client_of(app) as client:
            codes = [(await client.request(method, path)).status_code for method, path in PUBLIC]

        assert endpoints_of(app) >= PUBLIC
        assert 401 not in codes

    async def test_turn_away_whoever_holds_no_scope_for_them(self, app: FastAPI) -> None:
        scoped = endpoints_of(app) - PUBLIC - SIGNED_IN
        async with running(app), client_of(app) as client:
            key = await make_api_key("usage:write")
            await key.document.set({"scopes": []})
            answers = [await client.request(endpoint.method, endpoint.url, headers=key.headers) for endpoint in scoped]

        assert len(scoped) > 20
        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(403, "insufficient_scope")}


class TestAnswers:
    async def test_have_no_field_for_a_secret(self, app: FastAPI) -> None:
        shown: dict[str, set[str]] = {}
        for name, schema in _answer_schemas(app.openapi()).items():
            sounding = {field for field in schema.get("properties", {}) if _sounds_secret(field)}
            if sounding:
                shown[name] = sounding

        assert shown == SHOWN


def _sounds_secret(field: str) -> bool:
    return any(word in field.lower() for word in SECRET_WORDS)


def _answer_schemas(document: Document) -> dict[str, Any]:
    """Every schema that an answer can hold, at any depth."""
    found: dict[str, Any] = {}
    waiting = [
        reference for _, _, operation in operations(document) for reference in references(operation["responses"])
    ]
    while waiting:
        reference = waiting.pop()
        name = reference.rpartition("/")[2]
        if name not in found:
            found[name] = resolved(document, reference)
            waiting.extend(references(found[name]))
    assert len(found) > 8
    return found


class Profile:
    """What the database did for a test."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self.database = database

    def plans(self) -> list[dict[str, Any]]:
        """Every search that was planned, with what it had to look at."""
        rows = self.database["system.profile"].find({"planSummary": {"$exists": True}})
        return [row for row in rows if row["ns"].partition(".")[2] in COLLECTIONS]

    def rows(self) -> list[dict[str, Any]]:
        """All that was recorded."""
        return list(self.database["system.profile"].find())

    def touched(self) -> set[str]:
        return {row["ns"].partition(".")[2] for row in self.database["system.profile"].find()} & COLLECTIONS


@pytest.fixture
def profile(mongodb: MongoClient[dict[str, Any]], database_url: str) -> Iterator[Profile]:
    """The profiler of this test's database, on during the test and gone behind it."""
    database = mongodb[database_url.rpartition("/")[2].partition("?")[0]]
    database.drop_collection("system.profile")
    database.create_collection("system.profile", capped=True, size=64 * 1024 * 1024)
    yield Profile(database)
    database.command("profile", 0)
    database.drop_collection("system.profile")


class TestQueries:
    async def test_use_an_index_and_look_at_little_else(self, app: FastAPI, profile: Profile) -> None:
        async with running(app), client_of(app) as client:
            await _crowd(profile.database)
            profile.database.command("profile", 2)
            await _spend_a_day(client)
            profile.database.command("profile", 0)

        plans = profile.plans()
        scans = [(plan["ns"], plan["command"]) for plan in plans if "COLLSCAN" in plan["planSummary"]]
        wasteful = [(plan["ns"], plan["command"]) for plan in plans if _looked_at_else(plan) > STRANGERS / 2]
        assert profile.touched() == COLLECTIONS
        assert {plan["ns"].partition(".")[2] for plan in plans} == COLLECTIONS
        assert len(plans) > 60
        assert scans == []
        assert wasteful == []
        # docs/scaling.md says what would ask all shards of a cluster.
        assert sharding.asked_of_all(profile.rows()) == {}
        assert sharding.writes_of_one_asked_of_all(profile.rows()) == []


def _looked_at_else(plan: dict[str, Any]) -> int:
    """How much besides what it was looking for: an export looks for everything."""
    looked_at = max(int(plan.get("docsExamined", 0)), int(plan.get("keysExamined", 0)))
    return looked_at - int(plan.get("nreturned", 0))


async def _crowd(database: Database[dict[str, Any]]) -> None:
    """Many strangers, so that a search without an index has much to look at."""
    # This job counts what is of today, as all of these are; tests/api/test_statistics.py sees what it looks at.
    await Job(id="refresh_statistics", due_at=utc_now() + timedelta(days=400)).save()
    ada = await make_signed_in()
    conversation = await make_conversation(ada)
    key = await make_api_key("read", owner=ada)
    [message] = await make_messages(conversation, by=ada)
    stored = [
        ada.document,
        ada.session,
        key.document,
        conversation,
        await make_item(ada),
        message,
        await AuditEvent(**EVENT).insert(),
    ]
    counter = await UsageCounter(user_id=ada.id, day="2026-11-21", expires_at=utc_now() + timedelta(days=400)).insert()
    total = await UsageTotal(id=ada.id).insert()
    gone = DeletedUser(
        user=ada.document.model_dump(by_alias=True),
        email_key="gone@example.com",
        deleted_at=utc_now(),
        deleted_by=ObjectId(),
        reason=None,
        purge_at=utc_now() + timedelta(days=30),
    )
    await gone.insert()
    usage = await ApiKeyUsage(key_id=key.document.id, hour=utc_now()).insert()
    hold = await CreditHold(user_id=ada.id, amount=1, expires_at=utc_now() + timedelta(1)).insert()
    drawn = await ApiKeyQuota(key_id=key.document.id, window="2026-11", expires_at=utc_now() + timedelta(1)).insert()
    log = await make_message_log(ada)
    upload = await make_upload(ada, conversation_id=conversation.id)
    event = await ConversationEvent(
        conversation_id=conversation.id,
        version=2,
        type=ConversationEventType.PARTICIPANT_READ,
        data={"user_id": ObjectId()},
        expires_at=utc_now() + timedelta(days=7),
    ).insert()
    for document in [*stored, counter, total, gone, usage, drawn, log, upload, event, hold]:
        collection = database[document.get_collection_name()]
        row = collection.find_one({"_id": document.id}) or {}
        collection.insert_many([_stranger(row, number) for number in range(STRANGERS)])


def _stranger(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A document like that one, of somebody else."""
    changes: dict[str, Any] = {"_id": ObjectId()}
    for name in ("email_key", "username_key", "full_name_key", "key_id", "email", "username"):
        if name in row:
            changes[name] = f"s{number:04}@example.com"
    if "stem" in row:
        changes["stem"] = f"00/00/{number:032x}"
    for name in ("user_id", "owner_id", "conversation_id"):
        if row.get(name):
            changes[name] = ObjectId()
    if "participants" in row:
        changes["participants"] = [row["participants"][0] | {"user_id": ObjectId()}]
    return row | changes


async def _spend_a_day(client: AsyncClient) -> None:
    """Every kind of request that searches."""
    admin, ada, bob = await make_signed_in(role=Role.SUPERUSER), await make_signed_in(), await make_user()
    await make_user(role=Role.SUPERUSER)
    service = await make_api_key("admin")
    await _use_accounts(client, admin.headers, ada.headers)
    await _use_keys(client, ada.headers, service.headers)
    await _use_conversations(client, ada.headers, service.headers, str(ada.id), str(bob.id))
    await _use_items(client, ada.headers, service.headers)
    await _use_uploads(client, ada.headers, service.headers)
    await _use_bytes_of_uploads(client, ada.headers)
    await _use_sessions(client)
    await _use_plans(client, admin.headers, ada.headers, str(ada.id))
    await _use_message_logs(client, service.headers, ada)
    await _use_archive(client, admin.headers, service.headers)
    await _use_audit_trail(client, admin.headers, str(ada.id))
    await _look_after_the_system(client, admin.headers)
    assert (await client.get("/metrics")).status_code == 200
    for user in (await sign_in(bob), admin):
        body = {"current_password": PASSWORD}
        assert (await client.request("DELETE", "/api/v1/users/me", headers=user.headers, json=body)).status_code == 204


async def _use_accounts(client: AsyncClient, admin: dict[str, str], ada: dict[str, str]) -> None:
    users = "/api/v1/users"
    for query in ("", "?sort=created_at", "?sort=email", "?role=user", "?q=s0001", "?limit=5"):
        page = await client.get(f"{users}{query}", headers=admin)
        assert page.status_code == 200
    assert (await client.get(page.links["next"]["url"], headers=admin)).status_code == 200
    me = (await client.get(f"{users}/me", headers=ada)).json()
    assert (await client.get(f"{users}/{me['id']}", headers=admin)).status_code == 200
    assert (await client.get(f"{users}/username/{me['username']}")).status_code == 200
    changes = {"username": "countess", "full_name": "Ada", "email": "ada@example.com", "current_password": PASSWORD}
    assert (await client.patch(f"{users}/me", headers=ada, json=changes)).status_code == 200
    assert (await client.patch(f"{users}/{me['id']}", headers=admin, json={"role": "support"})).status_code == 200


async def _use_keys(client: AsyncClient, ada: dict[str, str], service: dict[str, str]) -> None:
    keys = "/api/v1/api-keys"
    made = (await client.post(keys, headers=ada, json={"name": "ci", "scopes": ["read"]})).json()
    assert (await client.get(keys, headers={"Octopus-API-Key": made["key"]})).status_code == 403
    for headers in (ada, service):
        assert (await client.get(keys, headers=headers)).status_code == 200
        assert (await client.get(f"{keys}?include_inactive=true&limit=1", headers=headers)).status_code == 200
        assert (await client.get(f"{keys}/{made['id']}", headers=headers)).status_code == 200
    for token in (made["key"], ada["Authorization"].removeprefix("Bearer ")):
        answer = await client.post("/api/v1/auth/introspect", headers=service, data={"token": token})
        assert answer.json()["active"] is True
    assert (await client.patch(f"{keys}/{made['id']}", headers=ada, json={"name": "cd"})).status_code == 200
    await _use_up_keys(client, ada, service, made)
    assert (await client.post(f"{keys}/{made['id']}/deactivate", headers=ada)).status_code == 200
    assert (await client.delete(f"{keys}/{made['id']}", headers=ada)).status_code == 204


async def _use_up_keys(client: AsyncClient, ada: dict[str, str], service: dict[str, str], made: dict[str, Any]) -> None:
    keys = "/api/v1/api-keys"
    soon = utc_now() + timedelta(days=3)
    changes = {"quota": {"limit": 2, "period": "day"}, "expires_at": soon.isoformat()}
    assert (await client.patch(f"{keys}/{made['id']}", headers=ada, json=changes)).status_code == 200
    for valid in (True, True, False):
        answer = await client.post(f"{keys}/verify", headers=service, json={"key": made["key"]})
        assert answer.json()["valid"] is valid
    assert (await client.get(keys, headers=ada)).status_code == 200
    page = await client.get(f"{keys}/expiring?limit=1", headers=service)
    assert [key["id"] for key in page.json()] == [made["id"]]
    await key_usage_service.flush()
    await make_api_key(expires_at=soon + timedelta(hours=1), created_at=soon - timedelta(days=99))
    await key_expiry_service.warn()
    rotated = await client.post(f"{keys}/{made['id']}/rotate", headers=ada, json={"grace_seconds": 600})
    assert rotated.status_code == 200
    for bucket in ("hour", "day"):
        usage = await client.get(f"{keys}/{made['id']}/usage?bucket={bucket}", headers=ada)
        assert sum(row["requests"] for row in usage.json()) == 4
    assert (await client.post(f"{keys}/cleanup-expired", headers=service)).status_code == 200


async def _use_conversations(
    client: AsyncClient, ada: dict[str, str], service: dict[str, str], ada_id: str, bob_id: str
) -> None:
    base = "/api/v1/conversations"
    made = (await client.post(base, headers=ada, json={"title": "Tea", "participant_ids": [bob_id]})).json()
    path = f"{base}/{made['id']}"
    for number in range(3):
        said = await client.post(f"{path}/messages", headers=ada, json={"content": f"Hello {number}"})
        assert said.status_code == 201
    for headers in (ada, service):
        for url in (base, f"{base}?limit=1", f"{base}/user/{ada_id}", path, f"{path}/messages"):
            assert (await client.get(url, headers=headers)).status_code == 200
    first = (await client.get(f"{path}/messages?limit=1", headers=ada)).json()[0]["id"]
    for query in ("order=desc", "role=user", f"after={first}"):
        assert (await client.get(f"{path}/messages?{query}", headers=ada)).status_code == 200
    await _use_messages(client, ada, path, first)
    assert (await client.post(f"{path}/typing", headers=ada)).status_code == 204
    async with opened(client, ObjectId(made["id"]), ada, last_event_id="1-0") as stream:
        assert len(await stream.take(4)) == 4
    await User.get_pymongo_collection().update_one({"_id": ObjectId(ada_id)}, {"$inc": {"credits": 9}})
    assert (await client.post(f"{path}/reply", headers=ada)).status_code == 200
    await credit_service.give_back_expired()
    assert (await client.patch(path, headers=ada, json={"title": "Coffee"})).status_code == 200
    assert (await client.delete(f"{path}/participants/{bob_id}", headers=ada)).status_code == 200
    assert (await client.post(f"{path}/participants", headers=ada, json={"user_id": bob_id})).status_code == 201
    assert (await client.delete(path, headers=ada)).status_code == 204


async def _use_messages(client: AsyncClient, ada: dict[str, str], path: str, message_id: str) -> None:
    batch = {"messages": [{"content": "Hello"}] * 3}
    written = await client.post(f"{path}/messages/batch", headers=ada, json=batch)
    assert written.status_code == 201
    for read in (message_id, written.json()[-1]["id"], message_id):
        marked = await client.post(f"{path}/read", headers=ada, json={"message_id": read})
        assert marked.status_code == 200
    message = f"{path}/messages/{message_id}"
    assert (await client.get(message, headers=ada)).status_code == 200
    assert (await client.patch(message, headers=ada, json={"content": "Good day"})).status_code == 200
    assert (await client.delete(message, headers=ada)).status_code == 204


async def _use_plans(client: AsyncClient, admin: dict[str, str], ada: dict[str, str], ada_id: str) -> None:
    users = "/api/v1/users"
    assert (await client.get("/api/v1/usage/me", headers=ada)).status_code == 200
    assert (await client.get(f"{users}/{ada_id}/usage", headers=admin)).status_code == 200
    staff = "/api/v1/staff/users"
    for query in ("", "?sort=email", "?role=user", "?q=s0001", "?limit=5"):
        assert (await client.get(f"{staff}{query}", headers=admin)).status_code == 200
    for url in (f"{staff}/{ada_id}", f"{staff}/{ada_id}/usage"):
        assert (await client.get(url, headers=admin)).status_code == 200
    bodies = {"credits": {"amount": 5}, "plan": {"plan": "pro"}}
    for name in ("reset-limits", "deactivate", "activate", "revoke-sessions", *bodies):
        assert (await client.post(f"{staff}/{ada_id}/{name}", json=bodies.get(name), headers=admin)).status_code == 200
    changes = {"role": "support", "staff_level": 2, "limits": {"daily_messages": 3}}
    changed = await client.patch(f"/api/v1/admin/users/{ada_id}", json=changes, headers=admin)
    assert changed.status_code == 200
    made = await client.post(
        "/api/v1/admin/users", json={"email": "new@example.com", "password": PASSWORD}, headers=admin
    )
    assert made.status_code == 201


async def _use_message_logs(client: AsyncClient, service: dict[str, str], ada: StoredUser) -> None:
    url, name = "/api/v1/message-logs", (await User.find_one({"_id": ada.id}) or ada.document).username
    entry = {"username": name, "model": "gpt", "messages": 1, "tokens": 10}
    stored = await client.post(url, headers=service, json={"entries": [entry, entry | {"username": "nobody"}]})
    assert stored.json()["accepted"] == 1
    await make_message_log(ada, timestamp=utc_now() - timedelta(days=100))
    filters = ["model=gpt", "from=2026-01-01T00:00:00Z", "to=2099-01-01T00:00:00Z"]
    filters += [f"username={name}", f"user_id={ada.id}"]
    for first, second in combinations(["", *filters], 2):
        page = await client.get(f"{url}?limit=1&{first}&{second}", headers=service)
        assert page.status_code == 200
        if "next" in page.links:
            assert (await client.get(page.links["next"]["url"], headers=service)).status_code == 200
    await message_log_service.prune()


async def _use_items(client: AsyncClient, ada: dict[str, str], service: dict[str, str]) -> None:
    items = "/api/v1/items"
    for title in ("Buy tea", "Drink tea"):
        made = (await client.post(items, headers=ada, json={"title": title})).json()
    for headers in (ada, service):
        for url in (
            items,
            f"{items}?is_completed=false&limit=1",
            f"{items}?is_completed=true",
            f"{items}/{made['id']}",
        ):
            assert (await client.get(url, headers=headers)).status_code == 200
        page = await client.get(f"{items}?limit=1", headers=headers)
        assert (await client.get(page.links["next"]["url"], headers=headers)).status_code == 200
    assert (await client.patch(f"{items}/{made['id']}", headers=ada, json={"is_completed": True})).status_code == 200
    assert (await client.delete(f"{items}/{made['id']}", headers=service)).status_code == 204


async def _use_bytes_of_uploads(client: AsyncClient, ada: dict[str, str]) -> None:
    announced = {"filename": "tea.txt", "size": 3, "sha256": "0" * 64, "visibility": "public"}
    for changes, status in (({}, 422), ({"sha256": None}, 200)):
        plan = (await client.post("/api/v1/uploads/direct", headers=ada, json=announced | changes)).json()
        upload = f"/api/v1/uploads/{plan['upload']['id']}"
        put_at = plan["url"].partition("://")[2].partition("/")[2]
        assert (await client.put(f"/{put_at}", content=b"Tea")).status_code == 204
        assert (await client.post(f"{upload}/complete", headers=ada)).status_code == status
    assert (await client.post(f"{upload}/url", headers=ada, json={"expires_in": 60})).status_code == 200
    for headers in (ada, {}):
        for path, answer in (("content", 200), ("text", 200), ("thumbnail", 422)):
            assert (await client.get(f"{upload}/{path}", headers=headers)).status_code == answer


async def _use_uploads(client: AsyncClient, ada: dict[str, str], service: dict[str, str]) -> None:
    uploads = "/api/v1/uploads"
    chat = (await client.post("/api/v1/conversations", headers=ada, json={"title": "Tea"})).json()["id"]
    for fields in ({}, {"conversation_id": chat}, {}):
        answer = await client.post(uploads, headers=ada, files={"file": ("tea.txt", b"Tea")}, data=fields)
        assert answer.status_code == 201
        made = answer.json()
    for headers in (ada, service):
        for query in ("", "?limit=1", "?status=pending", "?status=clean&limit=1", f"?conversation_id={chat}"):
            page = await client.get(f"{uploads}{query}", headers=headers)
            assert page.status_code == 200
            if "next" in page.links:
                assert (await client.get(page.links["next"]["url"], headers=headers)).status_code == 200
        assert (await client.get(f"{uploads}/{made['id']}", headers=headers)).status_code == 200
    attached = {"content": "Look", "attachment_ids": [made["id"]]}
    messages = f"/api/v1/conversations/{chat}/messages"
    assert (await client.post(messages, headers=ada, json=attached)).status_code == 201
    assert (await client.delete(f"{uploads}/{made['id']}", headers=ada)).status_code == 204
    assert (await client.delete(f"/api/v1/conversations/{chat}", headers=ada)).status_code == 204
    await upload_removal_service.clean_up()


async def _use_sessions(client: AsyncClient) -> None:
    eve = await make_user()
    pair: dict[str, Any] = {}
    for account in ({"email": eve.document.email}, {"username": eve.document.username}):
        pair = (await client.post("/api/v1/auth/login", json=account | {"password": PASSWORD})).json()
    token = {"refresh_token": pair["refresh_token"]}
    for _ in range(2):
        refreshed = await client.post("/api/v1/auth/refresh", json=token)
        assert refreshed.status_code == 200
    headers = {"Authorization": f"Bearer {refreshed.json()['access_token']}"}
    assert (await client.post("/api/v1/auth/logout", headers=headers)).status_code == 204
    again = (await client.post("/api/v1/auth/login", json={"email": eve.document.email, "password": PASSWORD})).json()
    headers = {"Authorization": f"Bearer {again['access_token']}"}
    assert (await client.post("/api/v1/auth/logout-all", headers=headers)).status_code == 204


async def _use_archive(client: AsyncClient, admin: dict[str, str], service: dict[str, str]) -> None:
    eve, base = await make_signed_in(), "/api/v1/admin/deleted-users"
    await make_messages(await make_conversation(eve), by=eve)
    assert (await client.get("/api/v1/users/me/export", headers=eve.headers)).status_code == 200
    for restore in (f"{base}/{eve.id}/restore", f"/api/v1/staff/users/{eve.id}/restore", None):
        assert (await client.delete(f"/api/v1/users/{eve.id}", headers=admin)).status_code == 204
        for query in ("", "?limit=1", "?q=s0001", f"?q={eve.document.email}"):
            page = await client.get(f"{base}{query}", headers=service)
            assert page.status_code == 200
        if restore is not None:
            assert (await client.post(restore, headers=service)).status_code == 200
    assert (await client.delete(f"{base}/{eve.id}", headers=admin)).status_code == 204
    await purge_service.purge_due()


async def _use_audit_trail(client: AsyncClient, admin: dict[str, str], ada_id: str) -> None:
    await audit_chain_service.seal()
    base = "/api/v1/admin/audit-events"
    filters = ["action=user:updated", "outcome=failure", "from=2026-01-01T00:00:00Z", "to=2099-01-01T00:00:00Z"]
    filters += [f"actor={ada_id}", f"target={ada_id}", "ip=192.0.2.9"]
    for first, second in combinations(["", *filters], 2):
        page = await client.get(f"{base}?limit=1&{first}&{second}", headers=admin)
        assert page.status_code == 200
        if "next" in page.links:
            assert (await client.get(page.links["next"]["url"], headers=admin)).status_code == 200
        assert (await client.get(f"{base}/export?{first}&{second}", headers=admin)).status_code == 200
    assert (await client.get(f"{base}/export", headers=admin)).status_code == 200
    assert (await client.get(f"{base}/verify", headers=admin)).json()["valid"] is True
    for path in ("audit-logs", "audit-logs?action=api_key:created", f"{ada_id}/audit-logs"):
        assert (await client.get(f"/api/v1/api-keys/{path}", headers=admin)).status_code == 200


async def _look_after_the_system(client: AsyncClient, admin: dict[str, str]) -> None:
    for path in ("stats", "stats?days=365", "system"):
        assert (await client.get(f"/api/v1/admin/{path}", headers=admin)).status_code == 200
