"""A key is shown in one header, once."""

import pytest
from httpx import AsyncClient

from tests.api.test_api_keys import ME, verdict
from tests.conftest import Serve
from tests.factories import make_api_key, make_signed_in

NAME = "Octopus-API-Key"


class TestHeader:
    @pytest.mark.parametrize("is_other", [False, True])
    async def test_twice_is_refused(self, client: AsyncClient, *, is_other: bool) -> None:
        key, other = await make_api_key("read"), await make_api_key("admin")
        second = other if is_other else key

        response = await client.get(ME, headers=[(NAME, key.text), (NAME.lower(), second.text)])

        assert verdict(response) == (400, "ambiguous_credentials")

    async def test_beside_an_empty_one_is_refused(self, client: AsyncClient) -> None:
        key = await make_api_key("read")

        assert verdict(await client.get(ME, headers=[(NAME, ""), (NAME, key.text)])) == (400, "ambiguous_credentials")

    async def test_of_a_token_twice_is_refused(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        both = [("Authorization", user.headers["Authorization"]) for user in (ada, bob)]

        assert verdict(await client.get(ME, headers=both)) == (400, "ambiguous_credentials")

    async def test_of_two_keys_in_one_line_is_refused(self, client: AsyncClient) -> None:
        key = await make_api_key("read")

        response = await client.get(ME, headers={NAME: f"{key.text}, {key.text}"})

        assert verdict(response) == (401, "invalid_api_key")

    async def test_where_credentials_are_optional_must_be_one_too(self, client: AsyncClient) -> None:
        key = await make_api_key("read")

        response = await client.post("/api/v1/users", json={}, headers=[(NAME, key.text), (NAME, key.text)])

        assert verdict(response) == (400, "ambiguous_credentials")


class TestQuery:
    @pytest.mark.parametrize("name", ["api_key", "key", NAME, NAME.lower(), "octopus_api_key", "access_token"])
    async def test_holds_no_key(self, client: AsyncClient, name: str) -> None:
        key = await make_api_key("read")

        assert verdict(await client.get(ME, params={name: key.text})) == (401, "not_authenticated")


class TestPath:
    async def test_is_never_repeated_with_a_key_in_it(self, client: AsyncClient) -> None:
        key = await make_api_key("admin")

        response = await client.get(f"/api/v1/api-keys/{key.text}", headers=key.headers)

        assert response.status_code == 404
        assert key.text not in response.text
        assert response.json()["instance"].startswith("/api/v1/api-keys/")


class TestAddress:
    @pytest.mark.parametrize(
        "headers",
        [
            {"X-Forwarded-For": "192.0.2.7"},
            {"X-Real-IP": "192.0.2.7"},
            {"Forwarded": "for=192.0.2.7"},
            {"CF-Connecting-IP": "192.0.2.7"},
            {"True-Client-IP": "192.0.2.7"},
            {"X-Client-IP": "192.0.2.7", "X-Forwarded-For": "::ffff:192.0.2.7"},
        ],
        ids=lambda headers: next(iter(headers)),
    )
    async def test_is_not_what_the_client_says(self, serve: Serve, headers: dict[str, str]) -> None:
        async with serve(address="203.0.113.9") as client:
            key = await make_api_key("read", allowed_ips=["192.0.2.7"])

            assert verdict(await client.get(ME, headers={**key.headers, **headers})) == (403, "ip_not_allowed")

    @pytest.mark.parametrize(
        ("chain", "expected"),
        [
            ("192.0.2.7", (200, None)),
            ("::ffff:192.0.2.7", (200, None)),
            ("192.0.2.7, 203.0.113.9", (403, "ip_not_allowed")),  # the first is the client's own word
            ("203.0.113.9, 192.0.2.7", (200, None)),
            ("192.0.2.7, nonsense", (403, "ip_not_allowed")),
            ("", (403, "ip_not_allowed")),
        ],
    )
    @pytest.mark.parametrize("proxy", ["10.0.0.1", "::ffff:10.0.0.1"])
    async def test_behind_a_trusted_proxy_is_what_the_proxy_says(
        self, serve: Serve, chain: str, expected: tuple[int, str | None], proxy: str
    ) -> None:
        async with serve(address=proxy, trusted_proxies=["10.0.0.1"]) as client:
            key = await make_api_key("read", allowed_ips=["192.0.2.7"])
            headers = {**key.headers, "X-Forwarded-For": chain}

            assert verdict(await client.get(ME, headers=headers)) == expected
