import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from httpx import AsyncClient
from starlette.types import Message, Receive, Scope, Send

from app.api.middleware import UnexpectedErrorMiddleware
from app.api.request_log import RequestLog
from app.core.config import Settings
from app.core.context import RequestContext
from app.core.logging_config import configure_logging
from app.core.version import VERSION
from app.main import create_app
from app.models.audit_event import AuditEvent
from app.models.session import Session
from tests.api.test_errors import assert_problem
from tests.conftest import PRODUCTION, Serve
from tests.factories import PASSWORD, make_api_key, make_signed_in, make_user

GENERATED_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")
ORIGIN = "https://app.example.com"
Captured = pytest.CaptureFixture[str]


def log_lines(capfd: Captured) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def access_lines(capfd: Captured) -> list[dict[str, Any]]:
    return [line for line in log_lines(capfd) if line["message"] == "request"]


class TestMisplacedKey:
    """A key in a header where it does not belong is neither stored nor logged."""

    async def test_is_masked_in_the_user_agent(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            user, key = await make_user(), await make_api_key("read")
            body, agent = {"email": user.document.email, "password": PASSWORD}, f"probe/1 ({key.text})"
            for _ in range(2):
                answer = await client.post("/api/v1/auth/login", json=body, headers={"User-Agent": agent})
                assert answer.status_code == 200
            events = await AuditEvent.find({"action": "session:created"}).to_list()
            sessions = await Session.find({"user_id": user.id}).to_list()

        shown = f"probe/1 (octopus_{key.text[8:16]}_…)"
        assert [stored.user_agent for stored in (*events, *sessions)] == [shown] * 4
        lines = log_lines(capfd)
        agents = [line["user_agent.original"] for line in lines if line.get("event.action") == "session:created"]
        assert agents == [shown] * 2
        assert key.text[17:] not in json.dumps(lines, ensure_ascii=False)

    async def test_is_masked_also_when_the_user_agent_is_long(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            key = await make_api_key("read")
            ada = await make_signed_in()
            agent = "x" * 370 + key.text
            await client.post("/api/v1/items", json={"title": "Tea"}, headers=ada.headers | {"User-Agent": agent})
            (event,) = await AuditEvent.find({"action": "item:created"}).to_list()

        assert event.user_agent == "x" * 370 + f"octopus_{key.text[8:16]}_…"
        assert key.text[17:29] not in capfd.readouterr().err

    async def test_is_no_request_id(self, client: AsyncClient) -> None:
        key = await make_api_key("read")

        response = await client.get("/", headers={"X-Request-ID": key.text})

        assert re.fullmatch("[0-9a-f]{24}", response.headers["x-request-id"])


class TestRequestId:
    @pytest.mark.parametrize("proposed", ["a", "order-17", "A.b_c-9", "x" * 128])
    async def test_is_the_callers_own(self, client: AsyncClient, proposed: str) -> None:
        response = await client.get("/", headers={"X-Request-ID": proposed})

        assert response.headers.get_list("x-request-id") == [proposed]

    @pytest.mark.parametrize(
        "proposed",
        ["", "x" * 129, "a b", "a/b", "a\tb", "ü".encode(), "{}", "a,b", "\x1b[31m", 'a"b', "a;b"],
        ids=ascii,
    )
    async def test_is_a_new_one_when_that_is_not_acceptable(self, client: AsyncClient, proposed: str | bytes) -> None:
        value = proposed if isinstance(proposed, bytes) else proposed.encode()

        response = await client.get("/", headers=[(b"x-request-id", value)])

        [given] = response.headers.get_list("x-request-id")
        assert given.encode() != value
        assert GENERATED_ID.fullmatch(given)

    async def test_is_another_one_for_each_request(self, client: AsyncClient) -> None:
        responses = [await client.get("/") for _ in range(20)]

        assert len({response.headers["x-request-id"] for response in responses}) == 20

    async def test_is_repeated_in_the_error_and_the_log(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            response = await client.get("/nothing", headers={"X-Request-ID": "order-17"})

        assert_problem(response, 404, "not_found")
        assert response.json()["request_id"] == "order-17"
        assert [line["http.request.id"] for line in access_lines(capfd)] == ["order-17"]

    @pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json", "/nothing", "/api/v1/auth/me"])
    async def test_is_on_every_answer(self, client: AsyncClient, path: str) -> None:
        response = await client.get(path, headers={"X-Request-ID": "order-17"})

        assert response.headers["x-request-id"] == "order-17"


class TestSecurityHeaders:
    @pytest.mark.parametrize("path", ["/", "/health", "/docs", "/openapi.json", "/nothing", "/api/v1/auth/me"])
    async def test_are_on_every_answer(self, client: AsyncClient, path: str) -> None:
        response = await client.get(path)

        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"

    @pytest.mark.parametrize("status", [404, 405, 413, 422, 500])
    async def test_are_on_every_error(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
        response = await _failing(client, monkeypatch, status)

        assert response.status_code == status
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-security-policy"].startswith("default-src 'none'")

    @pytest.mark.parametrize("path", ["/", "/nothing", "/api/v1/auth/me", "/openapi.json"])
    async def test_forbid_data_to_load_anything(self, client: AsyncClient, path: str) -> None:
        response = await client.get(path)

        assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"

    @pytest.mark.parametrize("path", ["/docs", "/redoc"])
    async def test_let_the_documentation_load_its_scripts(self, client: AsyncClient, path: str) -> None:
        response = await client.get(path)

        assert response.status_code == 200
        assert "<script" in response.text
        assert "default-src 'none'" not in response.headers.get("content-security-policy", "")

    async def test_keep_what_is_personal_out_of_caches(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await client.get("/api/v1/auth/me", headers=ada.headers)

        assert response.headers["cache-control"] == "no-store"

    async def test_keep_to_tls_in_production(self, serve: Serve) -> None:
        async with serve(**PRODUCTION) as client:
            answer, error = await client.get("/"), await client.get("/nothing")

        for response in (answer, error):
            assert "max-age=63072000" in response.headers["strict-transport-security"]

    @pytest.mark.parametrize("environment", ["test", "development", "staging"])
    async def test_say_nothing_of_tls_elsewhere(self, serve: Serve, environment: str) -> None:
        async with serve(environment=environment) as client:
            response = await client.get("/")

        assert "strict-transport-security" not in response.headers


async def _failing(client: AsyncClient, monkeypatch: pytest.MonkeyPatch, status: int) -> Any:
    if status == 500:

        async def fail(_: str) -> None:
            raise RuntimeError

        monkeypatch.setattr("app.crud.crud_user.find_by_username_key", fail)
        return await client.get("/api/v1/users/username/ada", headers={"Origin": ORIGIN})
    if status == 413:
        return await client.post("/api/v1/auth/login", content=b"x" * (1024 * 1024 + 1))
    path, method = {404: ("/nothing", "GET"), 405: ("/", "PUT"), 422: ("/api/v1/auth/login", "POST")}[status]
    return await client.request(method, path)


class TestTrailingSlash:
    @pytest.mark.parametrize("path", ["/health", "/api/v1/auth/me", "/api/v1/conversations", "/docs", "/nothing"])
    async def test_makes_no_difference(self, client: AsyncClient, path: str) -> None:
        ada = await make_signed_in()

        without = await client.get(path, headers=ada.headers, follow_redirects=False)
        with_it = await client.get(f"{path}/", headers=ada.headers, follow_redirects=False)

        assert with_it.status_code == without.status_code != 307

    async def test_keeps_the_body_of_a_post(self, client: AsyncClient) -> None:
        account = {"email": "ada@example.com", "password": PASSWORD}

        registered = await client.post("/api/v1/users/", json=account)
        signed_in = await client.post("/api/v1/auth/login/", json=account)

        assert (registered.status_code, signed_in.status_code) == (201, 200)

    async def test_keeps_the_query(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await client.get("/api/v1/conversations/?limit=0", headers=ada.headers)

        assert_problem(response, 422, "validation_error")


class TestCors:
    async def test_lets_a_known_origin_read(self, serve: Serve) -> None:
        async with serve(cors_origins=(ORIGIN,)) as client:
            response = await client.get("/", headers={"Origin": ORIGIN})

        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "Origin" in response.headers["vary"]

    async def test_exposes_what_clients_need(self, serve: Serve) -> None:
        async with serve(cors_origins=(ORIGIN,)) as client:
            response = await client.get("/", headers={"Origin": ORIGIN})

        exposed = {name.strip().lower() for name in response.headers["access-control-expose-headers"].split(",")}
        assert exposed == {
            *("link", "etag", "x-request-id", "retry-after", "idempotent-replayed"),
            *("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"),
        }

    @pytest.mark.parametrize("status", [404, 405, 413, 422, 500])
    async def test_lets_a_known_origin_read_errors_too(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        async with serve(cors_origins=(ORIGIN,)) as client:
            client.headers["Origin"] = ORIGIN
            response = await _failing(client, monkeypatch, status)

        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN

    @pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example.com", f"{ORIGIN}.evil", "null"])
    async def test_lets_no_other_origin_read(self, serve: Serve, origin: str) -> None:
        async with serve(cors_origins=(ORIGIN,)) as client:
            response = await client.get("/", headers={"Origin": origin})
            preflight = await client.options(
                "/api/v1/users", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
            )

        assert "access-control-allow-origin" not in response.headers
        assert "access-control-allow-origin" not in preflight.headers

    async def test_refuses_the_preflight_of_another_origin_as_a_problem(self, serve: Serve) -> None:
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        async with serve(cors_origins=(ORIGIN,)) as client:
            response = await client.options("/api/v1/users", headers=headers)

        assert_problem(response, 400, "invalid_request")

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def test_answers_a_preflight(self, serve: Serve, method: str) -> None:
        headers = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization, octopus-api-key, if-match, content-type, x-request-id",
        }
        async with serve(cors_origins=(ORIGIN,)) as client:
            response = await client.options("/api/v1/users/me", headers=headers)

        allowed = {name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")}
        assert response.is_success
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert method in response.headers["access-control-allow-methods"]
        assert allowed >= {"authorization", "octopus-api-key", "if-match", "content-type", "x-request-id"}

    async def test_is_closed_by_default(self, client: AsyncClient) -> None:
        response = await client.get("/", headers={"Origin": ORIGIN})

        assert not [name for name in response.headers if name.startswith("access-control-")]

    @pytest.mark.parametrize(("allowed", "lends"), [(ORIGIN, True), ("*", False), ("https://other.example", False)])
    async def test_lends_the_cookies_of_a_user_only_to_origins_that_are_named(
        self, serve: Serve, allowed: str, *, lends: bool
    ) -> None:
        async with serve(cors_origins=(allowed,)) as client:
            response = await client.get("/", headers={"Origin": ORIGIN})

        may_read = response.headers.get("access-control-allow-origin") in {ORIGIN, "*"}
        has_cookies = may_read and response.headers.get("access-control-allow-credentials") == "true"
        assert has_cookies == lends


class TestTrustedHosts:
    @pytest.mark.parametrize("host", ["api.example.com", "api.example.com:8000", "a.internal.example"])
    async def test_are_answered(self, serve: Serve, host: str) -> None:
        async with serve(trusted_hosts=("api.example.com", "*.internal.example")) as client:
            response = await client.get("/", headers={"Host": host})

        assert response.status_code == 200

    @pytest.mark.parametrize("host", ["evil.example", "api.example.com.evil.example", "", "127.0.0.1"])
    async def test_are_the_only_ones_that_are(self, serve: Serve, host: str) -> None:
        async with serve(trusted_hosts=("api.example.com", "*.internal.example")) as client:
            response = await client.get("/", headers={"Host": host})

        assert_problem(response, 400, "invalid_request")

    async def test_are_all_by_default(self, client: AsyncClient) -> None:
        response = await client.get("/", headers={"Host": "anything.example"})

        assert response.status_code == 200


class TestAccessLog:
    async def test_has_one_line_for_a_request(self, serve: Serve, capfd: Captured) -> None:
        headers = {"X-Request-ID": "order-17", "User-Agent": "probe/1"}
        async with serve() as client:
            await client.post("/api/v1/auth/login?a=b", json={}, headers=headers)

        [line] = access_lines(capfd)
        assert 0 < line.pop("event.duration") < 60 * 10**9
        assert datetime.fromisoformat(line.pop("@timestamp")).tzinfo is UTC
        assert line == {
            "log.level": "info",
            "message": "request",
            "event.action": "request",
            "event.dataset": "octopus.access",
            "event.outcome": "failure",
            "http.request.method": "POST",
            "url.path": "/api/v1/auth/login",
            "octopus.route": "/api/v1/auth/login",
            "http.response.status_code": 422,
            "http.request.id": "order-17",
            "client.ip": "127.0.0.1",
            "user_agent.original": "probe/1",
            "log.logger": "app.api.request_log",
            "service.name": "octopus",
            "service.version": VERSION,
            "ecs.version": "8.17.0",
        }

    async def test_says_who_called(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            ada = await make_signed_in()
            await client.get("/api/v1/auth/me", headers=ada.headers)

        [line] = access_lines(capfd)
        assert (line["octopus.principal"], line["user.id"]) == (f"user:{ada.id}", str(ada.id))

    async def test_says_why_a_request_was_refused(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            await client.get("/api/v1/auth/me")

        [line] = access_lines(capfd)
        assert (line["http.response.status_code"], line["error.code"]) == (401, "not_authenticated")

    @pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
    def test_has_of_probes_the_first_each_change_each_failure_and_one_a_minute(
        self, capfd: Captured, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        configure_logging("INFO")
        log, clock = RequestLog(), 1000.0
        monkeypatch.setattr("app.api.request_log.time.perf_counter", lambda: clock)

        for status in (200, 200, 200, 503, 503, 200, 200):
            clock += 5
            log.write({"method": "GET", "path": path}, RequestContext(), status, clock)
        clock += 59.9
        log.write({"method": "GET", "path": path}, RequestContext(), 200, clock)

        told = [(line["http.response.status_code"], line.get("octopus.probes_untold")) for line in access_lines(capfd)]
        assert told == [(200, None), (503, 2), (503, None), (200, None), (200, 1)]

    async def test_has_every_request_to_what_is_no_probe(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            for path in ("/health/live", "/health/live", "/healthy", "/healthy", "/health/other"):
                await client.get(path)

        paths = [line["url.path"] for line in access_lines(capfd)]
        assert paths == ["/health/live", "/healthy", "/healthy", "/health/other"]

    async def test_can_not_be_forged_by_a_path(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            await client.get('/a%0A{"message":"request"}%1B[2J', headers={b"User-Agent": b"a\x9b2Jb"})

        [line] = access_lines(capfd)
        assert line["http.response.status_code"] == 404
        assert line["url.path"] == '/a\\n{"message":"request"}\\x1b[2J'
        assert line["user_agent.original"] == "a\\x9b2Jb"

    async def test_holds_no_secret(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            ada, key = await make_user(), await make_api_key("admin")
            account = {"email": ada.document.email, "password": ada.password}
            signed_in = (await client.post("/api/v1/auth/login", json=account)).json()
            bearer = {"Authorization": f"Bearer {signed_in['access_token']}"}
            refreshed = (
                await client.post("/api/v1/auth/refresh", json={"refresh_token": signed_in["refresh_token"]})
            ).json()
            await client.get("/api/v1/auth/me", headers=bearer)
            await client.get("/api/v1/auth/me", headers=key.headers)
            await client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {key.text}"})
            made = await client.post("/api/v1/api-keys", headers=bearer, json={"name": "ci", "scopes": ["read"]})
            await client.post("/api/v1/auth/login", json={"email": "nobody", "password": ada.password})
            await client.patch("/api/v1/users/me", headers=bearer, json={"password": ada.password, "email": 7})

        captured = capfd.readouterr()
        secrets = [
            *(ada.password, ada.document.hashed_password, key.text, made.json()["key"]),
            *(signed_in["access_token"], signed_in["refresh_token"]),
            *(refreshed["access_token"], refreshed["refresh_token"]),
        ]
        assert captured.err.count('"message":"request"') == 8
        assert [secret for secret in secrets if secret in captured.err + captured.out] == []


class TestApplication:
    async def test_starts_and_stops_when_the_server_says_so(self, make_settings: Callable[..., Settings]) -> None:
        app, sent = create_app(make_settings()), list[str]()
        asked = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> Message:
            return {"type": next(asked)}

        async def send(message: Message) -> None:
            sent.append(message["type"])

        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    async def test_does_not_finish_half_an_answer_with_an_error(self) -> None:
        sent = list[str]()

        async def half(_: Scope, __: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise RuntimeError

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message["type"])

        app = UnexpectedErrorMiddleware(half)
        with pytest.raises(RuntimeError):
            await app({"type": "http", "path": "/", "method": "GET", "headers": [], "client": None}, receive, send)

        assert sent == ["http.response.start"]
