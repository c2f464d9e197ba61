"""uvicorn's HTTP protocol with what it lacks: bounds on what is not body and on patience, errors in the form of all."""

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.core.config import get_settings
from app.core.context import new_request_id
from app.core.metrics import CUT
from app.services import event_hub

if TYPE_CHECKING:
    import asyncio

MAX_HEADER_BYTES: Final = 64 * 1024
_STALLED_SECONDS: Final = 20.0
_BODY_SECONDS = 30.0
_END_OF_HEADERS: Final = b"\r\n\r\n"


class _Refusal(NamedTuple):
    """Of a request that never became one: it has no path. `reason` is what it counts as."""

    reason: str
    status: HTTPStatus
    detail: str
    code: str = "invalid_request"
    more: str = ""

    def response(self, request_id: str) -> bytes:
        body = orjson.dumps(
            {
                "type": f"urn:octopus:problem:{self.code}",
                "title": self.status.phrase,
                "status": int(self.status),
                "detail": self.detail,
                "instance": "/",
                "code": self.code,
                "request_id": request_id,
            }
        )
        head = (
            f"HTTP/1.1 {int(self.status)} {self.status.phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\nx-request-id: {request_id}\r\n{self.more}\r\n"
        )
        return head.encode() + body


_TOO_LARGE: Final = _Refusal(
    "large_headers",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "The request line and headers are larger than 64 KiB.",
)
_SLOW_HEADERS: Final = _Refusal("slow_headers", HTTPStatus.REQUEST_TIMEOUT, "The request did not come in time.")
_SLOW_BODY: Final = _SLOW_HEADERS._replace(reason="slow_body")
_TOO_MANY: Final = _Refusal(
    "too_many",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "There are too many connections. Try again in a moment.",
    code="busy",
    more="retry-after: 2\r\n",
)
_INVALID: Final = _Refusal("not_http", HTTPStatus.BAD_REQUEST, "This is not HTTP.")


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses a request line and headers over 64 KiB before they are parsed, and as much in trailers.

    The parser keeps what it has not finished, so a client could make it keep anything. Hangs up on who takes nothing
    of an answer for 20 s: what waits for it is kept until then, also by a connection that was asked to close. Gives up
    headers that take too long, a body that drips, and connections beyond the most.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_headers = True
        self._bytes_without_body = 0
        self._tail = b""
        self._stalled: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None  # what is still to come of the headers, or of the body
        self._came_of_body = 0
        self._was_held_back = False
        self._settings = get_settings()

    def connection_made(self, transport: "asyncio.Transport") -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._settings.max_connections:
            self._cut(_TOO_MANY)
        else:
            self._expect_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._unwatch_writing()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch_writing()
        self._expect_nothing()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Begin to stop. The server waits for answers under way, and streams of events never end by themselves."""
        event_hub.close()
        super().shutdown()

    def _watch_writing(self, waiting: int) -> None:
        self._stalled = self.loop.call_later(_STALLED_SECONDS, self._hang_up_if_stalled, waiting)

    def _unwatch_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _hang_up_if_stalled(self, waited: int) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting < waited:
            self._watch_writing(waiting)
        else:
            CUT.add("slow_reader")
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._is_in_headers and not self._fits(data):
            self._refuse()
            return
        self._bytes_without_body += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._bytes_without_body > MAX_HEADER_BYTES:
            self._refuse()
        elif self._late is None:  # of most requests all has come by now
            self._expect_the_rest()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_nothing(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _expect_the_rest(self) -> None:
        if not self._is_in_headers:
            if self._settings.min_body_rate:
                self._expect_body()
        elif not self._is_answering():
            self._expect_headers()

    def _expect_headers(self) -> None:
        self._late = self.loop.call_later(self._settings.header_timeout_seconds, self._give_up_headers)

    def _give_up_headers(self) -> None:
        self._late = None
        if self._is_answering():  # what has come of the next request waits for its turn
            return
        self._cut(_SLOW_HEADERS, is_told=self._bytes_without_body > 0)

    def _expect_body(self) -> None:
        self._came_of_body, self._was_held_back = 0, self._holds_back()
        self._late = self.loop.call_later(_BODY_SECONDS, self._give_up_body)

    def _holds_back(self) -> bool:
        """Whether it is not the sender for whom the body waits."""
        return self.flow.read_paused or (self.cycle.waiting_for_100_continue and not self.cycle.response_started)

    def _give_up_body(self) -> None:
        is_enough = self._came_of_body >= self._settings.min_body_rate * _BODY_SECONDS
        if is_enough or self._was_held_back or self._holds_back():
            self._expect_body()
            return
        self._late = None
        own: Any = self.scope.get("request_id")
        self._cut(_SLOW_BODY, is_told=not self.cycle.response_started, request_id=own)

    def _fits(self, data: bytes) -> bool:
        """Whether the headers end within the bound, or have not reached it yet."""
        room = MAX_HEADER_BYTES - self._bytes_without_body
        if len(data) <= room:
            self._tail = (self._tail + data)[-len(_END_OF_HEADERS) :]
            return True
        return _END_OF_HEADERS in self._tail + data[:room]

    def _refuse(self) -> None:
        """Answer, unless an answer to the same request is under way: then only hang up."""
        self._cut(_TOO_LARGE, is_told=self.cycle is None or self.cycle.response_complete)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the library's words are not ours
        self._cut(_INVALID)

    def _cut(self, refusal: _Refusal, *, is_told: bool = True, request_id: str | None = None) -> None:
        """Hang up. Counted, without a line of its own: a flood would fill the log. A request that began has one."""
        CUT.add(refusal.reason)
        if is_told:
            self.transport.write(refusal.response(request_id or new_request_id()))
        self.transport.close()

    def on_headers_complete(self) -> None:
        self._is_in_headers, self._bytes_without_body = False, 0
        self._expect_nothing()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bytes_without_body = 0
        self._came_of_body += len(body)
        super().on_body(body)
        self._was_held_back |= self.flow.read_paused

    def on_message_complete(self) -> None:
        self._is_in_headers, self._bytes_without_body, self._tail = True, 0, b""
        self._expect_nothing()
        super().on_message_complete()
