import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from httpx import AsyncClient, Response

from app.core.clock import utc_now
from app.core.scopes import Role
from app.models.api_key import ApiKey
from app.models.session import Session
from tests.api.test_errors import assert_problem
from tests.commands import Commands
from tests.conftest import SECRET, Serve
from tests.factories import (
    PASSWORD,
    StoredKey,
    make_api_key,
    make_signed_in,
    make_user,
)
from tests.signing_keys import ALGORITHMS, key_file, key_of, private_pem

INTROSPECT = "/api/v1/auth/introspect"
OF_A_USER = (
    "api_keys:read api_keys:write conversations:read conversations:write "
    "items:read items:write uploads:read uploads:write users:read users:write"
)
WELL_FORMED_KEY = "octopus_Ab3dEf9H_0123456789abcdefghijABCDEFGHIJKL0qpSxx"


@pytest.fixture
async def inspector(client: AsyncClient) -> StoredKey:
    """A service that may look, and do nothing else."""
    assert client
    return await make_api_key("tokens:introspect")


async def ask(client: AsyncClient, inspector: StoredKey, token: str, **more: str) -> Response:
    return await client.post(INTROSPECT, data={"token": token, **more}, headers=inspector.headers)


async def is_nothing(client: AsyncClient, inspector: StoredKey, token: str) -> bool:
    """Whether the answer is the one that tells nothing."""
    response = await ask(client, inspector, token)
    assert response.status_code == 200
    return bool(response.json() == {"active": False})


class TestAccessToken:
    async def test_is_told_all_that_it_says(self, client: AsyncClient, inspector: StoredKey) -> None:
        ada = await make_signed_in(username="ada")
        claims = jwt.decode(ada.access_token, SECRET, ["HS256"], audience="octopus")

        response = await ask(client, inspector, ada.access_token)

        assert response.status_code == 200
        assert response.json() == {
            "active": True,
            "scope": OF_A_USER,
            "username": "ada",
            "token_type": "bearer",
            "exp": claims["exp"],
            "iat": claims["iat"],
            "nbf": claims["nbf"],
            "sub": str(ada.id),
            "aud": "octopus",
            "iss": "octopus",
            "jti": claims["jti"],
            "sid": str(ada.session.id),
            "role": "user",
        }
        assert abs(claims["iat"] - time.time()) < 10

    async def test_is_the_answer_of_none_but_the_one_who_asked(self, client: AsyncClient, inspector: StoredKey) -> None:
        response = await ask(client, inspector, (await make_signed_in()).access_token)

        assert response.headers["cache-control"] == "no-store"

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_is_known_under_every_algorithm(self, serve: Serve, tmp_path: Path, algorithm: str) -> None:
        path = key_file(tmp_path, private_pem(key_of(algorithm)))
        async with serve(jwt_algorithm=algorithm, jwt_private_key_file=path) as client:
            ada, key = await make_signed_in(), await make_api_key("tokens:introspect")
            response = await ask(client, key, ada.access_token)

        assert (response.json()["active"], response.json()["sub"]) == (True, str(ada.id))

    @pytest.mark.parametrize("hint", ["access_token", "refresh_token", "api_key", "nonsense", ""])
    async def test_needs_no_hint(self, client: AsyncClient, inspector: StoredKey, hint: str) -> None:
        ada = await make_signed_in()

        response = await ask(client, inspector, ada.access_token, token_type_hint=hint)

        assert response.json()["active"] is True

    async def test_of_a_user_without_a_name_has_none(self, client: AsyncClient, inspector: StoredKey) -> None:
        account = {"email": "ada@example.com", "password": PASSWORD}
        assert (await client.post("/api/v1/users", json=account)).status_code == 201
        token = (await client.post("/api/v1/auth/login", json=account)).json()["access_token"]

        answer = (await ask(client, inspector, token)).json()

        assert answer["active"] is True
        assert "username" not in answer

    async def test_has_the_scope_of_the_role_of_today(self, client: AsyncClient, inspector: StoredKey) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_signed_in()
        await ask(client, inspector, ada.access_token)

        changed = await client.patch(f"/api/v1/users/{ada.id}", headers=admin.headers, json={"role": "guest"})
        answer = (await ask(client, inspector, ada.access_token)).json()

        assert changed.status_code == 200
        assert (answer["role"], answer["scope"]) == (
            "guest",
            "conversations:read items:read uploads:read users:read",
        )

    async def test_may_do_nothing_before_a_needed_second_factor(self, serve: Serve) -> None:
        async with serve(require_mfa_for=["admin"]) as client:
            admin, key = await make_signed_in(role=Role.ADMIN), await make_api_key("tokens:introspect")
            answer = (await ask(client, key, admin.access_token)).json()

        assert (answer["active"], answer["role"], answer["scope"]) == (True, "admin", "")

    async def test_is_nothing_once_its_session_has_ended(self, client: AsyncClient, inspector: StoredKey) -> None:
        ada = await make_signed_in()
        before = await ask(client, inspector, ada.access_token)

        assert (await client.post("/api/v1/auth/logout", headers=ada.headers)).status_code == 204

        assert before.json()["active"] is True
        assert await is_nothing(client, inspector, ada.access_token)

    async def test_is_nothing_once_its_user_is_deleted(self, client: AsyncClient, inspector: StoredKey) -> None:
        ada = await make_signed_in()

        gone = await client.request(
            "DELETE", "/api/v1/users/me", headers=ada.headers, json={"current_password": PASSWORD}
        )

        assert gone.status_code == 204
        assert await is_nothing(client, inspector, ada.access_token)

    async def test_is_nothing_once_its_user_is_deactivated(self, client: AsyncClient, inspector: StoredKey) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_signed_in()

        changed = await client.patch(f"/api/v1/users/{ada.id}", headers=admin.headers, json={"is_active": False})

        assert changed.status_code == 200
        assert await is_nothing(client, inspector, ada.access_token)

    async def test_is_nothing_when_its_session_is_not_there(self, client: AsyncClient, inspector: StoredKey) -> None:
        ada = await make_signed_in()
        await Session.find_all().delete()

        assert await is_nothing(client, inspector, ada.access_token)

    @pytest.mark.parametrize(
        "change", [{"exp": 1}, {"nbf": 9_999_999_999}, {"iss": "elsewhere"}, {"aud": "elsewhere"}, {"sub": "nobody"}]
    )
    async def test_is_nothing_with_a_claim_that_is_wrong(
        self, client: AsyncClient, inspector: StoredKey, change: dict[str, Any]
    ) -> None:
        ada = await make_signed_in()
        claims = jwt.decode(ada.access_token, SECRET, ["HS256"], audience="octopus")

        assert not await is_nothing(client, inspector, jwt.encode(claims, SECRET, "HS256"))
        assert await is_nothing(client, inspector, jwt.encode(claims | change, SECRET, "HS256"))

    async def test_is_nothing_in_another_hand(self, client: AsyncClient, inspector: StoredKey) -> None:
        ada = await make_signed_in()
        claims = jwt.decode(ada.access_token, SECRET, ["HS256"], audience="octopus")

        assert await is_nothing(client, inspector, jwt.encode(claims, SECRET[::-1], "HS256"))
        assert await is_nothing(client, inspector, jwt.encode(claims, "", "none"))


class TestApiKey:
    async def test_of_a_service_names_the_key_and_what_it_may(self, client: AsyncClient, inspector: StoredKey) -> None:
        key = await make_api_key("users:read", "usage:write")

        response = await ask(client, inspector, key.text)

        assert response.status_code == 200
        assert response.json() == {
            "active": True,
            "scope": "usage:write users:read",
            "client_id": str(key.document.id),
            "token_type": "api_key",
            "sub": str(key.document.id),
        }

    async def test_of_a_user_names_the_user_and_what_both_may(self, client: AsyncClient, inspector: StoredKey) -> None:
        ada = await make_user()
        expires_at = utc_now() + timedelta(days=3)
        key = await make_api_key("admin", owner=ada, expires_at=expires_at)

        response = await ask(client, inspector, key.text)

        assert response.json() == {
            "active": True,
            "scope": OF_A_USER,
            "client_id": str(key.document.id),
            "token_type": "api_key",
            "sub": str(ada.id),
            "exp": int(expires_at.timestamp()),
        }

    @pytest.mark.parametrize("ip", ["203.0.113.7", "::ffff:203.0.113.7", " 203.0.113.7 "])
    async def test_is_judged_by_where_it_was_shown_and_not_by_who_asks(
        self, client: AsyncClient, inspector: StoredKey, ip: str
    ) -> None:
        key = await make_api_key("read", allowed_ips=["203.0.113.0/24"])

        used_from_here = await client.get("/api/v1/auth/me", headers=key.headers)
        answer = (await ask(client, inspector, key.text, ip=ip)).json()

        assert (used_from_here.status_code, answer["active"]) == (403, True)

    @pytest.mark.parametrize("place", [{}, {"ip": ""}, {"ip": "127.0.0.1"}, {"ip": "203.0.114.7"}], ids=str)
    async def test_of_certain_addresses_is_nothing_elsewhere_or_nowhere(
        self, client: AsyncClient, inspector: StoredKey, place: dict[str, str]
    ) -> None:
        key = await make_api_key("read", allowed_ips=["203.0.113.0/24"])

        response = await ask(client, inspector, key.text, **place)

        assert (response.status_code, response.json()) == (200, {"active": False})

    @pytest.mark.parametrize("place", [{}, {"ip": "198.51.100.9"}], ids=str)
    async def test_of_all_addresses_is_good_from_anywhere(
        self, client: AsyncClient, inspector: StoredKey, place: dict[str, str]
    ) -> None:
        key = await make_api_key("read")

        assert (await ask(client, inspector, key.text, **place)).json()["active"] is True

    async def test_is_looked_up_once(self, serve: Serve, commands: Commands) -> None:
        async with serve(auth_cache_seconds=0) as client:
            key, inspector = await make_api_key("read"), await make_api_key("tokens:introspect")
            commands.taken()
            assert (await ask(client, inspector, key.text)).json()["active"] is True

            looked_up = [command for command in commands.taken() if command.collection == "api_keys"]
            assert len(looked_up) == 2  # that of who asks, and that which is asked about

    async def test_of_a_user_who_needs_a_second_factor_may_do_nothing(self, serve: Serve) -> None:
        async with serve(require_mfa_for=["user"]) as client:
            key, inspector = await make_api_key("read", owner=await make_user()), await make_api_key()
            answer = (await ask(client, inspector, key.text)).json()

        assert (answer["active"], answer["scope"]) == (True, "")

    @pytest.mark.parametrize("change", [{"is_active": False}, {"expires_at": utc_now() - timedelta(seconds=1)}])
    async def test_is_nothing_when_it_is_over(
        self, client: AsyncClient, inspector: StoredKey, change: dict[str, Any]
    ) -> None:
        key = await make_api_key("read", **change)

        assert await is_nothing(client, inspector, key.text)

    async def test_is_nothing_once_it_is_deleted(self, client: AsyncClient, inspector: StoredKey) -> None:
        key, master = await make_api_key("read"), await make_api_key("admin")
        assert not await is_nothing(client, inspector, key.text)

        gone = await client.delete(f"/api/v1/api-keys/{key.document.id}", headers=master.headers)

        assert gone.status_code == 204
        assert await is_nothing(client, inspector, key.text)

    async def test_is_nothing_once_its_user_is_deleted(self, client: AsyncClient, inspector: StoredKey) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada)
        assert not await is_nothing(client, inspector, key.text)

        gone = await client.request(
            "DELETE", "/api/v1/users/me", headers=ada.headers, json={"current_password": PASSWORD}
        )

        assert gone.status_code == 204
        assert await is_nothing(client, inspector, key.text)

    async def test_is_nothing_with_another_secret(self, client: AsyncClient, inspector: StoredKey) -> None:
        ours = await make_api_key("read")
        await ApiKey.find_one({"_id": ours.document.id}).update({"$set": {"key_id": "Ab3dEf9H"}})

        assert await is_nothing(client, inspector, WELL_FORMED_KEY)


class TestAnythingElse:
    async def test_such_as_a_refresh_token_is_nothing(self, client: AsyncClient, inspector: StoredKey) -> None:
        ada = await make_signed_in()

        assert await is_nothing(client, inspector, ada.refresh_token)

    @pytest.mark.parametrize(
        "text",
        [
            *("x", ".", "..", "a.b.c", "é", "\0", "null", "{}", "Bearer x", "octopus_", WELL_FORMED_KEY, "🐙" * 100),
            *("eyJhbGciOiJub25lIn0.e30.", "W10.W10.W10", "A" * 100_000, "." * 100_000),
        ],
    )
    async def test_is_nothing(self, client: AsyncClient, inspector: StoredKey, text: str) -> None:
        assert await is_nothing(client, inspector, text)

    async def test_with_a_bottomless_header_is_nothing(self, client: AsyncClient, inspector: StoredKey) -> None:
        bottomless = jwt.utils.base64url_encode(b'{"a":' + b"[" * 100_000).decode()

        assert await is_nothing(client, inspector, f"{bottomless}.e30.AA")


class TestCaller:
    async def test_may_be_an_administrator(self, client: AsyncClient) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_signed_in()

        response = await client.post(INTROSPECT, data={"token": ada.access_token}, headers=admin.headers)

        assert response.json()["active"] is True

    async def test_must_show_who_it_is(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        assert_problem(await client.post(INTROSPECT, data={"token": ada.access_token}), 401, "not_authenticated")

    async def test_must_be_allowed_to_look(self, client: AsyncClient) -> None:
        ada, weak = await make_signed_in(), await make_api_key("read", "write")

        for headers in (ada.headers, weak.headers):
            response = await client.post(INTROSPECT, data={"token": ada.access_token}, headers=headers)
            assert_problem(response, 403, "insufficient_scope")

    async def test_does_not_pay_for_the_bad_tokens_of_others(self, serve: Serve) -> None:
        async with serve(rate_limit_auth="1/day") as client:
            inspector, gone = await make_api_key("tokens:introspect"), await make_signed_in()
            await Session.find_all().delete()
            for token in ("garbage", WELL_FORMED_KEY, gone.access_token, gone.refresh_token) * 2:
                assert await is_nothing(client, inspector, token)
            login = await client.post("/api/v1/auth/login", json={"email": "a@example.com", "password": "wrong"})

        assert_problem(login, 401, "invalid_credentials")

    async def test_pays_for_a_bad_credential_of_its_own(self, serve: Serve) -> None:
        async with serve(rate_limit_auth="1/day") as client:
            headers = {"Octopus-API-Key": WELL_FORMED_KEY}
            answers = [await client.post(INTROSPECT, data={"token": "x"}, headers=headers) for _ in range(2)]

        assert [answer.status_code for answer in answers] == [401, 429]


class TestForm:
    async def test_ignores_what_other_servers_ask_for(self, client: AsyncClient, inspector: StoredKey) -> None:
        ada = await make_signed_in()

        response = await ask(client, inspector, ada.access_token, client_id="x", client_secret="y", resource="z")

        assert response.json()["active"] is True

    @pytest.mark.parametrize("ip", ["example.com", "203.0.113.0/24", "1" * 200])
    async def test_must_name_an_address_if_any(self, client: AsyncClient, inspector: StoredKey, ip: str) -> None:
        response = await ask(client, inspector, "x", ip=ip)

        assert_problem(response, 422, "validation_error")
        assert response.json()["errors"][0]["loc"] == ["body", "ip"]

    @pytest.mark.parametrize("form", [{}, {"token": ""}, {"token_type_hint": "access_token"}])
    async def test_must_hold_a_token(self, client: AsyncClient, inspector: StoredKey, form: dict[str, str]) -> None:
        response = await client.post(INTROSPECT, data=form, headers=inspector.headers)

        assert_problem(response, 422, "validation_error")
        assert response.json()["errors"][0]["loc"] == ["body", "token"]

    async def test_is_no_json(self, client: AsyncClient, inspector: StoredKey) -> None:
        response = await client.post(INTROSPECT, json={"token": "x"}, headers=inspector.headers)

        assert_problem(response, 415, "unsupported_media_type")
        assert "application/x-www-form-urlencoded" in response.json()["detail"]

    async def test_is_in_no_query(self, client: AsyncClient, inspector: StoredKey) -> None:
        response = await client.post(f"{INTROSPECT}?token=x", headers=inspector.headers)

        assert_problem(response, 422, "validation_error")
