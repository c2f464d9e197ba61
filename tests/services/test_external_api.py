"""HTTP to others, against a real server that does what servers do."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from openai import AsyncOpenAI, InternalServerError, RateLimitError

from app.core import circuit_breaker
from app.services import external_api
from app.services.external_api import Call, ExternalApi, ExternalApiError
from tests.assistant_server import MODEL, Assistant, Exchange, Says, answers, open_assistant, says


@pytest.fixture
async def assistant() -> AsyncIterator[Assistant]:
    async with open_assistant() as opened:
        yield opened


@pytest.fixture
async def other() -> AsyncIterator[Assistant]:
    """A server elsewhere, which is as private as the first."""
    async with open_assistant() as opened:
        yield opened


@pytest.fixture
async def api() -> AsyncIterator[ExternalApi]:
    async with external_api.opened():
        yield external_api.get_api()


def call_of(assistant: Assistant, **changes: Any) -> Call:
    call = Call(
        method="POST",
        url=f"{assistant.url}/things",
        headers={"Authorization": "Bearer sk-1", "Accept": "text/plain", "X-Own": "7"},
        content=b"body",
        idle_seconds=5,
        total_seconds=10,
        max_bytes=1_000_000,
    )
    return replace(call, **changes)


async def read(api: ExternalApi, call: Call) -> bytes:
    async with api.stream(call) as answer:
        return b"".join([chunk async for chunk in answer.chunks()])


async def refusal(api: ExternalApi, call: Call) -> ExternalApiError:
    with pytest.raises(ExternalApiError) as caught:
        await read(api, call)
    return caught.value


def redirects(to: str, status: int = 307) -> Any:
    return answers(status, location=to)


class TestAnswer:
    async def test_is_read_as_it_comes(self, api: ExternalApi, assistant: Assistant) -> None:
        behaviour = Says("one")
        assistant.script.append(behaviour)

        async with api.stream(call_of(assistant)) as answer:
            chunks = answer.chunks()
            first = await anext(chunks)
            behaviour.let_go.set()
            rest = b"".join([chunk async for chunk in chunks])

        assert answer.media_type == "text/event-stream"
        assert b"one" in first
        assert b"the rest" not in first
        assert b"the rest" in rest

    async def test_is_asked_for_as_the_call_says(self, api: ExternalApi, assistant: Assistant) -> None:
        await read(api, call_of(assistant))

        [exchange] = assistant.exchanges
        assert (exchange.method, exchange.path, exchange.content) == ("POST", "/v1/things", b"body")
        assert exchange.headers["authorization"] == "Bearer sk-1"
        assert exchange.headers["accept-encoding"] == "identity"

    async def test_leaves_no_cookie_behind(self, api: ExternalApi, assistant: Assistant) -> None:
        assistant.usually = answers(200, b"x", set_cookie="a=b; Path=/")

        await read(api, call_of(assistant))
        await read(api, call_of(assistant))

        assert "cookie" not in assistant.exchanges[1].headers

    async def test_uses_a_connection_again_once_all_is_read(self, api: ExternalApi, assistant: Assistant) -> None:
        await read(api, call_of(assistant))
        await read(api, call_of(assistant))
        assert assistant.connections == 1

        assistant.script.append(Says("one"))
        async with api.stream(call_of(assistant)) as answer:
            await anext(answer.chunks())
        await asyncio.wait_for(assistant.exchanges[2].gone.wait(), 5)
        await read(api, call_of(assistant))
        assert assistant.connections == 2

    @pytest.mark.parametrize(("size", "is_taken"), [(1_000_000, True), (1_000_001, False)])
    async def test_has_a_bound_on_its_size(
        self, api: ExternalApi, assistant: Assistant, size: int, *, is_taken: bool
    ) -> None:
        assistant.usually = answers(200, b"x" * size)

        if is_taken:
            assert len(await read(api, call_of(assistant))) == size
        else:
            assert "too large" in str(await refusal(api, call_of(assistant)))

    async def test_of_endless_headers_is_refused(self, api: ExternalApi, assistant: Assistant) -> None:
        async def go_on(exchange: Exchange) -> None:
            await exchange.raw(b"HTTP/1.1 200 OK\r\n")
            while not exchange.gone.is_set():
                await exchange.raw(b"X-More: " + b"x" * 10_000 + b"\r\n")

        assistant.usually = go_on

        assert (await refusal(api, call_of(assistant))).is_failure
        assert assistant.exchanges[0].sent < 20_000_000


class TestFault:
    """What is not a good answer, and whether the host is to blame for it."""

    @pytest.mark.parametrize(
        ("status", "headers", "retry_after", "is_failure"),
        [
            (400, {}, None, False),
            (401, {}, None, False),
            (404, {"retry_after": "7"}, None, False),
            (429, {}, 5, False),
            (429, {"retry_after": "11"}, 11, False),
            (429, {"retry_after": "999999999999"}, 3600, False),
            (429, {"retry_after": "soon"}, 5, False),
            (503, {"retry_after": "-1"}, 5, True),
            (503, {"retry_after": "Fri, 31 Dec 2100 23:59:59 GMT"}, 3600, True),
            (503, {"retry_after": "Fri, 31 Dec 2100 23:59:59 +999999999999999999"}, 5, True),
            (500, {}, None, True),
            (302, {}, None, False),
        ],
    )
    async def test_is_told_by_the_status(
        self,
        api: ExternalApi,
        assistant: Assistant,
        status: int,
        headers: dict[str, Any],
        retry_after: int | None,
        *,
        is_failure: bool,
    ) -> None:
        assistant.usually = answers(status, **headers)

        error = await refusal(api, call_of(assistant))

        assert (str(error), error.retry_after, error.is_failure) == (f"it answers {status}", retry_after, is_failure)
        assert len(assistant.exchanges) == 1

    @pytest.mark.parametrize("content", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b""])
    async def test_is_what_breaks_off_or_is_no_http(
        self, api: ExternalApi, assistant: Assistant, content: bytes
    ) -> None:
        async def behave(exchange: Exchange) -> None:
            await exchange.raw(content)
            exchange.writer.write_eof()

        assistant.usually = behave

        assert (await refusal(api, call_of(assistant))).is_failure
        assert len(assistant.exchanges) == 1  # who knows what it has done

    async def test_is_a_chunk_that_breaks_off(self, api: ExternalApi, assistant: Assistant) -> None:
        async def behave(exchange: Exchange) -> None:
            await exchange.begin_events()
            await exchange.raw(b"20\r\nhalf")
            exchange.writer.write_eof()

        assistant.usually = behave

        assert (await refusal(api, call_of(assistant))).is_failure

    @pytest.mark.parametrize("words", [(), ("one",)])
    async def test_is_a_long_silence(self, api: ExternalApi, assistant: Assistant, words: tuple[str, ...]) -> None:
        behaviour = Says(*words)
        assistant.usually = behaviour

        error = await refusal(api, call_of(assistant, idle_seconds=0.2))

        assert (str(error), error.is_failure) == ("ReadTimeout", True)
        await asyncio.wait_for(assistant.exchanges[0].gone.wait(), 5)

    async def test_is_what_takes_too_long_in_all(self, api: ExternalApi, assistant: Assistant) -> None:
        async def trickle(exchange: Exchange) -> None:
            await exchange.begin_events()
            while not exchange.gone.is_set():
                await exchange.chunk(b"x")
                await asyncio.sleep(0.01)

        assistant.usually = trickle

        error = await refusal(api, call_of(assistant, total_seconds=0.3))

        assert (str(error), error.is_failure) == ("it takes too long", True)
        await asyncio.wait_for(assistant.exchanges[0].gone.wait(), 5)

    async def test_is_not_the_hosts_when_the_time_goes_by_with_whoever_takes_the_answer(
        self, api: ExternalApi, assistant: Assistant
    ) -> None:
        """Else five callers who read slowly would keep the host from everybody."""
        assistant.usually = Says("one")
        is_over = asyncio.Event()

        async def take_slowly() -> None:
            async with api.stream(call_of(assistant, total_seconds=0.5)) as answer:
                async for _ in answer.chunks():
                    await is_over.wait()

        asyncio.get_running_loop().call_later(0.6, is_over.set)
        with pytest.raises(ExternalApiError) as caught:
            await take_slowly()

        assert (str(caught.value), caught.value.is_failure) == ("it takes too long", False)

    async def test_is_nobody_who_listens(self, api: ExternalApi, assistant: Assistant) -> None:
        error = await refusal(api, call_of(assistant, url=f"http://127.0.0.1:{closed_port()}/"))

        assert (str(error), error.is_failure) == ("ConnectError", True)


class TestTryingAgain:
    async def test_is_done_while_nobody_listens_yet(
        self, api: ExternalApi, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sleep, port = asyncio.sleep, closed_port()
        servers: list[asyncio.Server] = []

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
            return assistant.serve(reader, writer)

        async def listen_meanwhile(seconds: float) -> None:
            assert 0 <= seconds < 0.8
            if not servers:
                servers.append(await asyncio.start_server(accept, "127.0.0.1", port))
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", listen_meanwhile)
        try:
            content = await read(api, call_of(assistant, url=f"http://127.0.0.1:{port}/"))
        finally:
            monkeypatch.undo()
            for server in servers:
                server.close()

        assert b"Hello" in content
        assert len(servers) == 1

    @pytest.mark.parametrize("status", [429, 503])
    async def test_is_done_when_that_is_asked_for(self, api: ExternalApi, assistant: Assistant, status: int) -> None:
        assistant.script.extend([answers(status, retry_after="0")] * 2)

        content = await read(api, call_of(assistant))

        assert b"Hello" in content
        assert [exchange.content for exchange in assistant.exchanges] == [b"body"] * 3

    async def test_ends_after_three_times(self, api: ExternalApi, assistant: Assistant) -> None:
        assistant.usually = answers(503, retry_after="0")

        error = await refusal(api, call_of(assistant))

        assert (str(error), error.retry_after) == ("it answers 503", 0)
        assert len(assistant.exchanges) == 3

    async def test_takes_no_longer_than_all_may_take(self, api: ExternalApi, assistant: Assistant) -> None:
        assistant.usually = answers(503, retry_after="9")

        error = await refusal(api, call_of(assistant, total_seconds=0.2))

        assert str(error) == "it takes too long"
        assert len(assistant.exchanges) == 1


class TestRedirects:
    async def test_are_not_followed(self, api: ExternalApi, assistant: Assistant) -> None:
        assistant.usually = redirects("/v2/things")

        error = await refusal(api, call_of(assistant))

        assert (str(error), error.is_failure) == ("it redirects, and that is not followed", False)
        assert len(assistant.exchanges) == 1

    @pytest.mark.parametrize("status", [307, 308])
    async def test_are_followed_at_home_where_that_is_wanted(
        self, api: ExternalApi, assistant: Assistant, status: int
    ) -> None:
        assistant.script.append(redirects("/v2/things?a=b", status))

        await read(api, call_of(assistant, redirects=1))

        [_, exchange] = assistant.exchanges
        assert (exchange.method, exchange.path, exchange.content) == ("POST", "/v2/things?a=b", b"body")
        assert exchange.headers["authorization"] == "Bearer sk-1"

    async def test_are_followed_so_often_and_no_more(self, api: ExternalApi, assistant: Assistant) -> None:
        assistant.usually = redirects("/v2/things")

        await refusal(api, call_of(assistant, redirects=2))

        assert len(assistant.exchanges) == 3

    @pytest.mark.parametrize("status", [301, 302, 303])
    async def test_that_make_another_request_are_not_followed(
        self, api: ExternalApi, assistant: Assistant, status: int
    ) -> None:
        assistant.script.append(redirects("/v2/things", status))

        await refusal(api, call_of(assistant, redirects=5))

        assert len(assistant.exchanges) == 1

    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::]", "0.0.0.0", "2130706433"],  # noqa: S104
    )
    async def test_to_private_addresses_are_refused(
        self, api: ExternalApi, assistant: Assistant, other: Assistant, host: str
    ) -> None:
        assistant.script.append(redirects(f"http://{host}:{other.port}/v1/things"))

        error = await refusal(api, call_of(assistant, redirects=1))

        assert (str(error), error.is_failure) == ("it redirects to an address that is not public", False)
        assert other.connections == 0

    async def test_back_home_from_elsewhere_are_refused_too(
        self, api: ExternalApi, assistant: Assistant, other: Assistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretend_public(monkeypatch, other)
        assistant.script.append(redirects(f"http://elsewhere.example:{other.port}/"))
        other.script.append(redirects(f"{assistant.url}/secrets"))

        error = await refusal(api, call_of(assistant, redirects=5))

        assert str(error) == "it redirects to an address that is not public"
        assert len(other.exchanges) == 1
        assert [exchange.path for exchange in assistant.exchanges] == ["/v1/things"]

    async def test_elsewhere_take_no_credential_along(
        self, api: ExternalApi, assistant: Assistant, other: Assistant
    ) -> None:
        assistant.script.append(redirects(f"http://127.0.0.1:{other.port}/there"))

        await read(api, call_of(assistant, redirects=1, may_redirect_to_private=True))

        [exchange] = other.exchanges
        assert (exchange.path, exchange.content, exchange.headers["accept"]) == ("/there", b"body", "text/plain")
        assert exchange.headers.keys() & {"authorization", "x-own", "cookie"} == set()

    async def test_go_to_the_address_that_was_checked(
        self, api: ExternalApi, assistant: Assistant, other: Assistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name that is public at the first look and private at the second is looked up once."""
        looks = pretend_public(monkeypatch, other)
        assistant.script.append(redirects(f"http://elsewhere.example:{other.port}/there"))

        await read(api, call_of(assistant, redirects=1))

        assert looks == ["elsewhere.example"]
        assert other.exchanges[0].headers["host"] == f"elsewhere.example:{other.port}"

    @pytest.mark.parametrize("target", ["ftp://127.0.0.1/", "file:///etc/passwd", "http://", "http:///x"])
    async def test_to_what_is_no_http_are_refused(self, api: ExternalApi, assistant: Assistant, target: str) -> None:
        assistant.usually = redirects(target)

        error = await refusal(api, call_of(assistant, redirects=1))

        assert (str(error), error.is_failure) == ("it redirects, and that is not followed", False)

    @pytest.mark.parametrize(
        "target",
        [
            "http://[",
            "http://a:99999999/",
            "\x7f",
            "http://[::1%25lo]:1/",
            f"http://{'a' * 64}.example/",
            "http://a..b/",
            "http:////]",
            "http://xn--a/",
        ],
    )
    async def test_to_what_is_no_place_are_errors_like_others(
        self, api: ExternalApi, assistant: Assistant, target: str
    ) -> None:
        assistant.usually = redirects(target)

        await refusal(api, call_of(assistant, redirects=1))


class TestSparing:
    async def test_begins_after_five_failures_and_ends_with_a_success(
        self, api: ExternalApi, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assistant.usually = answers(500)
        for _ in range(5):
            await refusal(api, call_of(assistant))

        error = await refusal(api, call_of(assistant))
        assert str(error) == "it has failed often lately"
        assert error.retry_after in range(14, 16)
        assert len(assistant.exchanges) == 5

        monkeypatch.setattr(circuit_breaker, "OPEN_SECONDS", 0)
        await refusal(api, call_of(assistant))
        assistant.usually = says("Hi")
        await read(api, call_of(assistant))
        monkeypatch.undo()
        await read(api, call_of(assistant))
        assert len(assistant.exchanges) == 8

    async def test_is_of_one_host(self, api: ExternalApi, assistant: Assistant, other: Assistant) -> None:
        assistant.usually = answers(500)
        for _ in range(5):
            await refusal(api, call_of(assistant))

        await read(api, call_of(other))

        assert len(other.exchanges) == 1

    @pytest.mark.parametrize("status", [400, 401, 429])
    async def test_is_for_faults_of_the_host_only(self, api: ExternalApi, assistant: Assistant, status: int) -> None:
        assistant.usually = answers(status)

        for _ in range(7):
            await refusal(api, call_of(assistant))

        assert len(assistant.exchanges) == 7

    async def test_counts_what_is_made_of_the_answer(self, api: ExternalApi, assistant: Assistant) -> None:
        async def find_nonsense() -> None:
            async with api.stream(call_of(assistant)):
                raise ExternalApiError("nonsense")

        for _ in range(5):
            with pytest.raises(ExternalApiError, match="nonsense"):
                await find_nonsense()

        assert str(await refusal(api, call_of(assistant))) == "it has failed often lately"


class TestOfficialClient:
    """The server of these tests speaks the protocol as those understand it who made it."""

    async def test_reads_what_the_server_says(self, assistant: Assistant) -> None:
        assistant.usually = says("Grüße", " 🐙")
        async with AsyncOpenAI(base_url=assistant.url, api_key="sk-1", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="parrot",
                messages=[{"role": "user", "content": "Hello"}],
                stream=True,
                stream_options={"include_usage": True},
                max_tokens=7,
            )
            chunks = [chunk async for chunk in stream]

        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "Grüße 🐙"
        assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
        assert {chunk.model for chunk in chunks} == {MODEL}
        assert chunks[-1].usage is not None
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (11, 5)

    async def test_asks_as_this_service_asks(self, assistant: Assistant) -> None:
        async with AsyncOpenAI(base_url=assistant.url, api_key="sk-1", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="parrot",
                messages=[{"role": "user", "content": "Hello"}],
                stream=True,
                stream_options={"include_usage": True},
                max_tokens=7,
            )
            await stream.close()

        [exchange] = assistant.exchanges
        assert (exchange.method, exchange.path) == ("POST", "/v1/chat/completions")
        assert exchange.headers["authorization"] == "Bearer sk-1"
        assert exchange.body == {
            "model": "parrot",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 7,
        }

    async def test_takes_its_errors_for_errors(self, assistant: Assistant) -> None:
        assistant.script.extend([answers(429, retry_after="7"), answers(500)])
        async with AsyncOpenAI(base_url=assistant.url, api_key="sk-1", max_retries=0) as client:
            for kind in (RateLimitError, InternalServerError):
                with pytest.raises(kind):
                    await client.chat.completions.create(model="m", messages=[], stream=True)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pretend_public(monkeypatch: pytest.MonkeyPatch, server: Assistant) -> list[str]:
    """Let the name `elsewhere.example` lead to a public address, at which that server answers, at its first look-up.

    From the second on it leads to this machine. The names that are looked up are in the list.
    """
    loop, looks = asyncio.get_running_loop(), []
    look_up, connect = loop.getaddrinfo, loop.create_connection

    async def look_up_once(host: Any, port: Any, **how: Any) -> Any:
        if host != "elsewhere.example":
            return await look_up(host, port, **how)
        looks.append(host)
        address = "93.184.215.14" if len(looks) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    async def connect_to_server(factory: Any, host: Any = None, port: Any = None, **how: Any) -> Any:
        return await connect(factory, "127.0.0.1" if host == "93.184.215.14" else host, port, **how)

    assert server.port
    monkeypatch.setattr(loop, "getaddrinfo", look_up_once)
    monkeypatch.setattr(loop, "create_connection", connect_to_server)
    return looks
