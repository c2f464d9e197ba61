"""What a client of OAuth 2 reads in the errors of the token endpoint, beside the problem."""

import re

import pytest
from httpx import AsyncClient, Response

from tests.conftest import Serve
from tests.factories import PASSWORD, make_signed_in, make_user

TOKEN = "/api/v1/auth/token"
DESCRIPTION = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749, section 5.2


def outcome(response: Response) -> tuple[int, str, str]:
    """Status, error of OAuth, code of ours."""
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert DESCRIPTION.fullmatch(body["error_description"])
    return response.status_code, body["error"], body["code"]


class TestError:
    @pytest.mark.parametrize(
        ("form", "expected"),
        [
            (
                {"grant_type": "password", "username": "ada", "password": "zebra"},
                (401, "invalid_grant", "invalid_credentials"),
            ),
            (
                {"grant_type": "password", "username": "nobody", "password": "zebra"},
                (401, "invalid_grant", "invalid_credentials"),
            ),
            ({"grant_type": "refresh_token", "refresh_token": "zebra"}, (401, "invalid_grant", "invalid_token")),
            ({"grant_type": "client_credentials"}, (422, "unsupported_grant_type", "validation_error")),
            ({"grant_type": "zebra", "colour": "blue"}, (422, "unsupported_grant_type", "validation_error")),
            ({}, (422, "invalid_request", "validation_error")),
            ({"username": "ada", "password": "zebra"}, (422, "invalid_request", "validation_error")),
            ({"grant_type": "password", "username": "ada"}, (422, "invalid_request", "validation_error")),
            (
                {"grant_type": "password", "username": "ada", "password": "zebra", 'co"lo\\ür\n': "blue"},
                (401, "invalid_grant", "invalid_credentials"),  # what is not known is ignored
            ),
        ],
    )
    async def test_says_what_is_wrong(
        self, client: AsyncClient, form: dict[str, str], expected: tuple[int, str, str]
    ) -> None:
        await make_user(username="ada")

        response = await client.post(TOKEN, data=form)

        assert outcome(response) == expected
        assert "zebra" not in response.text

    async def test_of_a_deactivated_account_is_of_the_grant(self, client: AsyncClient) -> None:
        await make_user(username="ada", is_active=False)

        response = await client.post(TOKEN, data={"grant_type": "password", "username": "ada", "password": PASSWORD})

        assert outcome(response) == (403, "invalid_grant", "account_disabled")

    async def test_of_a_refresh_token_whose_session_has_ended_is_of_the_grant(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await client.post("/api/v1/auth/logout", headers=ada.headers)

        response = await client.post(TOKEN, data={"grant_type": "refresh_token", "refresh_token": ada.refresh_token})

        assert outcome(response) == (401, "invalid_grant", "token_revoked")

    async def test_names_the_fields_that_are_missing(self, client: AsyncClient) -> None:
        response = await client.post(TOKEN, data={"grant_type": "refresh_token"})

        assert "refresh_token" in response.json()["error_description"]

    async def test_of_another_type_of_body_is_of_the_request(self, client: AsyncClient) -> None:
        response = await client.post(TOKEN, json={"grant_type": "password"})

        assert outcome(response) == (415, "invalid_request", "unsupported_media_type")

    async def test_of_a_large_body_is_of_the_request_with_a_slash_too(self, client: AsyncClient) -> None:
        for path in (TOKEN, f"{TOKEN}/"):
            response = await client.post(path, content=b"x" * 1_100_000)

            assert outcome(response) == (413, "invalid_request", "payload_too_large")

    async def test_of_too_many_requests_is_for_now(self, serve: Serve) -> None:
        form = {"grant_type": "refresh_token", "refresh_token": "zebra"}
        async with serve(rate_limit_auth="1/day") as client:
            await client.post(TOKEN, data=form)
            response = await client.post(TOKEN, data=form)

        assert outcome(response) == (429, "temporarily_unavailable", "rate_limited")

    async def test_is_nowhere_else(self, client: AsyncClient) -> None:
        login = await client.post("/api/v1/auth/login", json={"username": "ada", "password": "zebra"})
        refresh = await client.post("/api/v1/auth/refresh", json={"refresh_token": "zebra"})

        for response in (login, refresh):
            assert response.status_code == 401
            assert not response.json().keys() & {"error", "error_description"}
