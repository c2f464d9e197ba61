"""A reply as Server-Sent Events: `delta`s, and one `message` or `error` at the end."""

from collections.abc import AsyncGenerator
from typing import Any, Final

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from app.api.errors import render_any
from app.api.hang_up import GRACE_SECONDS
from app.api.responses import JsonResponse
from app.services.reply_service import Delta, Parts, Stored

_PING_SECONDS: Final = 15

# For the OpenAPI document.
EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Events: `delta` `{content}` as the words come, then `message`, the stored message; or `error`, "
        "a problem, and nothing is stored",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    503: {
        "description": "The assistant does not answer, or there is none; or the database does not answer",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    },
}


class ReplyResponse(EventSourceResponse):
    """Ends by itself: when the caller hangs up, or the server is told to stop. Who takes nothing is hung up on.

    A stopping server gives it a few seconds to come to its end.
    """

    def __init__(self, first: Delta | Stored, parts: Parts, path: str) -> None:
        self._parts = parts
        super().__init__(_events(first, parts, path), ping=_PING_SECONDS, shutdown_grace_period=GRACE_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._parts.aclose()


async def _events(first: Delta | Stored, parts: Parts, path: str) -> AsyncGenerator[ServerSentEvent, None]:
    """Each part as an event. What goes wrong from now on is the last event: the status is out."""
    try:
        yield _event(first)
        async for part in parts:
            yield _event(part)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
        yield ServerSentEvent(bytes(render_any(path, error).body).decode(), event="error")


def _event(part: Delta | Stored) -> ServerSentEvent:
    name, content = ("delta", part._asdict()) if isinstance(part, Delta) else ("message", part.message)
    return ServerSentEvent(JsonResponse().render(content).decode(), event=name)
