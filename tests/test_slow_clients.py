"""Clients that take their time, in front of a real socket."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from httpx import AsyncClient

from app.api import http_protocol
from app.core.config import Settings
from app.main import create_app
from app.models.user import User
from tests.conftest import AMPLE
from tests.factories import PASSWORD, make_signed_in
from tests.live_server import live
from tests.scraping import scrape

Make = Callable[..., Settings]
BODY = json.dumps({"email": "ada@example.com", "password": PASSWORD}).encode()
HEAD = (
    b"POST /api/v1/auth/register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@pytest.fixture
def _short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "_BODY_SECONDS", 0.5)


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


async def drip(writer: asyncio.StreamWriter, content: bytes, *, every: float, piece: int = 1) -> None:
    """Send it piece by piece until all is sent or the other end has hung up."""
    for at in range(0, len(content), piece):
        if writer.transport.is_closing():
            return
        writer.write(content[at : at + piece])
        await asyncio.sleep(every)  # the slowness is what this is about


async def answer_to(url: str, head: bytes, body: bytes = b"", *, every: float = 0.1, piece: int = 1) -> bytes:
    """What comes back until the server hangs up, which it must within 15 s."""
    reader, writer = await connect(url)
    writer.write(head)
    dripping = asyncio.create_task(drip(writer, body, every=every, piece=piece))
    try:
        async with asyncio.timeout(15):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        dripping.cancel()
        writer.transport.abort()


def problem_of(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    problem: dict[str, Any] = json.loads(body)
    assert re.findall(rb"(?im)^x-request-id: ([\w.-]+)", head) == [problem["request_id"].encode()]
    return problem


async def cut(url: str) -> dict[str, float]:
    """How many connections were cut in this process by now, by reason."""
    async with AsyncClient(base_url=url, trust_env=False) as client:
        scraped = await scrape(client)
    name = "octopus_connections_cut_total"
    return {reason: scraped.value(name, reason=reason) for reason in ("too_many", "slow_headers", "slow_body")}


@pytest.mark.usefixtures("_short_windows")
class TestSlowClient:
    async def test_is_given_up_at_every_stage_and_keeps_nobody_waiting(self, make_settings: Make) -> None:
        settings = make_settings(header_timeout_seconds=0.5)
        named = HEAD.replace(b"Host: test", b"Host: test\r\nX-Request-ID: tea-1")
        chunked = HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")
        async with live(create_app(settings)) as url:
            before = await cut(url)
            ada = await make_signed_in()
            bearer = ada.headers["Authorization"].encode()
            upload = HEAD.replace(b"/api/v1/auth/register", b"/api/v1/uploads") % 10**6
            form = b"Content-Type: multipart/form-data; boundary=b\r\nAuthorization: " + bearer
            upload = upload.replace(b"Content-Type: application/json", form)
            part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
            silent, headers, body, chunks, file, refused, too_slow_after = await asyncio.gather(
                answer_to(url, b""),
                answer_to(url, b"GET / HTTP/1.1\r\nX-Long: ", b"a" * 10_000),
                answer_to(url, named % len(BODY), BODY),
                answer_to(url, chunked, b"1\r\na\r\n" * 1000, piece=6),
                answer_to(url, upload + part, b"a" * 10_000),
                answer_to(url, HEAD % 10**9, b"a" * 10_000),
                answer_to(url, b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n", b"\r\n" * 1000, piece=2),
            )
            async with AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.get("/health/ready")).status_code == 200
                assert (await client.get("/api/v1/uploads", headers=ada.headers)).json() == []
            accounts = await User.find({"email": "ada@example.com"}).count()
            after = await cut(url)

        assert silent == b""
        for answer in (headers, body, chunks, file):
            problem = problem_of(answer)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert (problem["status"], problem["code"]) == (408, "invalid_request")
        ids = [problem_of(answer)["request_id"] for answer in (headers, body, chunks, file)]
        assert ids[1] == "tea-1"
        assert len({each for each in ids if len(each) == 24}) == 3
        assert {reason: after[reason] - before[reason] for reason in after} == {
            "too_many": 0,
            "slow_headers": 3,
            "slow_body": 3,
        }
        assert refused.startswith(b"HTTP/1.1 413 ")
        assert too_slow_after.startswith(b"HTTP/1.1 200 ")
        assert accounts == 0

    async def test_is_waited_for_as_long_as_it_is_fast_enough(self, make_settings: Make) -> None:
        closing = HEAD.replace(b"Host: test", b"Host: test\r\nConnection: close") % len(BODY)
        async with live(create_app(make_settings(min_body_rate=20, header_timeout_seconds=0.5))) as url:
            answer = await answer_to(url, closing, BODY, every=0.1, piece=4)  # 40 bytes a second, for 1.5 s

        assert answer.startswith(b"HTTP/1.1 201 ")

    async def test_may_be_as_slow_as_it_is_where_no_rate_is_set(self, make_settings: Make) -> None:
        closing = HEAD.replace(b"Host: test", b"Host: test\r\nConnection: close") % len(BODY)
        async with live(create_app(make_settings(min_body_rate=0))) as url:
            answer = await answer_to(url, closing, BODY, every=0.3, piece=10)

        assert answer.startswith(b"HTTP/1.1 201 ")


class TestTooManyConnections:
    async def test_are_told_so_and_leave_the_others_alone(self, make_settings: Make) -> None:
        async with live(create_app(make_settings(max_connections=3, rate_limit_anonymous=AMPLE))) as url:
            before = await cut(url)
            held = [await connect(url) for _ in range(3)]
            refused = await answer_to(url, b"")
            reader, writer = held[0]
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            served = await reader.read()
            after = await cut(url)
            for _, other in held:
                other.transport.abort()

        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 2\r\n" in refused
        assert problem_of(refused)["code"] == "busy"
        assert len(problem_of(refused)["request_id"]) == 24
        assert {reason: after[reason] - before[reason] for reason in after} == {
            "too_many": 1,
            "slow_headers": 0,
            "slow_body": 0,
        }
        assert served.startswith(b"HTTP/1.1 200 ")
