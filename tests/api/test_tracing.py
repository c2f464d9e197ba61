"""Traces, as a collector gets them: a real server of OTLP over HTTP."""

import asyncio
import io
import json
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import ValidationError
from pymongo.monitoring import CommandFailedEvent, CommandStartedEvent

from app.core import open_telemetry, tracing
from app.core.config import Settings
from app.db.command_listener import CommandMeter
from app.models.user import User
from tests.assistant_server import open_assistant
from tests.conftest import Serve
from tests.factories import PASSWORD, make_conversation, make_messages, make_signed_in

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@dataclass
class Collector:
    """What it was sent."""

    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    url: str = ""

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans() if span.trace_id.hex() == trace]


@pytest.fixture
def collector() -> Any:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            collector.requests.append(ExportTraceServiceRequest.FromString(content))
            self.send_response(HTTPStatus.OK)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield collector
    server.shutdown()
    thread.join()
    server.server_close()


def attributes(span: Span) -> dict[str, Any]:
    return {
        each.key: each.value.int_value if each.value.HasField("int_value") else each.value.string_value
        for each in span.attributes
    }


class TestTraces:
    async def test_hold_a_request_with_what_it_asks_of_others(self, serve: Serve, collector: Collector) -> None:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        log = io.StringIO()
        async with open_assistant() as assistant:
            with redirect_stderr(log):
                traced = {"otel_exporter_otlp_endpoint": collector.url, "trusted_proxies": ["127.0.0.1"]}
                async with serve(**assistant.settings, **traced) as client:
                    path = await self.prepared()
                    reply = await client.post(f"{path[0]}/reply", headers=headers | path[1])
            assert reply.status_code == 200
            sent = assistant.exchanges[0].headers["traceparent"].split("-")

        spans = collector.of(TRACE)
        [request] = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
        assert request.name == "POST /api/v1/conversations/{conversation_id}/reply"
        assert request.parent_span_id.hex() == PARENT
        assert attributes(request) == {
            "http.request.method": "POST",
            "http.route": "/api/v1/conversations/{conversation_id}/reply",
            "http.response.status_code": 200,
            "url.path": f"{path[0]}/reply",
            "url.scheme": "http",
        }
        under = [span for span in spans if span.parent_span_id == request.span_id]
        commands = [span for span in under if attributes(span).get("db.system.name") == "mongodb"]
        assert {"find sessions", "commitTransaction"} <= {span.name for span in commands}
        find = next(span for span in commands if span.name == "find sessions")
        known = attributes(find)
        assert known.pop("server.port") > 0
        assert known == {
            "db.system.name": "mongodb",
            "db.operation.name": "find",
            "db.collection.name": "sessions",
            "server.address": "127.0.0.1",
        }
        assert find.end_time_unix_nano > find.start_time_unix_nano >= request.start_time_unix_nano
        [call] = [span for span in under if span.name == "POST"]
        assert attributes(call)["server.address"] == "127.0.0.1"
        assert sent[:3] == ["00", TRACE, call.span_id.hex()]
        resource = {
            each.key: each.value.string_value for each in collector.requests[0].resource_spans[0].resource.attributes
        }
        assert (resource["service.name"], resource["service.version"]) == ("octopus", "0.1.0")
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
        [line] = [line for line in lines if line["message"] == "request"]
        assert (line["trace.id"], line["span.id"]) == (TRACE, request.span_id.hex())

    @pytest.mark.parametrize("trusted", [[], ["192.0.2.0/24"]])
    async def test_begin_anew_where_the_sender_is_nobody_to_believe(
        self, serve: Serve, collector: Collector, trusted: list[str]
    ) -> None:
        named = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=s3cret"}
        async with serve(otel_exporter_otlp_endpoint=collector.url, trusted_proxies=trusted) as client:
            assert (await client.get("/health/live", headers=named)).status_code == 200

        [request] = [span for span in collector.spans() if span.kind == Span.SPAN_KIND_SERVER]
        assert request.name == "GET /health/live"
        assert (request.parent_span_id, request.trace_state) == (b"", "")
        assert request.trace_id.hex() != TRACE

    async def prepared(self) -> tuple[str, dict[str, str]]:
        ada = await make_signed_in()
        chat = await make_conversation(ada)
        await make_messages(chat, by=ada)
        await User.find_one(User.id == ada.id).update({"$inc": {"credits": 9}})
        return f"/api/v1/conversations/{chat.id}", ada.headers

    async def test_hold_no_secret_and_say_what_failed(
        self, serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serve(otel_exporter_otlp_endpoint=collector.url) as client:
            ada = await make_signed_in()
            account = {"email": ada.document.email, "password": PASSWORD}
            tokens = (await client.post("/api/v1/auth/login", json=account)).json()
            await client.get(
                "/api/v1/auth/me?token=s3cret", headers={"Authorization": f"Bearer {tokens['access_token']}"}
            )
            await client.request("BREW", f"/s3cret-{ObjectId()}")

            async def fail() -> None:
                raise ValueError("s3cret")

            monkeypatch.setattr(client._transport.app.state.health, "get", fail)  # type: ignore[attr-defined]
            assert (await client.get("/health")).status_code == 500

        text = str(collector.requests)
        spans = {span.name: span for span in collector.spans() if span.kind == Span.SPAN_KIND_SERVER}
        assert spans.keys() == {"POST /api/v1/auth/login", "GET /api/v1/auth/me", "_OTHER", "GET /health"}
        assert attributes(spans["GET /health"])["error.type"] == "500"
        assert spans["GET /health"].status.code == 2
        for secret in (PASSWORD, ada.document.email, *tokens.values(), "token=s3cret", "ValueError"):
            assert str(secret) not in text or secret == "bearer"

    async def test_are_bounded_and_show_nothing_of_a_connection_that_signs_in(
        self, serve: Serve, collector: Collector
    ) -> None:
        sign_in = CommandStartedEvent({"saslContinue": 1, "payload": b"s3cret"}, "admin", 7, ("127.0.0.1", 27017), None)
        async with serve(otel_exporter_otlp_endpoint=collector.url) as client:
            await client.get("/" + "a" * 60_000)
            assert tracing.active.tracer is not None
            with tracing.active.tracer.request("GET", "/tea", "http", {}):
                CommandMeter().started(sign_in)
                CommandMeter().failed(CommandFailedEvent(timedelta(), {"code": 18}, "saslContinue", 7, ("h", 1), None))

        paths = {attributes(span)["url.path"] for span in collector.spans() if "url.path" in attributes(span)}
        assert paths == {"/" + "a" * 2047, "/tea"}
        [signed_in] = [span for span in collector.spans() if span.name == "saslContinue"]
        assert attributes(signed_in)["db.response.status_code"] == "18"
        assert "s3cret" not in str(collector.requests)

    async def test_that_nobody_takes_disturb_no_request(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(open_telemetry, "CLOSING_SECONDS", 0.5)
        loop = asyncio.get_running_loop()
        async with silent() as url, serve(otel_exporter_otlp_endpoint=url) as client:
            began = loop.time()
            answers = [await client.get("/health/live") for _ in range(600)]  # more than one batch
            took = loop.time() - began
            leaving_at = loop.time()
        left_at = loop.time()
        for thread in threading.enumerate():
            if thread.name.startswith("OtelBatch"):  # it was left behind: now nobody holds it up any more
                await asyncio.to_thread(thread.join, 20)
        assert {answer.status_code for answer in answers} == {200}
        assert took < 30
        assert left_at - leaving_at < 10
        assert tracing.active.tracer is None

    async def test_are_not_begun_unless_there_is_somewhere_to_send_them(self, client: AsyncClient) -> None:
        assert tracing.active.tracer is None
        assert (await client.get("/", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})).status_code == 200
        middleware = client._transport.app.user_middleware  # type: ignore[attr-defined]
        assert "TracingMiddleware" not in {each.cls.__name__ for each in middleware}


class silent:  # noqa: N801 - a context
    """A collector that takes connections and never answers."""

    async def __aenter__(self) -> str:
        self._writers: list[asyncio.StreamWriter] = []

        async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            await asyncio.sleep(3600)

        self._server = await asyncio.start_server(accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()


class TestSettings:
    @pytest.mark.parametrize("endpoint", ["collector:4318", "http://user:pass@host", "http://host/?q=1", "grpc://host"])
    def test_take_only_what_can_be_sent_to(self, make_settings: Callable[..., Settings], endpoint: str) -> None:
        with pytest.raises(ValidationError, match="must be http"):
            make_settings(otel_exporter_otlp_endpoint=endpoint)

    def test_say_what_to_install_when_it_is_not_there(
        self, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "opentelemetry", None)

        with pytest.raises(ValidationError, match=r"pip install 'octopus\[telemetry\]'"):
            make_settings(otel_exporter_otlp_endpoint="http://localhost:4318")

    @pytest.mark.parametrize("token", ["short", "with a space inside", "ünicode-ünicode-ünicode"])
    def test_take_no_token_that_could_be_guessed_or_not_be_sent(
        self, make_settings: Callable[..., Settings], token: str
    ) -> None:
        with pytest.raises(ValidationError, match="16 or more visible ASCII characters") as refused:
            make_settings(metrics_token=token)

        assert token not in str(refused.value)
