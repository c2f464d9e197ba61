"""Hears of every command that the driver sends: for the metrics, and for a trace when there is one.

It runs on the event loop, inside of each command, so it only adds. Nothing of a command but its name and its collection
is looked at.
"""

from contextvars import ContextVar
from typing import Any, Final

from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from app.core import tracing
from app.core.metrics import COMMAND_ERRORS, COMMAND_SECONDS
from app.core.tracing import Span

_MILLION: Final = 1_000_000
_span: ContextVar[tuple[int, Span] | None] = ContextVar("span_of_command", default=None)


class CommandMeter(CommandListener):
    def started(self, event: CommandStartedEvent) -> None:
        if tracing.active.tracer is not None:
            _begin(event, tracing.active.tracer)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        COMMAND_SECONDS.observe(event.duration_micros / _MILLION, event.command_name)
        if tracing.active.tracer is not None:
            _end(event.request_id)

    def failed(self, event: CommandFailedEvent) -> None:
        COMMAND_SECONDS.observe(event.duration_micros / _MILLION, event.command_name)
        COMMAND_ERRORS.add(event.command_name)
        if tracing.active.tracer is not None:
            _end(event.request_id, error=_kind(event.failure), code=_code(event.failure))


def _begin(event: CommandStartedEvent, tracer: tracing.Tracer) -> None:
    # Of the commands by which a connection signs in, the driver shows nothing.
    collection = event.command.get("collection", event.command.get(event.command_name))
    span = tracer.command(event.command_name, collection if isinstance(collection, str) else None, event.connection_id)
    # A command whose task is cancelled has no end. Its span goes with the task, or when the next command begins.
    _span.set((event.request_id, span) if span else None)


def _end(request_id: int, *, error: str | None = None, code: str | None = None) -> None:
    begun = _span.get()
    if begun is not None and begun[0] == request_id:
        begun[1].end(error=error, code=code)
        _span.set(None)


def _kind(failure: Any) -> str:
    return str(failure.get("codeName") or failure.get("errtype") or "error")


def _code(failure: Any) -> str | None:
    return str(failure["code"]) if "code" in failure else None
