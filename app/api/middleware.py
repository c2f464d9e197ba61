"""What happens to every request, as pure ASGI middleware: no wrapper breaks a stream or a context variable."""

import asyncio
import re
import time
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import problem, refuse, render_unexpected
from app.api.https import came_in_clear
from app.api.rate_limit import headers_of
from app.api.request_log import NO_ROUTE, RequestLog, route_of
from app.api.streamed import is_streamed
from app.core.context import RequestContext, new_request_id, set_context
from app.core.exceptions import InvalidRequestError, PayloadTooLargeError
from app.core.key_format import masked
from app.core.key_usage import gathered as key_usage
from app.core.metrics import IN_FLIGHT, count_request
from app.core.network import client_address

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_DOCUMENTATION: Final = ("/docs", "/redoc")
_USER_AGENT_LENGTH: Final = 400
_DENIALS: Final = frozenset({401, 403, 429})
_LINGER_SECONDS: Final = 2.0
_OF_THE_BODY: Final = ("content-length", "content-type")


class RequestContextMiddleware:
    """Gives the request its id and context, its answer the id, and the log its line."""

    def __init__(self, app: ASGIApp, trusted_proxies: tuple[str, ...]) -> None:
        self.app = app
        self.trusted_proxies = trusted_proxies
        self.log = RequestLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, context = time.perf_counter(), self._context(scope)
        scope["request_id"] = context.request_id  # for the protocol, which may have to answer itself
        set_context(context)
        status, answered = 0, 0.0
        IN_FLIGHT.move(1)

        async def send_with_context(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.perf_counter()
                own = (b"x-request-id", (context.request_id or "").encode())
                message["headers"] = [*message.get("headers", []), own, *headers_of(context.budget)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_context)
        finally:
            IN_FLIGHT.move(-1)
            seconds = (answered or time.perf_counter()) - started
            count_request(scope["method"], route_of(scope) or NO_ROUTE, status, seconds)
            self.log.write(scope, context, status, started)
            if context.api_key_id is not None:
                key_usage.count(context.api_key_id, ip=context.client_ip, is_denied=status in _DENIALS)

    def _context(self, scope: Scope) -> RequestContext:
        headers = Headers(scope=scope)
        proposed = headers.get("x-request-id", "")
        is_fit = _REQUEST_ID.fullmatch(proposed) and masked(proposed) == proposed
        forwarded = headers.getlist("x-forwarded-for") if self.trusted_proxies else []
        peer = scope["client"][0] if scope.get("client") else None
        return RequestContext(
            request_id=proposed if is_fit else new_request_id(),
            client_ip=client_address(peer, ",".join(forwarded) or None, self.trusted_proxies),
            user_agent=masked(headers.get("user-agent", ""))[:_USER_AGENT_LENGTH] or None,
        )


class TrustedHostMiddleware:
    """Answers only for the configured host names; `*.example.com` stands for all below it.

    As Starlette's, but with an answer of the form that all errors have.
    """

    def __init__(self, app: ASGIApp, trusted_hosts: tuple[str, ...]) -> None:
        self.app = app
        self.names = {host.lower() for host in trusted_hosts if not host.startswith("*.")}
        self.suffixes = tuple(host[1:].lower() for host in trusted_hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_trusted(Headers(scope=scope).get("host", "")):
            error = InvalidRequestError("This server does not answer for that host name.")
            await (await refuse(Request(scope), error))(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_trusted(self, header: str) -> bool:
        host = re.sub(r":\d+$", "", header).lower()
        return host in self.names or (bool(self.suffixes) and host.endswith(self.suffixes))


class SecurityHeadersMiddleware:
    """What browsers are told about every answer (OWASP Secure Headers). The documentation pages load scripts."""

    HEADERS: Final = [
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
    ]
    NO_STORE: Final = (b"cache-control", b"no-store")
    POLICY: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")

    TRANSPORT: Final = (b"strict-transport-security", b"max-age=63072000; includeSubDomains")

    def __init__(self, app: ASGIApp, *, is_https: bool, trusted_proxies: tuple[str, ...]) -> None:
        self.app = app
        self.is_https = is_https
        self.trusted_proxies = trusted_proxies
        self.for_data = [*self.HEADERS, self.POLICY]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        extra = self.HEADERS if scope["path"].startswith(_DOCUMENTATION) else self.for_data
        if self.is_https and not came_in_clear(scope, self.trusted_proxies):  # RFC 6797 forbids it there
            extra = [*extra, self.TRANSPORT]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                present = {name for name, _ in headers}
                own = [(name, value) for name, value in extra if name not in present]
                if b"cache-control" not in present:
                    own.append(self.NO_STORE)
                message["headers"] = [*headers, *own]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class BodyLimitMiddleware:
    """Refuses a body over the limit while it streams: the answer is 413, however much is still to come.

    The framework's own limit answers in plain text and without the headers that belong to every answer.
    What is read as it arrives has a limit of its own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_streamed_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_streamed_bytes = max_streamed_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_bytes = self.max_bytes
        if is_streamed(scope):
            max_bytes = self.max_streamed_bytes
            receive, send = _hanging_up_late(receive, send)
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared) > max_bytes:
            await (await refuse(Request(scope), PayloadTooLargeError()))(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)  # the one kind that FastAPI lets through
            return message

        await self.app(scope, receive_counted, send)


def _hanging_up_late(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Tell a sender whose body was not read to the end that nobody will, and give it a moment to hear it.

    Who hangs up on a sender takes the answer back: it is lost with the connection.
    """
    is_over = False

    async def receive_noting() -> Message:
        nonlocal is_over
        message = await receive()
        is_over = is_over or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send_and_linger(message: Message) -> None:
        if is_over:
            await send(message)
        elif message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", []) if pair[0].lower() != b"connection"]
            await send({**message, "headers": [*headers, (b"connection", b"close")]})
        elif message.get("more_body", False):
            await send(message)
        else:
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_SECONDS):
                    while not is_over:
                        await receive_noting()
                        await asyncio.sleep(0)  # lets the time run out also where something is always there
            await send({"type": "http.response.body", "body": b""})

    return receive_noting, send_and_linger


class UnexpectedErrorMiddleware:
    """Answers what nobody foresaw with 500, inside of everything that adds headers to an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def send_noting(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        except Exception as error:
            if has_started or scope["type"] != "http":
                raise  # half an answer is out: let the server cut the connection
            await render_unexpected(scope["path"], error)(scope, receive, send)


class CorsMiddleware(CORSMiddleware):
    """Starlette's, with the refusal of a preflight in the form that all errors have."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        headers = {name: value for name, value in response.headers.items() if name not in _OF_THE_BODY}
        detail = "Pages of this origin may not send such a request."
        return problem("*", HTTPStatus.BAD_REQUEST, code="invalid_request", detail=detail, headers=headers)


class TrailingSlashMiddleware:
    """Makes `/users/` the same endpoint as `/users`, without a redirect, which would lose bodies in some clients."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"][:-1]
        await self.app(scope, receive, send)
