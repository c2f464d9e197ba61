import asyncio
from typing import Any

import pytest
from bson import json_util
from httpx import AsyncClient

from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from tests.conftest import Serve, no_event_can_be_written

# Of the published form: the last six characters are the CRC-32 of the rest in base62.
MASTER = "octopus_Kx7Qm2Vd_Zr5Tn8Wb3Yc6Hf1Jg4Lp9Xk2Sv7Mq0De0rZwj9"
EVERY_SCOPE = [
    "admin",
    *("api_keys:read", "api_keys:write", "audit:read", "conversations:read", "conversations:write"),
    *("items:read", "items:write", "staff:assist", "staff:manage", "staff:view"),
    *("tokens:introspect", "uploads:read", "uploads:write"),
    *("usage:write", "users:read", "users:write"),
]


async def bootstrap(client: AsyncClient, token: str | None = None) -> tuple[int, dict[str, Any]]:
    response = await client.post("/bootstrap", headers={"X-Bootstrap-Token": token} if token is not None else {})
    return response.status_code, response.json()


async def scopes_of(client: AsyncClient, key: str) -> list[str]:
    response = await client.get("/api/v1/auth/me", headers={"Octopus-API-Key": key})
    assert response.status_code == 200
    scopes: list[str] = response.json()["scopes"]
    return scopes


class TestBootstrap:
    async def test_creates_a_key_that_may_do_everything(self, client: AsyncClient) -> None:
        status, body = await bootstrap(client)

        assert status == 201
        assert sorted(body) == ["api_key", "instructions", "message", "name", "scopes"]
        assert body["scopes"] == ["admin"]
        assert await scopes_of(client, body["api_key"]) == EVERY_SCOPE
        headers = {"Octopus-API-Key": body["api_key"]}
        made = await client.post("/api/v1/api-keys", json={"name": "ci", "scopes": "admin"}, headers=headers)
        assert made.status_code == 201

    async def test_makes_a_service_key_of_the_name_it_says(self, client: AsyncClient) -> None:
        _, body = await bootstrap(client)

        listed = await client.get("/api/v1/api-keys", headers={"Octopus-API-Key": body["api_key"]})

        [key] = listed.json()
        assert (key["name"], key["scopes"], key["owner_id"]) == (body["name"], ["admin"], None)
        assert (key["expires_at"], key["allowed_ips"], key["is_active"]) == (None, [], True)

    async def test_stores_nothing_that_could_be_used(self, client: AsyncClient) -> None:
        _, body = await bootstrap(client)

        secret = body["api_key"][17:49]
        documents = await ApiKey.get_pymongo_collection().find().to_list()
        events = await AuditEvent.get_pymongo_collection().find().to_list()
        assert (len(documents), len(events)) == (1, 1)
        assert secret not in json_util.dumps(documents + events)

    async def test_happens_once(self, client: AsyncClient) -> None:
        await bootstrap(client)

        status, body = await bootstrap(client)

        assert (status, body["code"]) == (409, "already_bootstrapped")
        assert await ApiKey.count() == 1

    async def test_happens_once_whatever_became_of_the_key(self, client: AsyncClient, serve: Serve) -> None:
        await bootstrap(client)
        await ApiKey.delete_all()

        async with serve() as after_a_restart:
            status, body = await bootstrap(after_a_restart)

            assert (status, body["code"]) == (409, "already_bootstrapped")

    @pytest.mark.usefixtures("patience")
    async def test_happens_once_of_twenty_at_the_same_time(self, client: AsyncClient) -> None:
        answers = await asyncio.gather(*(bootstrap(client) for _ in range(20)))

        assert sorted(status for status, _ in answers) == [201] + [409] * 19
        assert {body["code"] for status, body in answers if status == 409} == {"already_bootstrapped"}
        assert await ApiKey.count() == 1
        [key] = [body["api_key"] for status, body in answers if status == 201]
        assert await scopes_of(client, key) == EVERY_SCOPE

    async def test_is_recorded(self, client: AsyncClient) -> None:
        await bootstrap(client)
        await bootstrap(client)

        [event] = await AuditEvent.find_all().to_list()
        [key] = await ApiKey.find_all().to_list()
        assert (event.action, event.outcome) == ("service:bootstrapped", "success")
        assert (event.actor.kind, event.ip) == ("anonymous", "127.0.0.1")
        assert (event.target.kind, event.target.id) == ("api_key", key.id)

    async def test_can_be_repeated_when_it_could_not_be_recorded(self, client: AsyncClient) -> None:
        async with no_event_can_be_written():
            failed, problem = await bootstrap(client)
            keys_then = await ApiKey.count()
        status, body = await bootstrap(client)

        assert (failed, problem["code"], keys_then) == (500, "internal_error", 0)
        assert status == 201
        assert await scopes_of(client, body["api_key"]) == EVERY_SCOPE


class TestMasterApiKey:
    @pytest.mark.parametrize("name", ["master_api_key", "api_key"])
    async def test_is_installed_and_never_echoed(self, serve: Serve, name: str) -> None:
        async with serve(**{name: MASTER}) as client:
            response = await client.post("/bootstrap")

            assert response.status_code == 201
            assert response.json()["api_key"] is None
            assert MASTER[17:49] not in response.text
            assert await scopes_of(client, MASTER) == EVERY_SCOPE

    async def test_does_not_work_before(self, serve: Serve) -> None:
        async with serve(master_api_key=MASTER) as client:
            response = await client.get("/api/v1/auth/me", headers={"Octopus-API-Key": MASTER})

            assert response.status_code == 401
            assert response.json()["code"] == "invalid_api_key"

    async def test_is_installed_once_of_many_at_the_same_time(self, serve: Serve) -> None:
        async with serve(master_api_key=MASTER) as client:
            answers = await asyncio.gather(*(bootstrap(client) for _ in range(5)))

            assert sorted(status for status, _ in answers) == [201, 409, 409, 409, 409]
            assert await ApiKey.count() == 1
            assert await scopes_of(client, MASTER) == EVERY_SCOPE

    async def test_is_needed_no_more_once_installed(self, serve: Serve) -> None:
        async with serve(master_api_key=MASTER) as client:
            await bootstrap(client)

        async with serve() as client:
            assert await scopes_of(client, MASTER) == EVERY_SCOPE


class TestBootstrapToken:
    TOKEN = "aunt-Violet-7-harbour"

    @pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper()])
    async def test_is_asked_for(self, serve: Serve, token: str | None) -> None:
        async with serve(bootstrap_token=self.TOKEN) as client:
            response = await client.post("/bootstrap", headers={} if token is None else {"X-Bootstrap-Token": token})

            assert response.status_code == 401
            assert response.json()["code"] == "invalid_credentials"
            assert "www-authenticate" in response.headers
            assert self.TOKEN not in response.text
            assert await ApiKey.count() == 0

    async def test_opens_when_it_is_right(self, serve: Serve) -> None:
        async with serve(bootstrap_token=self.TOKEN) as client:
            refused, _ = await bootstrap(client, "wrong")
            status, body = await bootstrap(client, self.TOKEN)

            assert (refused, status) == (401, 201)
            assert await scopes_of(client, body["api_key"]) == EVERY_SCOPE

    async def test_is_asked_for_before_anything_is_told(self, serve: Serve) -> None:
        async with serve(bootstrap_token=self.TOKEN) as client:
            await bootstrap(client, self.TOKEN)

            status, body = await bootstrap(client, "wrong")

            assert (status, body["code"]) == (401, "invalid_credentials")

    async def test_can_be_guessed_as_rarely_as_any_credential(self, serve: Serve) -> None:
        async with serve(bootstrap_token=self.TOKEN, rate_limit_auth="2/day") as client:
            answers = [await bootstrap(client, "wrong") for _ in range(3)]

            assert [status for status, _ in answers] == [401, 401, 429]
            assert answers[2][1]["code"] == "rate_limited"
            assert await ApiKey.count() == 0

    async def test_is_not_needed_where_none_is_set(self, client: AsyncClient) -> None:
        status, _ = await bootstrap(client, "whatever")

        assert status == 201
