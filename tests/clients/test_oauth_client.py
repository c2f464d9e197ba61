"""A library that knows OAuth 2 and nothing of us signs in, stays signed in, and calls."""

import time
from typing import Any

import pytest
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.requests_client import OAuth2Session

from tests.clients.conftest import Serving
from tests.factories import PASSWORD
from tests.test_server import ADA, Server, sign_up

REFUSED = [
    ({"grant_type": "password", "username": ADA["email"], "password": "wrong"}, "invalid_grant"),
    ({"grant_type": "password", "username": "nobody", "password": "wrong"}, "invalid_grant"),
    ({"grant_type": "refresh_token", "refresh_token": "wrong"}, "invalid_grant"),
    ({"grant_type": "password", "username": "ada"}, "invalid_request"),
    ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
]


@pytest.fixture
def server(serving: Serving) -> Server:
    """A service with one account."""
    server = serving("HS256")
    sign_up(server)
    return server


def session_of(server: Server, **properties: Any) -> Any:
    return OAuth2Session(token_endpoint=url(server, "/auth/token"), **properties)


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.port}/api/v1{path}"


class TestOAuth2Session:
    def test_signs_in_and_refreshes(self, server: Server) -> None:
        for client in ({}, {"client_id": "app"}, {"client_id": "app", "client_secret": "s3cret"}):
            with session_of(server, **client) as session:
                first = dict(session.fetch_token(username=ADA["email"], password=PASSWORD, grant_type="password"))
                me = session.get(url(server, "/auth/me"))
                second = session.refresh_token(refresh_token=first["refresh_token"])
                me_again = session.get(url(server, "/auth/me"))

            assert (me.status_code, me_again.status_code) == (200, 200)
            assert me_again.json()["session_id"] == me.json()["session_id"]
            assert second["access_token"] != first["access_token"]
            assert me.request.headers["Authorization"] == f"Bearer {first['access_token']}"
            assert me_again.request.headers["Authorization"] == f"Bearer {second['access_token']}"

    def test_refreshes_by_itself_when_a_token_has_expired(self, server: Server) -> None:
        kept: list[str] = []
        with session_of(server, update_token=lambda token, **_: kept.append(token["access_token"])) as session:
            token = dict(session.fetch_token(username=ADA["email"], password=PASSWORD, grant_type="password"))
            session.token = token | {"expires_at": int(time.time()) - 1}
            me = session.get(url(server, "/auth/me"))

        assert me.status_code == 200
        assert [f"Bearer {access_token}" for access_token in kept] == [me.request.headers["Authorization"]]

    def test_is_told_what_is_wrong_in_its_own_words(self, server: Server) -> None:
        for form, expected in REFUSED:
            with session_of(server) as session, pytest.raises(OAuthError) as refusal:
                session.fetch_token(**form)

            assert (form, refusal.value.error) == (form, expected)
            assert refusal.value.description
            assert session.token is None

    def test_is_told_when_to_come_back(self, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.test_server.AMPLE", "1/day")
        server = serving("HS256")
        with session_of(server) as session:
            for expected in ("invalid_grant", "temporarily_unavailable"):
                with pytest.raises(OAuthError) as refusal:
                    session.fetch_token(grant_type="refresh_token", refresh_token="wrong")
                assert refusal.value.error == expected

    def test_introspects(self, server: Server) -> None:
        headers = {"Octopus-API-Key": server.post("/bootstrap").json()["api_key"]}
        with session_of(server) as session:
            token = session.fetch_token(username=ADA["email"], password=PASSWORD, grant_type="password")
            session.headers.update(headers)
            answers = [
                session.introspect_token(
                    url(server, "/auth/introspect"), token=token[name], token_type_hint=name, auth=no_more
                ).json()
                for name in ("access_token", "refresh_token")
            ]

        assert (answers[0]["active"], answers[0]["token_type"]) == (True, "bearer")
        assert answers[1] == {"active": False}


def no_more(request: Any) -> Any:
    """The key in the header says who asks."""
    return request
