"""Another service asks whether a key that it was shown is good."""

from datetime import timedelta
from typing import Any

import pytest
import structlog
from bson import ObjectId, json_util
from httpx import AsyncClient, Response

from app.core.clock import utc_now
from app.core.key_usage import gathered
from app.core.scopes import Role
from app.models.api_key import ApiKey
from app.models.api_key_usage import ApiKeyUsage
from app.models.audit_event import AuditEvent
from app.services.key_usage_service import flush
from tests.api.test_api_keys import API_KEYS, sealed, url_of, use, verdict
from tests.commands import Commands
from tests.conftest import Serve
from tests.factories import StoredKey, make_api_key, make_signed_in, make_user

VERIFY = f"{API_KEYS}/verify"
UNKNOWN = sealed("octopus_Ab3dEf9H_" + "0" * 32)
NOTHING: dict[str, Any] = {
    "valid": False,
    "key_id": None,
    "owner_id": None,
    "scopes": [],
    "expires_at": None,
    "remaining": None,
}


@pytest.fixture
async def gateway(client: AsyncClient) -> StoredKey:  # noqa: ARG001 - documents need the application's database
    return await make_api_key("tokens:introspect")


async def ask(client: AsyncClient, gateway: StoredKey, key: StoredKey | str, **more: Any) -> Response:
    text = key if isinstance(key, str) else key.text
    return await client.post(VERIFY, json={"key": text, **more}, headers=gateway.headers)


async def code(client: AsyncClient, gateway: StoredKey, key: StoredKey | str, **more: Any) -> str:
    response = await ask(client, gateway, key, **more)
    assert response.status_code == 200
    assert response.json()["valid"] is (response.json()["code"] == "valid")
    return str(response.json()["code"])


class TestGoodKey:
    async def test_of_a_service_is_told_with_what_it_may(self, client: AsyncClient, gateway: StoredKey) -> None:
        key = await make_api_key("usage:write", "items:read")

        response = await ask(client, gateway, key)

        assert response.status_code == 200
        assert response.json() == {
            "valid": True,
            "code": "valid",
            "key_id": key.document.key_id,
            "owner_id": None,
            "scopes": ["items:read", "usage:write"],
            "expires_at": None,
            "remaining": None,
        }

    async def test_of_a_user_is_told_with_what_both_may(self, client: AsyncClient, gateway: StoredKey) -> None:
        guest, ends_at = await make_user(role=Role.GUEST), utc_now() + timedelta(days=3)
        quota = {"limit": 10, "period": "day"}
        key = await make_api_key("items:*", "admin", owner=guest, expires_at=ends_at, quota=quota)

        answer = (await ask(client, gateway, key)).json()

        assert (answer["code"], answer["owner_id"], answer["remaining"]) == ("valid", str(guest.id), 9)
        assert "items:write" not in answer["scopes"]
        assert answer["expires_at"] == ends_at.isoformat().replace("+00:00", "Z")

    @pytest.mark.parametrize("scopes", [["items:read"], "items:read", "items:read, usage:write", [], "", None])
    async def test_is_good_for_the_scopes_that_it_holds(
        self, client: AsyncClient, gateway: StoredKey, scopes: Any
    ) -> None:
        assert await code(client, gateway, await make_api_key("items:*", "usage:write"), scopes=scopes) == "valid"

    @pytest.mark.parametrize("ip", ["192.0.2.7", "::ffff:192.0.2.7", " 192.0.2.7 "])
    async def test_is_good_from_where_it_may_be_used(self, client: AsyncClient, gateway: StoredKey, ip: str) -> None:
        key = await make_api_key("read", allowed_ips=["192.0.2.0/24"])

        assert await code(client, gateway, key, ip=ip) == "valid"


class TestBadKey:
    @pytest.mark.parametrize("text", ["", "x", "🐙", "\0", "octopus_", UNKNOWN, UNKNOWN[:-1] + "x", "A" * 100_000])
    async def test_that_is_none_is_told_as_that(self, client: AsyncClient, gateway: StoredKey, text: str) -> None:
        response = await ask(client, gateway, text)

        assert (response.status_code, response.json()) == (200, {**NOTHING, "code": "invalid_api_key"})

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"is_active": False}, "invalid_api_key"),
            ({"key_hash": b"another"}, "invalid_api_key"),
            ({"expires_at": utc_now() - timedelta(seconds=1)}, "api_key_expired"),
        ],
    )
    async def test_that_is_over_is_told_as_that(
        self, client: AsyncClient, gateway: StoredKey, change: dict[str, Any], expected: str
    ) -> None:
        key = await make_api_key("read")
        await key.document.set(change)

        response = await ask(client, gateway, key)

        assert (response.status_code, response.json()) == (200, {**NOTHING, "code": expected})

    async def test_of_a_user_who_is_gone_is_none(self, client: AsyncClient, gateway: StoredKey) -> None:
        ada = await make_user()
        key = await make_api_key("read", owner=ada)
        await ada.document.set({"is_active": False})

        assert await code(client, gateway, key) == "invalid_api_key"

    @pytest.mark.parametrize("ip", ["192.0.3.7", "::ffff:192.0.3.7", "2001:db8::7", None])
    async def test_that_is_shown_elsewhere_is_told_as_that(
        self, client: AsyncClient, gateway: StoredKey, ip: str | None
    ) -> None:
        key = await make_api_key("read", allowed_ips=["192.0.2.0/24"])

        assert await code(client, gateway, key, ip=ip) == "ip_not_allowed"

    @pytest.mark.parametrize("scopes", [["items:write"], "items:read,users:read", ["admin"]])
    async def test_that_lacks_a_scope_is_told_as_that(
        self, client: AsyncClient, gateway: StoredKey, scopes: Any
    ) -> None:
        assert await code(client, gateway, await make_api_key("items:read"), scopes=scopes) == "insufficient_scope"

    async def test_whose_owner_needs_a_second_factor_is_told_as_that(self, serve: Serve) -> None:
        async with serve(require_mfa_for=["user"]) as client:
            key, gateway = await make_api_key("read", owner=await make_user()), await make_api_key()

            assert await code(client, gateway, key) == "mfa_required"

    async def test_that_has_used_up_its_quota_is_told_as_that(self, client: AsyncClient, gateway: StoredKey) -> None:
        key = await make_api_key("read", quota={"limit": 3, "period": "day"})

        first = await use(client, key)
        answers = [(await ask(client, gateway, key)).json() for _ in range(3)]

        assert first.status_code == 200
        assert [(answer["code"], answer["remaining"]) for answer in answers] == [
            ("valid", 1),
            ("valid", 0),
            ("quota_exceeded", 0),
        ]
        assert verdict(await use(client, key)) == (429, "quota_exceeded")

    @pytest.mark.parametrize("is_personal", [False, True])
    async def test_that_is_beyond_its_rate_is_told_as_that(
        self, client: AsyncClient, gateway: StoredKey, *, is_personal: bool
    ) -> None:
        owner = await make_user() if is_personal else None
        key = await make_api_key("read", rate_limit="2/day", owner=owner, quota={"limit": 9, "period": "day"})

        codes = [await code(client, gateway, key) for _ in range(3)]

        assert codes == ["valid", "valid", "rate_limited"]
        assert verdict(await use(client, key)) == (429, "rate_limited")
        master = await make_api_key("admin")
        assert (await client.get(url_of(key), headers=master.headers)).json()["quota"]["remaining"] == 7

    async def test_that_is_refused_draws_nothing(self, client: AsyncClient, gateway: StoredKey) -> None:
        key = await make_api_key("read", rate_limit="1/day", quota={"limit": 1, "period": "day"})

        for more in ({"scopes": "admin"}, {"scopes": "users:write"}):
            assert await code(client, gateway, key, **more) == "insufficient_scope"

        assert await code(client, gateway, key) == "valid"


class TestCount:
    async def test_is_that_of_the_key_and_not_of_who_asks(self, client: AsyncClient, gateway: StoredKey) -> None:
        gathered.take(1_000_000)
        key = await make_api_key("items:read")
        for scopes in ("items:read", "admin", "items:read"):
            await ask(client, gateway, key, scopes=scopes, ip="192.0.2.7")
        await flush()

        rows = {row.key_id: (row.requests, row.denied) for row in await ApiKeyUsage.find_all().to_list()}
        assert rows == {key.document.id: (3, 1), gateway.document.id: (3, 0)}
        found = await ApiKey.get(key.document.id)
        assert found is not None
        assert found.last_used_ip == "192.0.2.7"


class TestCaller:
    async def test_sees_its_own_budget(self, serve: Serve) -> None:
        async with serve(rate_limit_authenticated="100/day") as client:
            gateway, key = await make_api_key("tokens:introspect"), await make_api_key("read", rate_limit="7/day")
            response = await ask(client, gateway, key)

        assert response.headers["x-ratelimit-limit"] == "100"
        assert response.headers["x-ratelimit-remaining"] == "99"

    async def test_must_be_allowed_to_look(self, client: AsyncClient) -> None:
        ada, weak = await make_signed_in(), await make_api_key("read", "write")

        for headers in (ada.headers, weak.headers):
            response = await client.post(VERIFY, json={"key": weak.text}, headers=headers)
            assert verdict(response) == (403, "insufficient_scope")

    async def test_does_not_pay_for_the_bad_keys_of_others(self, serve: Serve) -> None:
        async with serve(rate_limit_auth="1/day") as client:
            gateway = await make_api_key("tokens:introspect")
            for _ in range(4):
                assert await code(client, gateway, UNKNOWN) == "invalid_api_key"
            login = await client.post("/api/v1/auth/login", json={"email": "a@example.com", "password": "wrong"})

        assert verdict(login) == (401, "invalid_credentials")

    async def test_is_limited_in_how_many_it_tries(self, serve: Serve) -> None:
        async with serve(rate_limit_authenticated="2/day") as client:
            gateway = await make_api_key("tokens:introspect")
            answers = [await ask(client, gateway, UNKNOWN) for _ in range(3)]

        assert [answer.status_code for answer in answers] == [200, 200, 429]

    async def test_costs_no_query_for_what_is_no_key(self, serve: Serve, commands: Commands) -> None:
        async with serve(auth_cache_seconds=0) as client:
            gateway = await make_api_key("tokens:introspect")
            commands.taken()
            await ask(client, gateway, UNKNOWN[:-1] + "x")

            assert len(commands.taken()) == 1  # that of its own key


class TestBody:
    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"key": None},
            {"key": 7},
            {"key": "x", "scopes": ["everything"]},
            {"key": "x", "ip": "example.com"},
            {"key": "x", "ip": "192.0.2.0/24"},
            {"key": "x", "address": "192.0.2.7"},
        ],
        ids=str,
    )
    async def test_that_is_bad_is_refused(self, client: AsyncClient, gateway: StoredKey, body: dict[str, Any]) -> None:
        response = await client.post(VERIFY, json=body, headers=gateway.headers)

        assert verdict(response) == (422, "validation_error")

    async def test_is_neither_logged_nor_echoed(self, client: AsyncClient, gateway: StoredKey) -> None:
        key = await make_api_key("read")
        secret = key.text[17:49]

        with structlog.testing.capture_logs() as logged:
            answers = [
                await ask(client, gateway, key),
                await ask(client, gateway, key, scopes="admin"),
                await ask(client, gateway, key, scopes="nonsense"),
                await client.post(VERIFY, json={"key": [key.text], key.text: 1}, headers=gateway.headers),
            ]
        events = json_util.dumps(await AuditEvent.get_pymongo_collection().find().to_list())

        assert [answer.status_code for answer in answers] == [200, 200, 422, 422]
        texts = [*(answer.text for answer in answers[:3]), events, json_util.dumps(logged, default=str)]
        assert [text for text in texts if secret in text] == []
        assert str(ObjectId(gateway.document.id)) in texts[-1]
