"""The refresh token in a cookie: kept from scripts, and from the pages of other sites."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from http.cookies import Morsel, SimpleCookie
from typing import Any

import pytest
from httpx import AsyncClient, Response

from app.core.clock import utc_now
from app.models.session import Session
from tests.api.signing_in import AUTH, bearer, events, log_in, outcome, refresh, warmed, who_am_i
from tests.conftest import PRODUCTION, Serve
from tests.factories import SignedInUser, StoredUser, make_signed_in, make_user, sign_in

PLAIN, SECURE = "octopus_refresh", "__Secure-octopus_refresh"
STAGING: dict[str, Any] = {"environment": "staging"}
APP = "https://app.example.com"
EVIL = "https://evil.example.net"
FROM_OTHER_SITES = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://test"},
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://test:8080"},
    {"Origin": "http://test.example.net"},
    {"Origin": "http://test@evil.example.net"},
    {"Origin": "http://["},
    {"Origin": "*"},
]
FROM_THE_OWN_SITE: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://test"},
    {"Origin": "http://test"},
    {"Origin": "https://test"},
]


@pytest.fixture
async def warm_client(client: AsyncClient) -> AsyncClient:
    return await warmed(client)


async def log_in_by_cookie(client: AsyncClient, user: StoredUser, headers: Mapping[str, str] | None = None) -> Response:
    body = {"email": user.document.email, "password": user.password, "refresh_in_cookie": True}
    return await client.post(f"{AUTH}/login", json=body, headers=headers)


async def refresh_by_cookie(
    client: AsyncClient,
    token: str,
    *,
    name: str = PLAIN,
    headers: Mapping[str, str] | None = None,
    body: dict[str, Any] | None = None,
) -> Response:
    client.cookies.clear()  # what is sent is what the test says
    return await client.post(f"{AUTH}/refresh", json=body, headers={**(headers or {}), "Cookie": f"{name}={token}"})


def cookie_of(response: Response) -> Morsel[str]:
    """The one cookie that the answer sets."""
    (header,) = response.headers.get_list("set-cookie")
    (morsel,) = SimpleCookie(header).values()
    return morsel


def attributes_of(morsel: Morsel[str]) -> dict[str, Any]:
    return {name: value for name, value in morsel.items() if value}


class TestLogIn:
    async def test_puts_the_refresh_token_where_no_script_reads_it(self, client: AsyncClient) -> None:
        ada = await make_user()

        response = await log_in_by_cookie(client, ada)

        cookie = cookie_of(response)
        assert response.status_code == 200
        assert response.json()["refresh_token"] is None
        assert cookie.value not in response.text
        assert (await who_am_i(client, response.json()["access_token"])).status_code == 200
        assert (await refresh(client, cookie.value)).status_code == 200

    async def test_binds_the_cookie_to_the_site_and_the_path(self, client: AsyncClient) -> None:
        cookie = cookie_of(await log_in_by_cookie(client, await make_user()))

        assert cookie.key == "octopus_refresh"
        assert attributes_of(cookie) == {
            "path": "/api/v1/auth",
            "max-age": "2592000",
            "httponly": True,
            "samesite": "strict",
        }

    @pytest.mark.parametrize("settings", [PRODUCTION, STAGING], ids=["production", "staging"])
    async def test_sends_it_over_tls_only_where_there_is_tls(self, serve: Serve, settings: dict[str, Any]) -> None:
        async with serve(**settings) as client:
            cookie = cookie_of(await log_in_by_cookie(client, await make_user()))

        assert cookie.key == "__Secure-octopus_refresh"
        assert attributes_of(cookie) == {
            "path": "/api/v1/auth",
            "max-age": "2592000",
            "httponly": True,
            "secure": True,
            "samesite": "strict",
        }

    async def test_lets_it_live_as_long_as_the_session(self, serve: Serve) -> None:
        async with serve(refresh_token_expire_days=2) as client:
            cookie = cookie_of(await log_in_by_cookie(client, await make_user()))

        assert cookie["max-age"] == "172800"

    async def test_sets_no_cookie_that_nobody_asked_for(self, client: AsyncClient) -> None:
        ada = await make_user()

        response = await log_in(client, ada)
        declined = await log_in(client, ada, refresh_in_cookie=False)

        for answer in (response, declined):
            assert "set-cookie" not in answer.headers
            assert answer.json()["refresh_token"]

    @pytest.mark.parametrize("headers", FROM_OTHER_SITES)
    async def test_refuses_the_page_of_another_site(self, client: AsyncClient, headers: dict[str, str]) -> None:
        response = await log_in_by_cookie(client, await make_user(), headers)

        assert outcome(response) == (403, "forbidden")
        assert "set-cookie" not in response.headers
        assert await Session.count() == 0

    @pytest.mark.parametrize("headers", FROM_THE_OWN_SITE)
    async def test_takes_its_own_pages_and_what_is_no_browser(
        self, client: AsyncClient, headers: dict[str, str]
    ) -> None:
        assert (await log_in_by_cookie(client, await make_user(), headers)).status_code == 200

    @pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": EVIL}])
    async def test_minds_no_site_without_the_cookie(self, client: AsyncClient, headers: dict[str, str]) -> None:
        ada = await make_user()
        body = {"email": ada.document.email, "password": ada.password}

        assert (await client.post(f"{AUTH}/login", json=body, headers=headers)).status_code == 200

    async def test_sets_no_cookie_when_it_fails(self, client: AsyncClient) -> None:
        ada = await make_user()
        ada.password = "not the password"

        response = await log_in_by_cookie(client, ada)

        assert outcome(response) == (401, "invalid_credentials")
        assert "set-cookie" not in response.headers


async def log_in_over(
    client: AsyncClient, user: StoredUser, cookie: str, headers: Mapping[str, str] | None = None, name: str = PLAIN
) -> Response:
    """Sign in by cookie in a browser that has a refresh cookie."""
    client.cookies.clear()
    return await log_in_by_cookie(client, user, {**(headers or {}), "Cookie": f"{name}={cookie}"})


class TestLogInOverAnother:
    async def test_ends_the_session_that_the_browser_had(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        assert (await who_am_i(warm_client, ada.access_token)).status_code == 200

        response = await log_in_over(warm_client, ada, ada.refresh_token)

        assert response.status_code == 200
        assert outcome(await who_am_i(warm_client, ada.access_token)) == (401, "token_revoked")
        assert outcome(await refresh(warm_client, ada.refresh_token)) == (401, "token_revoked")
        assert (await refresh_by_cookie(warm_client, cookie_of(response).value)).status_code == 200
        (event,) = await events("session:ended")
        assert (event.actor.id, event.target.id, event.details) == (ada.id, ada.session.id, {"reason": "replaced"})

    async def test_is_what_a_browser_does_by_itself(self, client: AsyncClient) -> None:
        ada = await make_user()
        for _ in range(3):
            assert (await log_in_by_cookie(client, ada)).status_code == 200

        assert await Session.count() == 1
        assert (await client.post(f"{AUTH}/refresh")).status_code == 200

    async def test_ends_that_of_another_user_too(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()

        assert (await log_in_over(client, bob, ada.refresh_token)).status_code == 200

        assert outcome(await who_am_i(client, ada.access_token)) == (401, "token_revoked")
        assert (await who_am_i(client, bob.access_token)).status_code == 200
        (event,) = await events("session:ended")
        assert event.actor.id == ada.id

    async def test_spares_the_session_of_a_spent_token(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        pair = (await refresh(client, ada.refresh_token)).json()

        assert (await log_in_over(client, ada, ada.refresh_token)).status_code == 200

        assert (await refresh(client, pair["refresh_token"])).status_code == 200

    @pytest.mark.parametrize(
        "cookie", ["", "zebra", '""', "6746d0a8f8f8f8f8f8f8f8f8.zebra", f"6746d0a8f8f8f8f8f8f8f8f8.{'x' * 43}", "%00"]
    )
    async def test_minds_no_cookie_that_is_no_token(self, client: AsyncClient, cookie: str) -> None:
        ada = await make_signed_in()

        assert (await log_in_over(client, ada, cookie)).status_code == 200

        assert (await who_am_i(client, ada.access_token)).status_code == 200
        assert await events("session:ended") == []

    async def test_minds_no_session_that_has_expired(self, client: AsyncClient) -> None:
        ada = await sign_in(await make_user(), expires_at=utc_now() - timedelta(seconds=1))

        assert (await log_in_over(client, ada, ada.refresh_token)).status_code == 200

        assert await events("session:ended") == []

    @pytest.mark.parametrize("headers", FROM_OTHER_SITES)
    async def test_spares_it_for_the_page_of_another_site(self, client: AsyncClient, headers: dict[str, str]) -> None:
        ada = await make_signed_in()

        assert outcome(await log_in_over(client, ada, ada.refresh_token, headers)) == (403, "forbidden")

        assert (await who_am_i(client, ada.access_token)).status_code == 200

    async def test_spares_it_when_it_fails(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        ada.password = "not the password"

        assert outcome(await log_in_over(client, ada, ada.refresh_token)) == (401, "invalid_credentials")

        assert (await who_am_i(client, ada.access_token)).status_code == 200

    async def test_spares_it_when_the_new_one_goes_into_no_cookie(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        client.headers["Cookie"] = f"{PLAIN}={ada.refresh_token}"

        assert (await log_in(client, ada)).status_code == 200

        assert (await who_am_i(client, ada.access_token)).status_code == 200

    async def test_knows_only_the_cookie_of_tls_in_production(self, serve: Serve) -> None:
        for name, left in ((PLAIN, 2), (SECURE, 1)):
            async with served(serve, **PRODUCTION) as (client, ada):
                await log_in_over(client, ada, ada.refresh_token, name=name)
                assert await Session.find({"user_id": ada.id}).count() == left


@asynccontextmanager
async def served(serve: Serve, **settings: Any) -> AsyncIterator[tuple[AsyncClient, SignedInUser]]:
    async with serve(**settings) as client:
        yield client, await make_signed_in()


class TestRefresh:
    async def test_rotates_the_cookie(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await refresh_by_cookie(client, ada.refresh_token)

        cookie = cookie_of(response)
        assert (response.status_code, response.json()["refresh_token"]) == (200, None)
        assert cookie.value not in {"", ada.refresh_token}
        assert attributes_of(cookie) == {
            "path": "/api/v1/auth",
            "max-age": "2592000",
            "httponly": True,
            "samesite": "strict",
        }
        assert (await who_am_i(client, response.json()["access_token"])).json()["session_id"] == str(ada.session.id)
        assert (await refresh_by_cookie(client, cookie.value)).status_code == 200

    async def test_is_what_a_browser_does_by_itself(self, client: AsyncClient) -> None:
        await log_in_by_cookie(client, await make_user())
        before = dict(client.cookies)

        response = await client.post(f"{AUTH}/refresh")

        assert response.status_code == 200
        assert dict(client.cookies).keys() == before.keys()
        assert dict(client.cookies) != before

    async def test_gives_the_same_cookie_again_within_ten_seconds(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_signed_in()
        first = cookie_of(await refresh_by_cookie(client, ada.refresh_token))

        monkeypatch.setattr("app.services.session_service.utc_now", lambda: utc_now() + timedelta(seconds=9))
        second = cookie_of(await refresh_by_cookie(client, ada.refresh_token))

        assert first.value == second.value

    async def test_ends_the_session_when_a_spent_cookie_comes_back_later(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_signed_in()
        cookie = cookie_of(await refresh_by_cookie(client, ada.refresh_token))

        monkeypatch.setattr("app.services.session_service.utc_now", lambda: utc_now() + timedelta(seconds=11))

        assert outcome(await refresh_by_cookie(client, ada.refresh_token)) == (401, "token_revoked")
        assert outcome(await refresh_by_cookie(client, cookie.value)) == (401, "token_revoked")

    @pytest.mark.parametrize("headers", FROM_OTHER_SITES)
    async def test_refuses_the_page_of_another_site(self, client: AsyncClient, headers: dict[str, str]) -> None:
        ada = await make_signed_in()

        response = await refresh_by_cookie(client, ada.refresh_token, headers=headers)

        assert outcome(response) == (403, "forbidden")
        assert await events("session:refreshed") == []

    @pytest.mark.parametrize("headers", FROM_THE_OWN_SITE)
    async def test_takes_its_own_pages_and_what_is_no_browser(
        self, client: AsyncClient, headers: dict[str, str]
    ) -> None:
        ada = await make_signed_in()

        assert (await refresh_by_cookie(client, ada.refresh_token, headers=headers)).status_code == 200

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    async def test_welcomes_the_origins_that_may_call(self, serve: Serve, site: str) -> None:
        async with served(serve, cors_origins=[APP]) as (client, ada):
            headers = {"Origin": APP, "Sec-Fetch-Site": site}

            response = await refresh_by_cookie(client, ada.refresh_token, headers=headers)

            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == APP

    @pytest.mark.parametrize("origin", [EVIL, "https://app.example.com.evil.example.net", "http://app.example.com"])
    async def test_welcomes_no_other_origin_beside_them(self, serve: Serve, origin: str) -> None:
        async with served(serve, cors_origins=[APP]) as (client, ada):
            response = await refresh_by_cookie(client, ada.refresh_token, headers={"Origin": origin})

        assert outcome(response) == (403, "forbidden")

    @pytest.mark.parametrize("origin", [EVIL, "*", "null"])
    async def test_does_not_welcome_every_origin_when_everyone_may_call(self, serve: Serve, origin: str) -> None:
        async with served(serve, cors_origins=["*"]) as (client, ada):
            for headers in ({"Origin": origin}, {"Origin": origin, "Sec-Fetch-Site": "cross-site"}):
                refused = await refresh_by_cookie(client, ada.refresh_token, headers=headers)
                not_begun = await log_in_by_cookie(client, ada, headers)

                assert outcome(refused) == outcome(not_begun) == (403, "forbidden")

    async def test_prefers_the_token_of_the_body(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()

        response = await refresh_by_cookie(client, bob.refresh_token, body={"refresh_token": ada.refresh_token})

        assert "set-cookie" not in response.headers
        assert response.json()["refresh_token"]
        assert (await who_am_i(client, response.json()["access_token"])).json()["id"] == str(ada.id)
        assert (await refresh(client, bob.refresh_token)).status_code == 200

    async def test_minds_no_site_with_the_token_in_the_body(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": EVIL}

        response = await client.post(f"{AUTH}/refresh", json={"refresh_token": ada.refresh_token}, headers=headers)

        assert response.status_code == 200

    @pytest.mark.parametrize("body", [None, {}, {"refresh_token": None}])
    async def test_takes_the_cookie_when_the_body_names_no_token(
        self, client: AsyncClient, body: dict[str, Any] | None
    ) -> None:
        ada = await make_signed_in()

        assert (await refresh_by_cookie(client, ada.refresh_token, body=body)).status_code == 200

    async def test_asks_for_a_token_when_there_is_none_at_all(self, client: AsyncClient) -> None:
        response = await client.post(f"{AUTH}/refresh")

        assert outcome(response) == (422, "validation_error")
        assert response.json()["errors"][0]["loc"] == ["body", "refresh_token"]

    @pytest.mark.parametrize("token", ["zebra", '""', "6746d0a8f8f8f8f8f8f8f8f8.zebra"])
    async def test_refuses_a_cookie_that_is_no_token(self, client: AsyncClient, token: str) -> None:
        response = await refresh_by_cookie(client, token)

        assert outcome(response) == (401, "invalid_token")
        assert "zebra" not in response.text
        assert "set-cookie" not in response.headers

    async def test_knows_only_the_cookie_of_tls_in_production(self, serve: Serve) -> None:
        async with served(serve, **PRODUCTION) as (client, ada):
            plain = await refresh_by_cookie(client, ada.refresh_token, name=PLAIN)
            secure = await refresh_by_cookie(client, ada.refresh_token, name=SECURE)

        assert outcome(plain) == (422, "validation_error")
        assert outcome(secure) == (200, None)
        assert cookie_of(secure).key == "__Secure-octopus_refresh"

    async def test_takes_nothing_else_by_cookie(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await client.get(f"{AUTH}/me", headers={"Cookie": f"{PLAIN}={ada.refresh_token}"})

        assert outcome(response) == (401, "not_authenticated")


class TestLogOut:
    @pytest.mark.parametrize("path", ["logout", "logout-all"])
    @pytest.mark.parametrize(
        ("settings", "name", "flags"),
        [({}, PLAIN, {"httponly": True}), (PRODUCTION, SECURE, {"httponly": True, "secure": True})],
        ids=["development", "production"],
    )
    async def test_makes_the_browser_forget_the_cookie(
        self, serve: Serve, path: str, settings: dict[str, Any], name: str, flags: dict[str, Any]
    ) -> None:
        async with served(serve, **settings) as (client, ada):
            await warmed(client)
            headers = {**bearer(ada.access_token), "Cookie": f"{name}={ada.refresh_token}"}

            response = await client.post(f"{AUTH}/{path}", headers=headers)

            cookie = cookie_of(response)
            assert response.status_code == 204
            assert (cookie.key, cookie.value, cookie["max-age"], cookie["path"]) == (name, "", "0", "/api/v1/auth")
            assert attributes_of(cookie).items() >= flags.items()
            again = await refresh_by_cookie(client, ada.refresh_token, name=name)
            assert outcome(again) == (401, "token_revoked")

    @pytest.mark.parametrize("path", ["logout", "logout-all"])
    async def test_sets_none_where_there_was_none(self, client: AsyncClient, path: str) -> None:
        ada = await make_signed_in()

        response = await client.post(f"{AUTH}/{path}", headers=ada.headers)

        assert response.status_code == 204
        assert "set-cookie" not in response.headers
