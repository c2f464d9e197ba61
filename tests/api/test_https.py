"""What came without TLS to a proxy that is trusted."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.core.config import Settings
from app.main import create_app
from tests.api.test_errors import assert_problem
from tests.conftest import PRODUCTION, Serve
from tests.factories import make_api_key, make_signed_in
from tests.live_server import live

BEHIND: dict[str, Any] = {**PRODUCTION, "trusted_proxies": ["127.0.0.0/8"]}
CLEAR = {"X-Forwarded-Proto": "http"}
HSTS = "strict-transport-security"


class TestLooking:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_is_sent_to_the_public_address(self, serve: Serve, method: str) -> None:
        async with serve(**BEHIND) as client:
            headers = CLEAR | {"Host": "evil.example"}
            answer = await client.request(method, "/docs/a%20b?c=d%26e&f", headers=headers)

        assert (answer.status_code, answer.headers["location"]) == (308, "https://octopus.example/docs/a%20b?c=d%26e&f")
        assert HSTS not in answer.headers

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("api.octopus.example", "api.octopus.example"),
            ("api.octopus.example:80", "api.octopus.example"),
            ("evil.example/.octopus.example", "octopus.example"),
            ("evil.example?.octopus.example", "octopus.example"),
            ("ada@evil.example#.octopus.example", "octopus.example"),
        ],
    )
    async def test_stays_at_a_trusted_host_and_goes_to_no_other(self, serve: Serve, host: str, expected: str) -> None:
        async with serve(**BEHIND, trusted_hosts=["*.octopus.example"]) as client:
            answer = await client.get("/docs", headers=CLEAR | {"Host": host})

        assert (answer.status_code, answer.headers["location"]) == (308, f"https://{expected}/docs")

    async def test_goes_to_no_host_that_is_in_the_path(self, make_settings: Callable[..., Settings]) -> None:
        async with live(create_app(make_settings(**BEHIND))) as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            head = b"Host: octopus.example\r\nX-Forwarded-Proto: http\r\nConnection: close\r\n\r\n"
            writer.write(b"GET *@evil.example/ HTTP/1.1\r\n" + head)
            answer = await reader.read()
            writer.close()

        assert b"\r\nlocation: https://octopus.example/\r\n" in answer.lower()

    async def test_goes_nowhere_from_a_host_that_is_not_trusted(self, serve: Serve) -> None:
        async with serve(**BEHIND, trusted_hosts=["octopus.example"]) as client:
            assert_problem(await client.get("/docs", headers=CLEAR | {"Host": "evil.example"}), 400, "invalid_request")


class TestAnythingElse:
    async def test_is_refused_and_not_carried_out(self, serve: Serve) -> None:
        async with serve(**BEHIND) as client:
            ada, key = await make_signed_in(), await make_api_key("admin")
            answers = [
                await client.post("/api/v1/items", json={"title": "Tea"}, headers=ada.headers | CLEAR),
                await client.post("/api/v1/auth/login", json={"email": "a@b.example", "password": "x"}, headers=CLEAR),
                await client.get("/api/v1/users", headers=key.headers | CLEAR),
                await client.get("/api/v1/auth/me", headers=ada.headers | CLEAR),
                await client.get("/api/v1/uploads/0/content?expires=1&signature=s", headers=CLEAR),
                await client.get("/", headers={"Cookie": f"__Secure-octopus_refresh={ada.refresh_token}"} | CLEAR),
            ]
            items = (await client.get("/api/v1/items", headers=ada.headers)).json()

        for answer in answers:
            assert_problem(answer, 400, "invalid_request")
            assert "location" not in answer.headers
        assert items == []


class TestWhatIsNotInClear:
    @pytest.mark.parametrize("told", [{}, {"X-Forwarded-Proto": "https"}, {"X-Forwarded-Proto": "http, https"}])
    async def test_is_answered_and_browsers_are_told_to_stay(self, serve: Serve, told: dict[str, str]) -> None:
        async with serve(**BEHIND) as client:
            answer = await client.get("/", headers=told)

        assert answer.status_code == 200
        assert "max-age=63072000" in answer.headers[HSTS]

    async def test_is_no_strangers_to_say(self, serve: Serve) -> None:
        async with serve(**PRODUCTION, trusted_proxies=["192.0.2.1"]) as client:
            answer = await client.get("/", headers=CLEAR)

        assert answer.status_code == 200
        assert HSTS in answer.headers

    @pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
    async def test_need_probes_not_be(self, serve: Serve, path: str) -> None:
        async with serve(**BEHIND) as client:
            answer = await client.get(path, headers=CLEAR)

        assert answer.status_code == 200
        assert HSTS not in answer.headers

    async def test_need_nothing_be_where_the_service_has_no_https_address(self, serve: Serve) -> None:
        async with serve(trusted_proxies=["127.0.0.0/8"]) as client:
            assert (await client.get("/", headers=CLEAR)).status_code == 200
