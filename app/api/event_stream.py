"""The answer that goes on: Server-Sent Events.

Starlette's own stream does what is to be done for one client. What sse-starlette would do for each (a clock, a watch
for the end of the server, a time-out) is done once for all, by the hub and by the HTTP protocol.
"""

from typing import Any, Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.services import event_service
from app.services.event_service import Following

_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
# For the OpenAPI document.
EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Events for as long as you listen: `message.created`, `message.updated`, `message.deleted`, "
        "`participant.added`, `participant.removed`, `participant.read`, `conversation.updated`, "
        "`conversation.deleted` and `typing`; first of all `ready`; `reload` when something is no longer known",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class EventStream(StreamingResponse):
    """However it ends, the hub is told."""

    media_type = "text/event-stream"

    def __init__(self, following: Following) -> None:
        super().__init__(event_service.frames(following), headers=_HEADERS)
        self._following = following

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._following.leave()
