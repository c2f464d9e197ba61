"""HTTP to services of others: one pooled client for the life of the process, and bounds on everything.

Nothing goes through a proxy of the environment, nothing is decompressed, and no cookie is kept.
"""

import asyncio
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, cast

import httpx

from app.core import tracing
from app.core.circuit_breaker import Attempt, CircuitBreaker, CircuitOpenError, CircuitState
from app.core.clock import utc_now
from app.core.guarded_transport import GUARDED, AddressRefusedError, GuardingTransport

_ATTEMPTS: Final = 3
_FIRST_BACKOFF_SECONDS: Final = 0.2
_LONGEST_WAIT_SECONDS: Final = 10
_CONNECT_SECONDS: Final = 5.0
_WRITE_SECONDS: Final = 10.0
_SOON_SECONDS: Final = 5
_LONGEST_PATIENCE: Final = 3600
_CONNECTIONS: Final = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30)
_MAY_COME_LATER: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
# The redirects that repeat the request as it was. The others would make a GET of it.
_REDIRECTS: Final = (HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT)
_FOR_STRANGERS: Final = ("accept", "content-type")
_TOO_LONG: Final = "it takes too long"


class ExternalApiError(Exception):
    """It did not work. `is_failure` says whether that is the other side's fault, for which it is spared for a while."""

    def __init__(self, reason: str, *, retry_after: int | None = None, is_failure: bool = True) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.is_failure = is_failure


@dataclass(frozen=True)
class Call:
    """One request, and what it may cost. `idle_seconds` is the longest silence, `total_seconds` bounds all of it.

    The host of `url` is trusted: it may be private. Redirects lead elsewhere only to public addresses, unless
    `may_redirect_to_private`; no credential goes along.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes
    idle_seconds: float
    total_seconds: float
    max_bytes: int
    redirects: int = 0
    may_redirect_to_private: bool = False


class Answer:
    """The head of a good answer (2xx), and its body while it comes."""

    def __init__(self, response: httpx.Response, call: Call, attempt: Attempt, *, deadline: float) -> None:
        self.media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._response = response
        self._call = call
        self._attempt = attempt
        self._deadline = deadline

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes. It is read no faster than it is taken."""
        received = 0
        async with aclosing(cast("AsyncGenerator[bytes, None]", self._response.aiter_raw())) as parts:
            while (chunk := await self._next(parts)) is not None:
                self._attempt.has_begun()
                received += len(chunk)
                if received > self._call.max_bytes:
                    raise ExternalApiError("the answer is too large")
                yield chunk

    async def _next(self, parts: AsyncGenerator[bytes, None]) -> bytes | None:
        if asyncio.get_running_loop().time() >= self._deadline:  # which has gone by with who takes the answer
            raise ExternalApiError(_TOO_LONG, is_failure=False)
        with _translated():
            async with asyncio.timeout_at(self._deadline):
                return await anext(parts, None)


class ExternalApi:
    """The client. Who does not answer is left alone for a while, host by host."""

    def __init__(self) -> None:
        self._breakers: dict[httpx.URL, CircuitBreaker] = {}
        self._client: httpx.AsyncClient | None = None

    def has_open_circuit(self) -> bool:
        """Whether a host is being spared."""
        return any(breaker.state != "closed" for breaker in self._breakers.values())

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def circuit_of(self, url: str) -> CircuitState:
        """How the host of the URL has done lately, as far as this process knows."""
        breaker = self._breakers.get(_origin(httpx.URL(url)))
        return "closed" if breaker is None else breaker.state

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[Answer]:
        """Send the request, and give the answer when its head has come and is good (2xx).

        Everything else is an `ExternalApiError`. Leaving it closes the connection, unless all was read.
        """
        deadline = asyncio.get_running_loop().time() + call.total_seconds
        url = httpx.URL(call.url)
        with self._attempt(url) as attempt, tracing.call(call.method, url.host, url.port) as trace:
            response = await self._answered(replace(call, headers={**call.headers, **trace}), deadline)
            try:
                yield Answer(response, call, attempt, deadline=deadline)
            finally:
                await response.aclose()

    @contextmanager
    def _attempt(self, url: httpx.URL) -> Iterator[Attempt]:
        """An attempt with the host, unless it is being spared. It fails by an error that is the host's fault."""
        try:
            with self._breakers.setdefault(_origin(url), CircuitBreaker()).attempt() as attempt:
                try:
                    yield attempt
                except ExternalApiError as error:
                    if error.is_failure:
                        attempt.has_failed()
                    raise
                attempt.has_succeeded()
        except CircuitOpenError as error:
            reason = "it has failed often lately"
            raise ExternalApiError(reason, retry_after=error.retry_after, is_failure=False) from error

    async def _answered(self, call: Call, deadline: float) -> httpx.Response:
        """Try again only what can't have been done: no connection was made, or the other side asks for patience."""
        with _translated():
            async with asyncio.timeout_at(deadline):
                for number in range(1, _ATTEMPTS):
                    wait = random.random() * _FIRST_BACKOFF_SECONDS * 2**number  # noqa: S311 - no secret
                    try:
                        response = await self._at_the_end(call)
                    except (httpx.ConnectError, httpx.ConnectTimeout):
                        await asyncio.sleep(wait)
                        continue
                    patience = _patience(response)
                    if patience is None or patience > _LONGEST_WAIT_SECONDS:
                        return await _good(response)
                    await response.aclose()
                    await asyncio.sleep(patience + wait)
                return await _good(await self._at_the_end(call))

    async def _at_the_end(self, call: Call) -> httpx.Response:
        """The answer where redirects end, and no body of it yet."""
        request, is_at_home = self._request(call, httpx.URL(call.url), is_at_home=True), True
        for _ in range(call.redirects + 1):
            response = await self._opened().send(request, stream=True)
            if not response.has_redirect_location:
                return response
            await response.aclose()
            target = _target(response)
            is_at_home = is_at_home and _origin(target) == _origin(httpx.URL(call.url))
            request = self._request(call, target, is_at_home=is_at_home)
        raise ExternalApiError("it redirects, and that is not followed", is_failure=False)

    def _request(self, call: Call, url: httpx.URL, *, is_at_home: bool) -> httpx.Request:
        headers = {"accept-encoding": "identity", **{name.lower(): text for name, text in call.headers.items()}}
        if not is_at_home:
            headers = {name: text for name, text in headers.items() if name in _FOR_STRANGERS}
        timeout = httpx.Timeout(
            call.idle_seconds, connect=_CONNECT_SECONDS, write=_WRITE_SECONDS, pool=_CONNECT_SECONDS
        )
        return self._opened().build_request(
            call.method,
            url,
            headers=headers,
            content=call.content,
            timeout=timeout,
            extensions={GUARDED: not is_at_home and not call.may_redirect_to_private},
        )

    def _opened(self) -> httpx.AsyncClient:
        """Opened when it is first needed: most processes that start need it later, or never."""
        if self._client is None:
            jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
            self._client = httpx.AsyncClient(transport=GuardingTransport(_CONNECTIONS), cookies=jar, trust_env=False)
        return self._client


_api: ExternalApi | None = None


@asynccontextmanager
async def opened() -> AsyncIterator[None]:
    """Have the client of the process, and close its connections at the end."""
    global _api  # noqa: PLW0603 - one pool a process
    _api = mine = ExternalApi()
    try:
        yield
    finally:
        await mine.close()


def get_api() -> ExternalApi:
    if _api is None:
        raise RuntimeError("The client for other services is not open.")
    return _api


@contextmanager
def _translated() -> Iterator[None]:
    """What goes wrong on the wire, in one kind of error."""
    try:
        yield
    except httpx.PoolTimeout as error:
        raise ExternalApiError("too many calls are under way", retry_after=_SOON_SECONDS, is_failure=False) from error
    except AddressRefusedError as error:
        raise ExternalApiError("it redirects to an address that is not public", is_failure=False) from error
    except (httpx.InvalidURL, ValueError) as error:  # the second by who takes a URL apart, or looks up a name
        raise ExternalApiError("it leads to what is no address", is_failure=False) from error
    except TimeoutError as error:
        raise ExternalApiError(_TOO_LONG) from error
    except httpx.TransportError as error:
        raise ExternalApiError(type(error).__name__) from error


async def _good(response: httpx.Response) -> httpx.Response:
    status = response.status_code
    is_encoded = response.headers.get("content-encoding", "identity").lower() != "identity"
    if response.is_success and not is_encoded:
        return response
    await response.aclose()
    if response.is_success:
        raise ExternalApiError("the answer is compressed, which was not asked for")
    wait = _patience(response)
    if wait is None and status in _MAY_COME_LATER:
        wait = _SOON_SECONDS
    raise ExternalApiError(f"it answers {status}", retry_after=wait, is_failure=response.is_server_error)


def _patience(response: httpx.Response) -> int | None:
    """The seconds after which the other side wants to be asked again, when it has said so."""
    text = response.headers.get("retry-after", "").strip()
    if response.status_code not in _MAY_COME_LATER or not text:
        return None
    if text.isascii() and text.isdigit():
        return min(int(text[:9]), _LONGEST_PATIENCE)
    try:
        seconds = (parsedate_to_datetime(text) - utc_now()).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0, math.ceil(seconds)), _LONGEST_PATIENCE)


def _target(response: httpx.Response) -> httpx.URL:
    """Where a redirect leads that repeats the request, and not from TLS to none."""
    target = response.url.join(response.headers["location"])
    is_safe = target.scheme == "https" or (target.scheme == "http" and response.url.scheme == "http")
    if response.status_code not in _REDIRECTS or not is_safe or not target.host:
        raise ExternalApiError("it redirects, and that is not followed", is_failure=False)
    return target


def _origin(url: httpx.URL) -> httpx.URL:
    return url.copy_with(userinfo=b"", raw_path=b"/", fragment=None)
