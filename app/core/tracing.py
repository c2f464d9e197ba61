"""Traces: none until `tracing` has loaded OpenTelemetry, which is optional, and takes its time to load.

Of what somebody sent a span holds the path alone. The rest are names of routes, commands and collections, and hosts
of the settings.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from app.core.config import Settings


class Ids(NamedTuple):
    """What a line of the log says of the span under way."""

    trace: str
    span: str


class Span(Protocol):
    def end(self, *, error: str | None = None, code: str | None = None) -> None: ...


class RequestSpan(Protocol):
    def tell(self, *, route: str | None, status: int, error: str | None) -> None:
        """What is known of a request at its end."""


class Tracer(Protocol):
    def request(
        self, method: str, path: str, scheme: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[RequestSpan]:
        """The span of a request, under that of its sender when the headers name it; it is the one under way inside."""

    def command(self, name: str, collection: str | None, address: tuple[str, int | None]) -> Span | None:
        """The span of a database command, when there is one under way to put it under."""

    def call(self, method: str, host: str, port: int | None) -> AbstractContextManager[dict[str, str]]:
        """The span of a request to another service, and the headers that tell that service of it."""

    def ids(self) -> Ids | None: ...

    async def close(self) -> None: ...


class _Active:
    tracer: Tracer | None = None


active: Final = _Active()


@asynccontextmanager
async def tracing(settings: "Settings") -> AsyncIterator[None]:
    """Trace until the end of the block, when the settings say where to. What is not sent then is sent, or given up."""
    if settings.otel_exporter_otlp_endpoint is None:
        yield
        return
    module = import_module("app.core.open_telemetry")
    tracer = active.tracer = module.OpenTelemetry(settings.otel_exporter_otlp_endpoint)
    try:
        yield
    finally:
        active.tracer = None
        await tracer.close()


def ids() -> Ids | None:
    return active.tracer.ids() if active.tracer else None


@contextmanager
def call(method: str, host: str, port: int | None) -> Iterator[dict[str, str]]:
    """The headers that a request to another service carries; none while nothing is traced."""
    if active.tracer is None:
        yield {}
        return
    with active.tracer.call(method, host, port) as headers:
        yield headers
