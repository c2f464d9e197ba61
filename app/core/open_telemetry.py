"""Traces by OpenTelemetry, in its semantic conventions. Only `tracing` loads this, when they are sent somewhere.

Spans are gathered and sent by a thread of their own. What it can't send is dropped: no request hears of it.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from app.core.key_format import masked
from app.core.metrics import METHODS
from app.core.tracing import Ids
from app.core.version import VERSION

CLOSING_SECONDS: Final = 3.0
_SEND_SECONDS: Final = 5.0
_SENT_EVERY_MS: Final = 1000
_MAX_TEXT: Final = 2048  # of a path, of which thousands may wait to be sent


class OpenTelemetry:
    def __init__(self, endpoint: str) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # else a line for each time that it tries again
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_SECONDS)
        limits = SpanLimits(max_attribute_length=_MAX_TEXT)
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False, span_limits=limits)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_SENT_EVERY_MS))
        self._tracer = self._provider.get_tracer("octopus", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, method: str, path: str, scheme: str, headers: Mapping[str, str]) -> Iterator["_RequestSpan"]:
        method = method if method in METHODS else "_OTHER"
        attributes = {"http.request.method": method, "url.path": masked(path), "url.scheme": scheme}
        parent = self._propagator.extract(headers, Context())
        span = self._tracer.start_span(method, parent, SpanKind.SERVER, attributes)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield _RequestSpan(span, method)

    def command(self, name: str, collection: str | None, address: tuple[str, int | None]) -> "_CommandSpan | None":
        if not trace.get_current_span().is_recording():
            return None
        attributes: dict[str, AttributeValue] = {"db.system.name": "mongodb", "db.operation.name": name}
        if collection is not None:
            attributes["db.collection.name"] = collection
        attributes |= _address(*address)
        title = f"{name} {collection}" if collection else name
        return _CommandSpan(self._tracer.start_span(title, None, SpanKind.CLIENT, attributes))

    @contextmanager
    def call(self, method: str, host: str, port: int | None) -> Iterator[dict[str, str]]:
        attributes = {"http.request.method": method, **_address(host, port)}
        span = self._tracer.start_span(method, None, SpanKind.CLIENT, attributes)
        headers: dict[str, str] = {}
        self._propagator.inject(headers, trace.set_span_in_context(span))
        try:
            yield headers
        except Exception as error:
            _fail(span, type(error).__name__)
            raise
        finally:
            span.end()

    def ids(self) -> Ids | None:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return None
        return Ids(trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id))

    async def close(self) -> None:
        """Send what is gathered, as far as there is time for it."""
        sender = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        sender.start()
        await asyncio.to_thread(sender.join, CLOSING_SECONDS)


class _RequestSpan:
    def __init__(self, span: trace.Span, method: str) -> None:
        self._span = span
        self._method = method

    def tell(self, *, route: str | None, status: int, error: str | None) -> None:
        if route is not None:
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        if status:
            self._span.set_attribute("http.response.status_code", status)
        if error is not None or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _fail(self._span, error or str(status))


class _CommandSpan:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def end(self, *, error: str | None = None, code: str | None = None) -> None:
        if code is not None:
            self._span.set_attribute("db.response.status_code", code)
        if error is not None:
            _fail(self._span, error)
        self._span.end()


def _resource() -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say of this process, and what they leave open."""
    resource = Resource.create({"service.version": VERSION})
    is_named = not str(resource.attributes["service.name"]).startswith("unknown_service")
    return resource if is_named else resource.merge(Resource({"service.name": "octopus"}))


def _address(host: str, port: int | None) -> dict[str, AttributeValue]:
    return {"server.address": host} if port is None else {"server.address": host, "server.port": port}


def _fail(span: trace.Span, kind: str) -> None:
    """Its kind, and not its message: that may hold what somebody sent."""
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))
