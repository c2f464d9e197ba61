import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from httpx import AsyncClient, Response
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError, WriteConcernError

from app.db.embedded import find_mongod
from tests.conftest import Serve
from tests.factories import SignedInUser, make_conversation, make_messages, make_signed_in
from tests.server_process import ServerProcess

SECRET_TEXT = "driver said: mongodb://root:hunter2@db.internal"


def assert_problem(response: Response, status: int, code: str) -> None:
    """The answer is that error, in the one form that all errors have."""
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    of_oauth = {"error", "error_description"} if body["instance"] == "/api/v1/auth/token" else set()
    named = {"type", "title", "status", "detail", "instance", "code", "request_id"}
    assert body.keys() - {"errors"} == named | of_oauth
    assert all(isinstance(body[name], str) and body[name] for name in ("type", "title", "detail", "instance"))
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]


class OwnMongod(ServerProcess):
    """A database server that a test may freeze and kill. Nobody starts it again behind the test's back."""

    NAME = "MongoDB"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.command = [
            *(str(find_mongod(None)), "--dbpath", str(folder), "--bind_ip", "127.0.0.1"),
            *("--port", str(self.port), "--replSet", "own", "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25"),
            *("--quiet", "--setParameter", "diagnosticDataCollectionEnabled=false"),
        ]
        self.start()

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/octopus?replicaSet=own"

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections and answers nothing."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Nothing listens at its port."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def answers(self) -> bool:
        member = {"_id": "own", "members": [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]}
        try:
            with MongoClient[dict[str, Any]](
                "127.0.0.1", self.port, directConnection=True, serverSelectionTimeoutMS=200
            ) as client:
                hello = client.admin.command("hello")
                if not hello.get("isWritablePrimary") and "setName" not in hello:
                    client.admin.command({"replSetInitiate": member})
        except PyMongoError:
            return False
        return bool(hello.get("isWritablePrimary"))


@pytest.fixture(scope="module")
def own_mongod() -> Iterator[OwnMongod]:
    with TemporaryDirectory(prefix="oct-") as folder:
        server = OwnMongod(Path(folder))
        yield server
        server.kill()


class TestUnknownPath:
    @pytest.mark.parametrize(
        "path",
        [
            "/nothing",
            "/api/v1",
            "/api/v2/users",
            "/api/v1/users/me/nothing",
            "http://test//nothing",
            "/api/v1/../secret",
            "/%00",
        ],
    )
    async def test_is_not_found(self, client: AsyncClient, path: str) -> None:
        response = await client.get(path)

        assert_problem(response, 404, "not_found")


class TestWrongMethod:
    @pytest.mark.parametrize(
        ("method", "path"), [("PATCH", "/health"), ("DELETE", "/bootstrap"), ("PUT", "/api/v1/auth/login")]
    )
    async def test_is_refused(self, client: AsyncClient, method: str, path: str) -> None:
        response = await client.request(method, path)

        assert_problem(response, 405, "invalid_request")

    async def test_names_every_method_that_is_allowed(self, client: AsyncClient) -> None:
        response = await client.delete("/api/v1/api-keys")

        allowed = {method.strip() for method in response.headers["allow"].split(",")}
        assert response.status_code == 405
        assert allowed >= {"GET", "POST"}
        assert "DELETE" not in allowed


class TestUnexpectedError:
    @pytest.mark.parametrize("error", [RuntimeError(SECRET_TEXT), OperationFailure(SECRET_TEXT), KeyError(SECRET_TEXT)])
    async def test_is_answered_without_a_word_of_it(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        _break_look_up(monkeypatch, error)

        response = await client.get("/api/v1/users/username/ada")

        assert_problem(response, 500, "internal_error")
        assert "hunter2" not in response.text
        assert "Traceback" not in response.text
        assert type(error).__name__ not in response.text

    async def test_is_logged_with_its_trace(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        _break_look_up(monkeypatch, RuntimeError(SECRET_TEXT))

        async with serve() as client:
            response = await client.get("/api/v1/users/username/ada", headers={"X-Request-ID": "broken-1"})

        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        logged = [line for line in lines if line["message"] == "unexpected_error"]
        assert response.status_code == 500
        assert [line["http.request.id"] for line in logged] == ["broken-1"]
        assert "RuntimeError" in logged[0]["error.stack_trace"]

    @pytest.mark.parametrize("label", ["RetryableWriteError", "TransientTransactionError"])
    async def test_is_none_when_the_database_hands_over_to_another(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, label: str
    ) -> None:
        _break_look_up(monkeypatch, WriteConcernError("stepped down", 189, {"errorLabels": [label]}))

        response = await client.get("/api/v1/users/username/ada")

        assert_problem(response, 503, "database_unavailable")
        assert response.headers["retry-after"] == "2"

    async def test_leaves_the_service_working(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        _break_look_up(monkeypatch, RuntimeError(SECRET_TEXT))
        await client.get("/api/v1/users/username/ada")
        monkeypatch.undo()

        response = await client.get("/api/v1/users/username/ada")

        assert_problem(response, 404, "not_found")


class Calls:
    """What a signed-in user does all day."""

    def __init__(self, client: AsyncClient, user: SignedInUser, path: str) -> None:
        self.client = client
        self.user = user
        self.path = path

    async def read(self) -> Response:
        return await self.client.get(self.path, headers=self.user.headers)

    async def write(self) -> Response:
        return await self.client.post(f"{self.path}/messages", headers=self.user.headers, json={"content": "Hello"})

    async def login(self) -> Response:
        account = {"email": self.user.document.email, "password": self.user.password}
        return await self.client.post("/api/v1/auth/login", json=account)


async def _calls(client: AsyncClient) -> Calls:
    ada = await make_signed_in()
    conversation = await make_conversation(ada)
    await make_messages(conversation, 2, by=ada)
    return Calls(client, ada, f"/api/v1/conversations/{conversation.id}")


@pytest.mark.parametrize("act", [Calls.read, Calls.write, Calls.login])
@pytest.mark.parametrize("gone", [OwnMongod.frozen, OwnMongod.killed])
class TestDatabaseIsGone:
    async def test_is_said_within_five_seconds(
        self, serve: Serve, own_mongod: OwnMongod, gone: Callable[..., Any], act: Callable[..., Any]
    ) -> None:
        async with serve(database_url=own_mongod.url) as client:
            calls = await _calls(client)
            assert (await act(calls)).is_success  # the principal is known by now, the connections are open

            with gone(own_mongod):
                started = time.monotonic()
                response = await act(calls)
                seconds = time.monotonic() - started

            recovered = await act(calls)
            shown = (await calls.read()).json()

        assert_problem(response, 503, "database_unavailable")
        assert int(response.headers["retry-after"]) > 0
        assert seconds < 5
        assert recovered.is_success
        assert shown["message_count"] == len(shown["messages"])


def _break_look_up(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def fail(_: str) -> None:
        raise error

    monkeypatch.setattr("app.crud.crud_user.find_by_username_key", fail)
