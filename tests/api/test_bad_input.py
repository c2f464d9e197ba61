import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from bson import ObjectId
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from httpx import AsyncClient, Response

from app.db.mongo import get_database
from tests.api.test_errors import assert_problem
from tests.conftest import SECRET, Serve
from tests.factories import (
    PASSWORD,
    SignedInUser,
    make_api_key,
    make_conversation,
    make_signed_in,
    make_user,
)

MEBIBYTE = 1024 * 1024
ENDPOINTS = ["register", "login", "create key", "create conversation", "post message", "patch user"]


@dataclass
class Target:
    """An endpoint that takes a body, and a body that it accepts."""

    client: AsyncClient
    headers: dict[str, str]
    method: str
    path: str
    body: dict[str, Any]

    async def send(self, body: Any) -> Response:
        return await self.client.request(self.method, self.path, headers=self.headers, json=body)

    async def send_raw(self, content: Any, *, content_type: str | None = "application/json") -> Response:
        headers = self.headers | ({"Content-Type": content_type} if content_type else {})
        return await self.client.request(self.method, self.path, headers=headers, content=content)


Targets = dict[str, Target]


@pytest.fixture
async def ada(client: AsyncClient) -> SignedInUser:  # noqa: ARG001 - documents need the application's database
    return await make_signed_in()


@pytest.fixture
async def targets(client: AsyncClient, ada: SignedInUser) -> Targets:
    conversation = await make_conversation(ada)
    bodies: dict[str, tuple[str, str, dict[str, Any]]] = {
        "register": ("POST", "/auth/register", {"email": "new@example.com", "password": PASSWORD}),
        "login": ("POST", "/auth/login", {"email": ada.document.email, "password": ada.password}),
        "create key": ("POST", "/api-keys", {"name": "ci", "scopes": ["read"]}),
        "create conversation": ("POST", "/conversations", {"title": "Tea"}),
        "post message": ("POST", f"/conversations/{conversation.id}/messages", {"content": "Hello"}),
        "patch user": ("PATCH", f"/users/{ada.id}", {"full_name": "Ada"}),
    }
    return {
        name: Target(client, ada.headers, method, f"/api/v1{path}", body)
        for name, (method, path, body) in bodies.items()
    }


@asynccontextmanager
async def nothing_stored() -> AsyncIterator[None]:
    """Whatever happens inside leaves accounts, sessions, keys, conversations and messages as they were."""
    before = await _everything()
    yield
    assert await _everything() == before


async def _everything() -> dict[str, list[dict[str, Any]]]:
    names = ["users", "sessions", "api_keys", "conversations", "messages"]
    return {name: await get_database()[name].find().sort("_id").to_list() for name in names}


@pytest.mark.parametrize("name", ENDPOINTS)
class TestAnyBody:
    async def test_is_accepted_when_it_is_good(self, targets: Targets, name: str) -> None:
        response = await targets[name].send(targets[name].body)

        assert response.is_success

    @pytest.mark.parametrize("body", [[], ["email"], "text", 7, True, None], ids=str)
    async def test_must_be_an_object(self, targets: Targets, name: str, body: Any) -> None:
        async with nothing_stored():
            response = await targets[name].send_raw(json.dumps(body))

        assert_problem(response, 422, "validation_error")

    async def test_must_not_hold_an_unknown_field(self, targets: Targets, name: str) -> None:
        async with nothing_stored():
            response = await targets[name].send(targets[name].body | {"is_superuser": True})

        assert_problem(response, 422, "validation_error")
        assert [error["loc"] for error in response.json()["errors"]] == [["body", "is_superuser"]]

    @pytest.mark.parametrize(
        "content",
        [
            b"{",
            b'{"title": }',
            b"{'title': 'Tea'}",
            b'{"title": "Tea"} {"title": "Tea"}',
            b'{"title": "\xff\xfe"}',
            b"\x00",
            b'{"title": ' + b"[" * 100_000,
            b'{"title": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
        ],
        ids=["open", "hole", "quotes", "two", "not utf-8", "nul", "deep list", "deep object"],
    )
    async def test_must_be_json(self, targets: Targets, name: str, content: bytes) -> None:
        async with nothing_stored():
            response = await targets[name].send_raw(content)

        assert_problem(response, 400, "invalid_request")

    async def test_must_not_be_too_large(self, targets: Targets, name: str) -> None:
        async with nothing_stored():
            response = await targets[name].send_raw(b" " * (MEBIBYTE + 1))

        assert_problem(response, 413, "payload_too_large")

    @pytest.mark.parametrize(
        "content_type",
        ["text/plain", "application/xml", "application/x-www-form-urlencoded", "application/jsonp", None],
    )
    async def test_must_be_declared_as_json(self, targets: Targets, name: str, content_type: str | None) -> None:
        target = targets[name]

        async with nothing_stored():
            response = await target.send_raw(json.dumps(target.body), content_type=content_type)

        assert_problem(response, 415, "unsupported_media_type")


class TestWrongType:
    @pytest.mark.parametrize(
        ("name", "field", "value"),
        [
            ("register", "email", 7),
            ("register", "email", ["ada@example.com"]),
            ("register", "email", "not an address"),
            ("register", "password", {"a": "b"}),
            ("register", "password", 12345678901),
            ("register", "username", True),
            ("register", "full_name", 1.5),
            ("login", "email", None),
            ("login", "password", ["turnip"]),
            ("create key", "name", None),
            ("create key", "name", ""),
            ("create key", "scopes", {"read": True}),
            ("create key", "scopes", [1]),
            ("create key", "scopes", ["everything"]),
            ("create key", "expires_at", "tomorrow"),
            ("create key", "expires_at", 10**30),
            ("create key", "allowed_ips", ["300.1.1.1"]),
            ("create key", "rate_limit", 600),
            ("create key", "rate_limit", "many/minute"),
            ("create conversation", "title", ["Tea"]),
            ("create conversation", "title", "   "),
            ("create conversation", "title", "t" * 201),
            ("create conversation", "participant_ids", "6746d0a8f8f8f8f8f8f8f8f8"),
            ("create conversation", "participant_ids", [None]),
            ("create conversation", "participant_ids", ["nobody"]),
            ("post message", "content", 7),
            ("post message", "content", ""),
            ("post message", "content", "x" * 32_001),
            ("post message", "role", "admin"),
            ("post message", "role", ["user"]),
            ("post message", "user_id", 12),
            ("patch user", "full_name", {}),
            ("patch user", "email", None),
            ("patch user", "is_active", "perhaps"),
            ("patch user", "role", "king"),
            ("patch user", "username", "a b"),
        ],
    )
    async def test_is_refused_and_located(self, targets: Targets, name: str, field: str, value: Any) -> None:
        target = targets[name]

        async with nothing_stored():
            response = await target.send(target.body | {field: value})

        assert_problem(response, 422, "validation_error")
        located = [error["loc"][:2] for error in response.json()["errors"]]
        assert ["body", field] in located or ["body"] in located

    @pytest.mark.parametrize(
        "literal", [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b'"\\ud800"', b'"\\udfff\\ud800"']
    )
    @pytest.mark.parametrize("field", [b"title", b"participant_ids", b"\\ud800"])
    async def test_is_refused_however_strange_the_literal(self, targets: Targets, field: bytes, literal: bytes) -> None:
        async with nothing_stored():
            response = await targets["create conversation"].send_raw(b'{"' + field + b'": ' + literal + b"}")

        status = response.status_code
        assert status in {400, 422}
        assert_problem(response, status, {400: "invalid_request", 422: "validation_error"}[status])


class TestPowerOverOneself:
    @pytest.mark.parametrize(
        "claim",
        [
            {"role": "superuser"},
            {"is_active": True},
            {"is_superuser": True},
            {"is_verified": True},
            {"staff_level": 3},
            {"plan": "enterprise"},
            {"hashed_password": "x"},
            {"version": 7},
            {"_id": "0" * 24},
        ],
        ids=str,
    )
    @pytest.mark.parametrize(("method", "path"), [("POST", "/api/v1/users"), ("PATCH", "/api/v1/users/me")])
    async def test_can_not_be_taken_by_a_body(
        self, client: AsyncClient, ada: SignedInUser, method: str, path: str, claim: dict[str, Any]
    ) -> None:
        body = {"email": "new@example.com", "password": PASSWORD, **claim}

        async with nothing_stored():
            response = await client.request(method, path, headers=ada.headers, json=body)

        assert_problem(response, 422, "validation_error")


class TestDuplicateKeys:
    async def test_count_once_as_the_last_one(self, targets: Targets) -> None:
        response = await targets["create conversation"].send_raw(b'{"title": "first", "title": "last"}')

        stored = [row["title"] async for row in get_database()["conversations"].find({"title": {"$ne": "Tea"}})]
        assert response.status_code == 201
        assert response.json()["title"] == "last"
        assert stored == ["last"]


class TestLargeBody:
    async def test_is_read_up_to_the_limit(self, targets: Targets) -> None:
        body = json.dumps({"title": "Tea"}).encode()

        response = await targets["create conversation"].send_raw(body.ljust(MEBIBYTE))

        assert response.status_code == 201

    @pytest.mark.parametrize("path", ["/api/v1/auth/login", "/api/v1/auth/token", "/bootstrap", "/nothing", "/health"])
    async def test_is_refused_at_any_path_by_its_declared_length(self, client: AsyncClient, path: str) -> None:
        chunks = Chunks(size=1024, count=1)

        response = await client.post(path, content=chunks.give(), headers={"Content-Length": str(MEBIBYTE + 1)})

        assert_problem(response, 413, "payload_too_large")
        assert chunks.given == 0

    @pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream"])
    @pytest.mark.parametrize("name", ENDPOINTS)
    async def test_is_refused_while_it_streams(self, targets: Targets, name: str, content_type: str) -> None:
        chunks = Chunks(size=64 * 1024, count=1000)

        async with nothing_stored():
            response = await targets[name].send_raw(chunks.give(), content_type=content_type)

        assert_problem(response, 413, "payload_too_large")
        assert chunks.given == 17  # 16 of them are the limit

    @pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
    async def test_is_refused_while_a_form_streams(self, client: AsyncClient, content_type: str) -> None:
        chunks = Chunks(size=64 * 1024, count=1000, start=b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n')

        response = await client.post(
            "/api/v1/auth/token", content=chunks.give(), headers={"Content-Type": content_type}
        )

        assert_problem(response, 413, "payload_too_large")
        assert chunks.given <= 18

    async def test_is_what_the_setting_says(self, serve: Serve) -> None:
        async with serve(max_body_bytes=2048) as client:
            small = await client.post("/api/v1/auth/login", content=b"x" * 2048)
            large = await client.post("/api/v1/auth/login", content=b"x" * 2049)

        assert_problem(small, 415, "unsupported_media_type")
        assert_problem(large, 413, "payload_too_large")


class Chunks:
    """A body without end, nearly, that knows how much of it was asked for."""

    def __init__(self, *, size: int, count: int, start: bytes = b"") -> None:
        self.size, self.count, self.start = size, count, start
        self.given = 0

    async def give(self) -> AsyncIterator[bytes]:
        for number in range(self.count):
            self.given += 1
            yield (self.start if number == 0 else b"").ljust(self.size, b"a")


class TestContentType:
    @pytest.mark.parametrize(
        "content_type",
        ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8", "application/merge-patch+json"],
    )
    async def test_may_be_any_kind_of_json(self, targets: Targets, content_type: str) -> None:
        response = await targets["create conversation"].send_raw(b'{"title": "Tea"}', content_type=content_type)

        assert response.status_code == 201

    async def test_must_not_be_text_that_calls_itself_json(self, targets: Targets) -> None:
        response = await targets["create conversation"].send_raw(b'{"title": "Tea"}', content_type="text/x+json")

        assert_problem(response, 415, "unsupported_media_type")

    @pytest.mark.parametrize("content_type", ["application/json", "text/plain", None])
    async def test_must_be_a_form_where_a_form_is_asked_for(
        self, client: AsyncClient, ada: SignedInUser, content_type: str | None
    ) -> None:
        body = {"grant_type": "password", "username": ada.document.email, "password": ada.password}
        headers = {"Content-Type": content_type} if content_type else {}

        response = await client.post("/api/v1/auth/token", content=json.dumps(body), headers=headers)

        assert_problem(response, 415, "unsupported_media_type")

    async def test_must_not_be_a_form_where_json_is_asked_for(self, client: AsyncClient, ada: SignedInUser) -> None:
        form = {"email": ada.document.email, "password": ada.password}

        response = await client.post("/api/v1/auth/login", data=form)

        assert_problem(response, 415, "unsupported_media_type")

    async def test_is_not_asked_of_an_absent_body(self, client: AsyncClient) -> None:
        response = await client.post("/api/v1/auth/login")

        assert_problem(response, 422, "validation_error")


class TestMalformedId:
    @pytest.mark.parametrize(
        "malformed",
        ["abc", "0" * 23, "0" * 25, "z" * 24, "%00", "%20", "null", "-1", "{}", "%E2%82%AC" * 8, "a" * 5000],
    )
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "users/{}"),
            ("PATCH", "users/{}"),
            ("GET", "api-keys/{}"),
            ("GET", "conversations/{}"),
            ("DELETE", "conversations/{}"),
            ("GET", "conversations/user/{}"),
            ("GET", "conversations/{}/messages"),
        ],
    )
    async def test_is_an_id_that_does_not_exist(
        self, client: AsyncClient, ada: SignedInUser, method: str, path: str, malformed: str
    ) -> None:
        body = {"full_name": "Ada"} if method == "PATCH" else None

        response = await client.request(method, f"/api/v1/{path.format(malformed)}", headers=ada.headers, json=body)

        assert_problem(response, 404, "not_found")

    @pytest.mark.parametrize("unknown", ["abc", "0" * 24])
    async def test_is_no_message_to_begin_behind_either(
        self, client: AsyncClient, ada: SignedInUser, unknown: str
    ) -> None:
        conversation = await make_conversation(ada)

        response = await client.get(
            f"/api/v1/conversations/{conversation.id}/messages?after={unknown}", headers=ada.headers
        )

        assert_problem(response, 404, "not_found")

    async def test_of_a_participant_is_not_found_in_the_path(self, client: AsyncClient, ada: SignedInUser) -> None:
        conversation = await make_conversation(ada)

        response = await client.delete(
            f"/api/v1/conversations/{conversation.id}/participants/nobody", headers=ada.headers
        )

        assert_problem(response, 404, "not_found")


class TestOperatorInPlaceOfValue:
    @pytest.mark.parametrize("operator", [{"$gt": ""}, {"$ne": None}, {"$regex": ".*"}, {"$where": "1"}, {"$in": []}])
    @pytest.mark.parametrize(
        ("name", "field"),
        [
            ("login", "email"),
            ("login", "password"),
            ("register", "email"),
            ("register", "username"),
            ("register", "password"),
            ("create key", "name"),
            ("create key", "scopes"),
            ("create conversation", "title"),
            ("create conversation", "participant_ids"),
            ("post message", "content"),
            ("post message", "user_id"),
            ("patch user", "full_name"),
            ("patch user", "current_password"),
        ],
    )
    async def test_is_refused(self, targets: Targets, name: str, field: str, operator: dict[str, Any]) -> None:
        target = targets[name]

        async with nothing_stored():
            response = await target.send(target.body | {field: operator})

        assert_problem(response, 422, "validation_error")

    @pytest.mark.parametrize(
        "text", ["$gt", "$email", "$$ROOT", "a.b", '{"$gt": ""}', "'; return true; //", "__proto__"]
    )
    async def test_is_plain_text_when_it_is_text(self, client: AsyncClient, ada: SignedInUser, text: str) -> None:
        bob = await make_user(full_name=text)
        made = (await client.post("/api/v1/conversations", headers=ada.headers, json={"title": text})).json()
        path = f"/api/v1/conversations/{made['id']}"

        await client.post(f"{path}/participants", headers=ada.headers, json={"user_id": str(bob.id)})
        await client.post(f"{path}/messages", headers=ada.headers, json={"content": text})

        shown = (await client.get(path, headers=ada.headers)).json()
        assert shown["title"] == text
        assert [message["content"] for message in shown["messages"]] == [text]
        assert [person["id"] for person in shown["participants"]] == [str(ada.id), str(bob.id)]

    @pytest.mark.parametrize("account", ["$gt", '{"$gt": ""}', ".*", "^", "ada%", "' or '1'='1"])
    async def test_names_no_account_at_sign_in(self, client: AsyncClient, ada: SignedInUser, account: str) -> None:
        response = await client.post("/api/v1/auth/login", json={"username": account, "password": ada.password})

        assert_problem(response, 401, "invalid_credentials")

    @pytest.mark.parametrize(
        ("q", "found"), [("eve", 1), (".*", 0), ("%5Eeve", 0), ("e.e", 0), ("(", 0), ("$where", 0)]
    )
    async def test_is_no_pattern_in_a_search(self, client: AsyncClient, q: str, found: int) -> None:
        admin = await make_api_key("admin")
        await make_user(email="eve@example.com")

        response = await client.get(f"/api/v1/users?q={q}", headers=admin.headers)

        assert response.status_code == 200
        assert len(response.json()) == found


class TestControlCharacters:
    @pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x7f", "\x85"], ids=ascii)
    @pytest.mark.parametrize(
        ("name", "field"),
        [
            ("register", "username"),
            ("register", "full_name"),
            ("register", "email"),
            ("login", "email"),
            ("create key", "name"),
            ("create key", "description"),
            ("create key", "rate_limit"),
            ("create conversation", "title"),
            ("post message", "content"),
            ("post message", "model"),
            ("patch user", "full_name"),
        ],
    )
    async def test_are_refused(self, targets: Targets, name: str, field: str, character: str) -> None:
        target = targets[name]

        async with nothing_stored():
            response = await target.send(target.body | {field: f"te{character}xt"})

        assert_problem(response, 422, "validation_error")

    @pytest.mark.parametrize("field", ["title", "full_name"])
    async def test_are_refused_at_line_ends_of_a_name(self, targets: Targets, field: str) -> None:
        target = targets["create conversation" if field == "title" else "patch user"]

        response = await target.send({field: "one\ntwo"})

        assert_problem(response, 422, "validation_error")

    async def test_are_line_breaks_and_tabs_in_a_message(self, targets: Targets) -> None:
        response = await targets["post message"].send({"content": "one\n\ttwo\r\nthree"})

        assert response.status_code == 201
        assert response.json()["content"] == "one\n\ttwo\r\nthree"

    @pytest.mark.parametrize("q", ["%00", "a%00b", "%1b", "%0a", "%7f"])
    async def test_find_nobody(self, client: AsyncClient, q: str) -> None:
        admin = await make_api_key("admin")

        response = await client.get(f"/api/v1/users?q={q}", headers=admin.headers)

        assert response.status_code in {200, 422}
        assert response.status_code == 422 or response.json() == []

    async def test_name_nobody(self, client: AsyncClient) -> None:
        response = await client.get("/api/v1/users/username/ada%00")

        assert_problem(response, 404, "not_found")

    @pytest.mark.parametrize("query", ["cursor=%00", "limit=%00", "sort=%00", "role=%00", "plan=%00", "is_active=%00"])
    async def test_are_no_parameter(self, client: AsyncClient, query: str) -> None:
        admin = await make_api_key("admin")

        response = await client.get(f"/api/v1/users?{query}", headers=admin.headers)

        status, code = (400, "invalid_cursor") if query.startswith("cursor") else (422, "validation_error")
        assert_problem(response, status, code)

    async def test_in_a_password_do_not_lock_its_owner_out(self, client: AsyncClient) -> None:
        password = "turnip\tLantern\x0042\norbit"
        account = {"email": "ada@example.com", "password": password}

        registered = await client.post("/api/v1/auth/register", json=account)
        signed_in = await client.post("/api/v1/auth/login", json=account)
        changed = await client.patch(
            f"/api/v1/users/{registered.json()['id']}",
            headers={"Authorization": f"Bearer {signed_in.json()['access_token']}"},
            json={"email": "lovelace@example.com", "current_password": password},
        )

        assert (registered.status_code, signed_in.status_code, changed.status_code) == (201, 200, 200)


class TestBothCredentials:
    @pytest.mark.parametrize("path", ["/api/v1/auth/me", "/api/v1/conversations"])
    async def test_are_refused(self, client: AsyncClient, ada: SignedInUser, path: str) -> None:
        key = await make_api_key("admin")

        response = await client.get(path, headers=ada.headers | key.headers)

        assert_problem(response, 400, "ambiguous_credentials")

    async def test_are_refused_even_where_none_is_needed(self, client: AsyncClient, ada: SignedInUser) -> None:
        key = await make_api_key("admin")
        body = {"email": "new@example.com", "password": PASSWORD}

        async with nothing_stored():
            response = await client.post("/api/v1/auth/register", headers=ada.headers | key.headers, json=body)

        assert_problem(response, 400, "ambiguous_credentials")


def _claims(ada: SignedInUser, **changes: Any) -> dict[str, Any]:
    """What a good token of hers says."""
    now = datetime.now(UTC)
    claims = {
        "sub": str(ada.id),
        "sid": str(ada.session.id),
        "jti": "b2f1",
        "role": "user",
        "scope": "users:read",
        "iat": now,
        "nbf": now,
        "exp": now + timedelta(minutes=5),
        "iss": "octopus",
        "aud": "octopus",
    }
    return claims | changes


def _signed(ada: SignedInUser, **changes: Any) -> str:
    return jwt.encode(_claims(ada, **changes), SECRET, "HS256")


def _unsigned(ada: SignedInUser, algorithm: str = "none") -> str:
    header, payload, _ = jwt.encode(_claims(ada), "", "none").split(".")
    renamed = json.dumps({"alg": algorithm, "typ": "JWT"}).encode()
    return f"{_base64(renamed) if algorithm != 'none' else header}.{payload}."


def _without_its_signature(ada: SignedInUser) -> str:
    return _signed(ada).rpartition(".")[0] + "."


def _with_another_payload(ada: SignedInUser) -> str:
    header, _, signature = _signed(ada).split(".")
    payload = jwt.encode(_claims(ada, role="superuser"), SECRET, "HS256").split(".")[1]
    return f"{header}.{payload}.{signature}"


def _key_pair() -> tuple[bytes, bytes]:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return (
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def _signed_by_own_rsa_key(ada: SignedInUser) -> str:
    return jwt.encode(_claims(ada), _key_pair()[0], "RS256")


def _signed_with_a_public_key_as_secret(ada: SignedInUser) -> str:
    """By hand, because the library refuses to do what an attacker does."""
    signed = ".".join(jwt.encode(_claims(ada), "x" * 32, "HS256").split(".")[:2])
    return f"{signed}.{_base64(hmac.digest(_key_pair()[1], signed.encode(), hashlib.sha256))}"


def _signed_with_a_key_of_its_own(ada: SignedInUser) -> str:
    secret = b"k" * 32
    jwk = {"kty": "oct", "k": _base64(secret)}
    return jwt.encode(_claims(ada), secret, "HS256", headers={"jwk": jwk, "kid": "../../dev/null"})


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


FORGERIES: dict[str, Callable[[SignedInUser], str]] = {
    "alg none": _unsigned,
    "alg None": lambda ada: _unsigned(ada, "None"),
    "alg nOnE": lambda ada: _unsigned(ada, "nOnE"),
    "alg empty": lambda ada: _unsigned(ada, ""),
    "no signature": _without_its_signature,
    "other payload": _with_another_payload,
    "own RS256": _signed_by_own_rsa_key,
    "public key as secret": _signed_with_a_public_key_as_secret,
    "own key in the header": _signed_with_a_key_of_its_own,
    "wrong secret": lambda ada: jwt.encode(_claims(ada), "w" * 32, "HS256"),
    "empty secret": lambda ada: (
        f"{(head := _signed(ada).rpartition('.')[0])}.{_base64(hmac.digest(b'', head.encode(), 'sha256'))}"
    ),
    "HS512": lambda ada: jwt.encode(_claims(ada), SECRET.ljust(64, "0"), "HS512"),
    "HS384 with the secret": lambda ada: jwt.encode(_claims(ada), SECRET, "HS384"),
    "other issuer": lambda ada: _signed(ada, iss="elsewhere"),
    "other audience": lambda ada: _signed(ada, aud="elsewhere"),
    "no subject id": lambda ada: _signed(ada, sub="ada"),
    "operator as session": lambda ada: _signed(ada, sid={"$gt": ""}),
    "number as session": lambda ada: _signed(ada, sid=7),
    "nbf in the future": lambda ada: _signed(ada, nbf=datetime.now(UTC) + timedelta(minutes=5)),
    "exp of text": lambda ada: _signed(ada, exp="never"),
    **{
        f"without {name}": lambda ada, name=name: jwt.encode(  # type: ignore[misc]
            {claim: value for claim, value in _claims(ada).items() if claim != name}, SECRET, "HS256"
        )
        for name in ("sub", "sid", "jti", "role", "scope", "iat", "nbf", "exp", "iss", "aud")
    },
}


class TestForgedToken:
    async def test_would_work_if_it_were_none(self, client: AsyncClient, ada: SignedInUser) -> None:
        response = await _who(client, _signed(ada))

        assert response.status_code == 200
        assert response.json()["user_id"] == str(ada.id)

    @pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
    @pytest.mark.parametrize("forgery", FORGERIES)
    async def test_is_refused(self, client: AsyncClient, ada: SignedInUser, forgery: str) -> None:
        token = FORGERIES[forgery](ada)

        response = await _who(client, token)

        assert_problem(response, 401, "invalid_token")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert token not in response.text

    async def test_is_refused_when_it_has_expired(self, client: AsyncClient, ada: SignedInUser) -> None:
        response = await _who(client, _signed(ada, exp=datetime.now(UTC) - timedelta(seconds=1)))

        assert_problem(response, 401, "token_expired")

    async def test_is_refused_with_the_session_of_somebody_else(self, client: AsyncClient, ada: SignedInUser) -> None:
        bob = await make_signed_in()

        response = await _who(client, _signed(ada, sid=str(bob.session.id)))

        assert_problem(response, 401, "token_revoked")

    async def test_is_refused_with_a_session_that_never_was(self, client: AsyncClient, ada: SignedInUser) -> None:
        response = await _who(client, _signed(ada, sid=str(ObjectId())))

        assert_problem(response, 401, "token_revoked")

    async def test_gains_no_power_by_claiming_a_role(self, client: AsyncClient, ada: SignedInUser) -> None:
        token = _signed(ada, role="superuser", scope="admin")

        response = await client.get("/api/v1/users", headers={"Authorization": f"Bearer {token}"})

        assert_problem(response, 403, "insufficient_scope")

    @pytest.mark.parametrize(
        "authorization",
        [
            "",
            "Bearer",
            "Bearer ",
            "Bearer  ",
            "Bearer .",
            "Bearer ..",
            "Bearer a.b.c",
            "Bearer a.b.c.d.e",
            "Bearer null",
            "Bearer " + "A" * 10_000,
            "Bearer " + "." * 10_000,
            "Bearer " + _base64(b"[" * 20_000) + ".e30.e30",
            "Bearer " + _base64(b'{"alg": ["HS256"]}') + ".e30.e30",
            "Bearer " + _base64(b'{"alg": "HS256", "crit": ["exp"]}') + ".e30.e30",
            "Bearer " + _base64(b'{"alg": "HS256", "b64": false}') + ".e30.e30",
            "Basic YWRhOnR1cm5pcA==",
            "Token abc",
            b"Bearer \xe9\xff\x80",
            b"\xe9",
        ],
        ids=lambda value: str(value)[:20],
    )
    async def test_is_refused_when_it_is_garbage(self, client: AsyncClient, authorization: str | bytes) -> None:
        headers = [(b"authorization", authorization if isinstance(authorization, bytes) else authorization.encode())]

        response = await client.get("/api/v1/auth/me", headers=headers)

        assert_problem(response, 401, "invalid_token")

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "octopus_",
            "octopus_12345678_" + "a" * 38,
            "octopus_12345678_" + "a" * 100_000,
            "sk_live_abc",
            b"octopus_12345678_\xe9",
            '{"$gt": ""}',
        ],
        ids=lambda value: str(value)[:20],
    )
    async def test_is_refused_when_it_is_no_key_either(self, client: AsyncClient, key: str | bytes) -> None:
        headers = [(b"octopus-api-key", key if isinstance(key, bytes) else key.encode())]

        response = await client.get("/api/v1/auth/me", headers=headers)

        assert_problem(response, 401, "invalid_api_key")


class TestRotatedSecret:
    @pytest.mark.parametrize("kept", [True, False])
    async def test_is_accepted_as_long_as_it_is_configured(self, serve: Serve, *, kept: bool) -> None:
        old, new = SECRET, "Zq8Vt2LmXw5Rk9PyBn4Hs7DcJf3Ga6Ue"
        async with serve(secret_key=old):
            ada = await make_signed_in()

        async with serve(secret_key=new, previous_secret_keys=(old,) if kept else ()) as client:
            response = await _who(client, ada.access_token)

        assert response.status_code == (200 if kept else 401)

    async def test_signs_nothing_new(self, serve: Serve) -> None:
        new = "Zq8Vt2LmXw5Rk9PyBn4Hs7DcJf3Ga6Ue"
        async with serve(secret_key=new, previous_secret_keys=(SECRET,)) as client:
            ada = await make_user()
            account = {"email": ada.document.email, "password": ada.password}

            token = (await client.post("/api/v1/auth/login", json=account)).json()["access_token"]

        assert jwt.decode(token, new, algorithms=["HS256"], audience="octopus")["sub"] == str(ada.id)


class TestEcho:
    SECRET_TEXT = "hunter2-Never-Repeat-Me-0451"

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/auth/login", {"email": "ada@example.com", "password": SECRET_TEXT}),
            ("/auth/login", {"email": "ada@example.com", "username": "ada", "password": SECRET_TEXT}),
            ("/auth/login", {"email": 7, "password": SECRET_TEXT}),
            ("/auth/login", {"email": "ada@example.com", "password": [SECRET_TEXT]}),
            ("/auth/login", {"email": "ada@example.com", "password": {"value": SECRET_TEXT}}),
            ("/auth/login", {"email": "ada@example.com", "password": SECRET_TEXT * 200}),
            ("/auth/login", {"email": "ada@example.com", "passwort": SECRET_TEXT}),
            ("/auth/register", {"email": "wrong", "password": SECRET_TEXT}),
            ("/auth/register", {"email": SECRET_TEXT, "password": SECRET_TEXT}),
            ("/auth/register", {"email": f"{SECRET_TEXT}@example.com", "password": SECRET_TEXT}),
            ("/auth/register", {"email": "ada@example.com", "password": SECRET_TEXT, "role": SECRET_TEXT}),
            ("/auth/refresh", {"refresh_token": SECRET_TEXT}),
            ("/auth/refresh", {"refresh_token": [SECRET_TEXT]}),
            ("/auth/refresh", {"refresh_token": "674000000000000000000000." + SECRET_TEXT.ljust(43, "x")}),
        ],
    )
    async def test_of_a_secret_is_in_no_error(self, client: AsyncClient, path: str, body: dict[str, Any]) -> None:
        response = await client.post(f"/api/v1{path}", json=body)

        assert response.is_client_error
        assert_problem(response, response.status_code, response.json()["code"])
        assert self.SECRET_TEXT not in response.text

    async def test_of_a_secret_is_in_no_error_about_broken_json(self, client: AsyncClient) -> None:
        content = f'{{"email": "ada@example.com", "password": "{self.SECRET_TEXT}"'

        response = await client.post(
            "/api/v1/auth/login", content=content, headers={"Content-Type": "application/json"}
        )

        assert_problem(response, 400, "invalid_request")
        assert self.SECRET_TEXT not in response.text

    @pytest.mark.parametrize(
        "form",
        [
            {"grant_type": "password", "username": "ada", "password": SECRET_TEXT},
            {"grant_type": SECRET_TEXT, "username": "ada", "password": SECRET_TEXT},
            {"grant_type": "password", "password": SECRET_TEXT},
            {"grant_type": "refresh_token", "refresh_token": SECRET_TEXT},
            {"grant_type": "password", "username": "ada", "password": SECRET_TEXT, "client_sekret": SECRET_TEXT},
        ],
    )
    async def test_of_a_secret_is_in_no_error_about_a_form(self, client: AsyncClient, form: dict[str, str]) -> None:
        response = await client.post("/api/v1/auth/token", data=form)

        assert response.is_client_error
        assert_problem(response, response.status_code, response.json()["code"])
        assert self.SECRET_TEXT not in response.text

    @pytest.mark.parametrize("header", ["Octopus-API-Key", "Authorization", "X-Bootstrap-Token"])
    async def test_of_a_credential_is_in_no_error(self, serve: Serve, header: str) -> None:
        async with serve(bootstrap_token="a-token-of-the-operator") as client:
            response = await client.post(
                "/bootstrap" if header == "X-Bootstrap-Token" else "/api/v1/conversations",
                headers={header: f"Bearer {self.SECRET_TEXT}"},
            )

        assert response.status_code == 401
        assert self.SECRET_TEXT not in response.text
        assert self.SECRET_TEXT not in str(response.headers)

    async def test_of_the_old_and_the_new_password_is_in_no_error(self, client: AsyncClient, ada: SignedInUser) -> None:
        body = {"password": self.SECRET_TEXT, "current_password": f"{self.SECRET_TEXT}-2"}

        response = await client.patch(f"/api/v1/users/{ada.id}", headers=ada.headers, json=body)

        assert_problem(response, 401, "invalid_credentials")
        assert self.SECRET_TEXT not in response.text


async def _who(client: AsyncClient, token: str) -> Response:
    return await client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})


class TestFlood:
    """A body that would keep the server busy with telling what is wrong with it."""

    async def test_of_unknown_fields_is_one_mistake(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        body = {f"field{number}": 1 for number in range(60_000)}

        response = await client.post("/api/v1/items", json=body, headers=ada.headers)

        assert response.status_code == 422
        assert [(error["loc"], error["type"]) for error in response.json()["errors"]] == [(["body"], "extra_forbidden")]

    async def test_of_mistakes_is_cut(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await client.post(
            "/api/v1/conversations", json={"participant_ids": ["nobody"] * 900}, headers=ada.headers
        )

        assert (response.status_code, len(response.json()["errors"])) == (422, 100)
