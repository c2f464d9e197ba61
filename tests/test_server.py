"""The service as it is run: processes of its own, a socket, signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from tests.conftest import SECRET
from tests.factories import PASSWORD
from tests.forking import ForkedService
from tests.measuring import process_environment
from tests.scripts.program import program_of

PROJECT = Path(__file__).parents[1]
AMPLE = "100000/minute"
ADA = {"email": "ada@example.com", "password": PASSWORD}
Raw = dict[str, Any]


class Server:
    """`python -m app`, with everything it starts."""

    measured = 2  # of those with the same settings
    is_forked = True  # with all that it needs loaded already
    program = "app.__main__"

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / f"server-{self.port}.log"
        self.started_at, self.took_to_start = time.monotonic(), 0.0
        given = ["--port", str(self.port), *options]
        has_one_worker = "--workers" not in options and "WORKERS" not in variables
        begin = _forked if self.is_forked and has_one_worker else _started
        given_variables = environment(folder, variables, options, measured=self.measured)
        self.process = begin(self.program, given, given_variables, self.log)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def ready(self) -> "Server":
        """Wait until every part answers."""
        give_up_at = time.monotonic() + 90
        while True:
            try:
                if self.client.get("/health/ready").status_code == 200:
                    self.took_to_start = self.took_to_start or time.monotonic() - self.started_at
                    return self
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up_at, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> int:
        """Ask it to end, as a service manager does, and give its exit code.

        It has ten seconds, or thrice as long as it took to start where the machine is that busy.
        """
        self.process.terminate()
        return self.process.wait(timeout=max(10, 3 * self.took_to_start))

    def kill(self) -> None:
        """Let no process of it say goodbye."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.client.close()

    def logged(self) -> list[str]:
        """The lines of its log. One that is just being written is none yet."""
        return self.log.read_text().rpartition("\n")[0].splitlines()

    def post(self, path: str, body: Raw | None = None, token: str | None = None) -> httpx.Response:
        return self.client.post(path, json=body, headers=bearer(token))

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        return self.client.get(path, headers=bearer(token))


Start = Callable[..., Server]


class StartedServer(Server):
    """By that very command, which loads what it needs."""

    is_forked = False


def _started(program: str, options: list[str], variables: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", program.removesuffix(".__main__"), *options],
            cwd=PROJECT,
            env=variables,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its process group holds its workers
        )


def _forked(program: str, options: list[str], variables: dict[str, str], log: Path) -> ForkedService:
    log.touch()
    return ForkedService(program, options, environment=variables, folder=PROJECT, log=log)


def environment(
    folder: Path, variables: dict[str, str], options: Sequence[str] = (), *, measured: int = 1
) -> dict[str, str]:
    """The environment of the tests, with settings of the test's own."""
    limits = ("ANONYMOUS", "AUTH", "KEY_CREATE", "AUTHENTICATED")
    return {
        **process_environment(f"server {options} {sorted(variables)}", times=measured),
        **{f"RATE_LIMIT_{name}": AMPLE for name in limits},
        "ENVIRONMENT": "test",
        "DATA_DIR": str(folder),
        "DATABASE_URL": "embedded",
        "BCRYPT_ROUNDS": "4",
        **variables,
    }


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_refused(port: int) -> bool:
    """Whether a connection is, at once."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError:
        return True
    return False


def processes_of(folder: Path) -> list[int]:
    """The embedded database of the folder, and its keeper."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if f"{folder}/mongodb" in command:
                found.append(int(entry.name))
    return found


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for what no event tells of."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "It did not happen in time."
        time.sleep(0.02)


@pytest.fixture
def start(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Start]:
    """Start a server with its data in the test's folder. Whatever still runs after the test is ended.

    It is of the kind that the class of the tests names (`server_kind = StartedServer`).
    """
    servers: list[Server] = []
    kind = getattr(request.cls, "server_kind", Server)

    def run(*options: str, **variables: str) -> Server:
        servers.append(kind(short_folder, *options, **variables))
        return servers[-1]

    yield run
    for server in servers:
        server.kill()
    for pid in processes_of(short_folder):
        os.kill(pid, signal.SIGKILL)


def sign_up(server: Server) -> str:
    """Make an account and sign in: an access token."""
    assert server.post("/api/v1/users", ADA).status_code == 201
    response = server.post("/api/v1/auth/login", ADA)
    assert response.status_code == 200
    return str(response.json()["access_token"])


class TestStart:
    server_kind = StartedServer

    def test_answers_with_nothing_configured(self, start: Start) -> None:
        server = start().ready()

        assert server.get("/").json()["name"] == "Octopus"
        assert "server" not in server.get("/").headers
        assert server.get("/health/live").json() == {"status": "alive"}
        assert server.get("/api/v1/auth/me", sign_up(server)).status_code == 200

    def test_logs_each_request_as_json(self, start: Start, database_url: str) -> None:
        server = start(DATABASE_URL=database_url).ready()

        headers = {"X-Request-ID": "req-7", "X-Forwarded-For": "203.0.113.9"}  # from no proxy that is trusted
        server.client.get("/api/v1/users/username/nobody", headers=headers)

        until(lambda: any("req-7" in line for line in server.logged()))  # it is written once the answer is out
        lines = [json.loads(line) for line in server.logged()]
        (line,) = [line for line in lines if line.get("http.request.id") == "req-7"]
        names = ("message", "http.request.method", "url.path", "http.response.status_code", "client.ip")
        assert [line[name] for name in names] == [
            "request",
            "GET",
            "/api/v1/users/username/nobody",
            404,
            "127.0.0.1",
        ]

    def test_writes_no_secret_to_its_log(self, start: Start, database_url: str) -> None:
        server = start(DATABASE_URL=database_url, DEBUG="true").ready()

        token = sign_up(server)
        assert server.get("/api/v1/auth/me", token).status_code == 200
        key = server.post("/bootstrap").json()["api_key"]
        headers = {"Octopus-API-Key": key, "X-Request-ID": "req-9"}
        assert server.client.get("/api/v1/users", headers=headers).status_code == 200

        until(lambda: "req-9" in server.log.read_text())
        log = server.log.read_text()
        assert "/api/v1/auth/me" in log
        assert not [secret for secret in (PASSWORD, token, key) if secret in log]

    def test_makes_one_master_key_however_many_ask_whichever_worker(self, start: Start) -> None:
        server = start("--workers", "2").ready()

        def ask(_: int) -> tuple[int, str | None]:
            with httpx.Client(base_url=str(server.client.base_url), timeout=30) as client:
                response = client.post("/bootstrap")
            return response.status_code, response.json().get("code")

        with ThreadPoolExecutor(20) as pool:
            answers = sorted(pool.map(ask, range(20)))

        assert answers == [(201, None)] + [(409, "already_bootstrapped")] * 19

    def test_has_one_secret_however_many_workers(self, start: Start, database_url: str) -> None:
        server = start("--workers", "2", DATABASE_URL=database_url).ready()
        token = sign_up(server)

        statuses = []
        for _ in range(20):  # each on a connection of its own, so that both workers answer some
            with httpx.Client(base_url=str(server.client.base_url), timeout=30) as client:
                statuses.append(client.get("/api/v1/auth/me", headers=bearer(token)).status_code)

        assert statuses == [200] * 20


class TestRefusalToStart:
    server_kind = StartedServer
    UNSAFE = {  # noqa: RUF012
        "ENVIRONMENT": "production",
        "DEBUG": "true",
        "DATABASE_URL": "embedded",
        "SECRET_KEY": "my-dog-is-called-rex",
    }

    @pytest.mark.parametrize("origins", ["*", '["*"]'])
    def test_names_every_fault_at_once(self, start: Start, origins: str) -> None:
        server = start(**self.UNSAFE, CORS_ORIGINS=origins)

        code = server.process.wait(timeout=20)

        text = server.log.read_text()
        assert code == 1
        for name in ("SECRET_KEY", "DATABASE_URL", "DEBUG", "CORS_ORIGINS", "BOOTSTRAP_TOKEN", "MASTER_API_KEY"):
            assert name in text
        assert "Traceback" not in text
        assert "my-dog-is-called-rex" not in text

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("TRUSTED_PROXIES", '["10.0.0.1"'),
            ("MASTER_API_KEY", "s3cret-but-no-key"),
            ("DATABASE_URL", "postgres://root:s3cret@host"),
        ],
    )
    def test_names_what_can_not_be_read(self, start: Start, name: str, value: str) -> None:
        server = start(**{name: value})

        assert server.process.wait(timeout=20) == 1

        text = server.log.read_text()
        assert name.lower() in text.lower()
        assert "Traceback" not in text
        assert "s3cret" not in text


class TestStop:
    server_kind = StartedServer

    @pytest.mark.parametrize(("workers", "code"), [("1", -signal.SIGTERM), ("2", 0)])
    def test_is_quick_and_clean(self, start: Start, short_folder: Path, workers: str, code: int) -> None:
        server = start("--workers", workers).ready()
        sign_up(server)

        assert server.stop() == code

        until(lambda: not processes_of(short_folder))
        assert "Traceback" not in server.log.read_text()

    @pytest.mark.parametrize(("workers", "code"), [("1", -signal.SIGTERM), ("2", 0)])
    def test_finishes_the_request_under_way(self, start: Start, database_url: str, workers: str, code: int) -> None:
        server = start("--workers", workers, DATABASE_URL=database_url).ready()
        body = json.dumps(ADA).encode()
        connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.putrequest("POST", "/api/v1/users")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        assert connection.sock.recv(1000).startswith(b"HTTP/1.1 100")  # now the application waits for the body

        server.process.terminate()
        until(lambda: server.log.read_text().count("Shutting down") == int(workers))
        until(lambda: is_refused(server.port))
        connection.send(body)
        response = connection.getresponse()

        assert response.status == 201
        assert json.loads(response.read())["email"] == "ada@example.com"
        assert server.process.wait(timeout=max(10, 3 * server.took_to_start)) == code
        connection.close()

    def test_does_not_wait_for_ever_for_a_client_that_sends_nothing(self, start: Start, database_url: str) -> None:
        server = start(DATABASE_URL=database_url).ready()
        with socket.create_connection(("127.0.0.1", server.port)) as idle:
            idle.send(b"GET / HTTP/1.1\r\n")

            assert server.stop() == -signal.SIGTERM


class TestKill:
    def test_loses_nothing_that_was_acknowledged(self, start: Start, short_folder: Path) -> None:
        server = start("--workers", "2").ready()
        token = sign_up(server)
        chat = server.post("/api/v1/conversations", {"title": "Tea"}, token).json()["id"]
        said = [
            server.post(f"/api/v1/conversations/{chat}/messages", {"role": "user", "content": f"cup {number}"}, token)
            for number in range(10)
        ]
        assert [response.status_code for response in said] == [201] * 10

        server.kill()
        for pid in processes_of(short_folder):
            os.kill(pid, signal.SIGKILL)

        again = start("--workers", "2").ready()
        messages = again.get(f"/api/v1/conversations/{chat}/messages", token)
        assert messages.status_code == 200
        assert [message["content"] for message in messages.json()] == [f"cup {number}" for number in range(10)]
        assert again.post("/api/v1/auth/login", ADA).status_code == 200

    def test_of_a_worker_is_mended(self, start: Start, database_url: str) -> None:
        server = start("--workers", "2", DATABASE_URL=database_url).ready()
        lines = [json.loads(line) for line in server.logged()]
        worker = next(
            int(line["message"].split("[")[1].rstrip("]")) for line in lines if "server process" in line["message"]
        )

        os.kill(worker, signal.SIGKILL)

        until(lambda: server.log.read_text().count("Started server process") == 3)
        server.ready()


class TestRevocation:
    @staticmethod
    def reads_of_sessions(mongodb: MongoClient[Raw], database_url: str) -> int:
        """How often the sessions have been queried: what the server itself has counted."""
        name = database_url.rpartition("/")[2].partition("?")[0]
        count: int = mongodb.admin.command("top")["totals"][f"{name}.sessions"]["queries"]["count"]
        return count

    def test_holds_within_a_quarter_of_a_second_in_the_other_process(
        self, start: Start, database_url: str, mongodb: MongoClient[Raw]
    ) -> None:
        here, there = (start(DATABASE_URL=database_url, SECRET_KEY=SECRET) for _ in range(2))
        here.ready()
        there.ready()
        assert here.post("/api/v1/users", ADA).status_code == 201

        for _ in range(5):
            token = here.post("/api/v1/auth/login", ADA).json()["access_token"]
            until(partial(self.is_answered_from_memory, there, token, mongodb, database_url))

            assert here.post("/api/v1/auth/logout", token=token).status_code == 204
            ended_at = time.monotonic()
            while (response := there.get("/api/v1/auth/me", token)).status_code == 200:
                assert time.monotonic() - ended_at < 0.25
            assert (response.status_code, response.json()["code"]) == (401, "token_revoked")

    def is_answered_from_memory(self, server: Server, token: str, mongodb: MongoClient[Raw], database_url: str) -> bool:
        before = self.reads_of_sessions(mongodb, database_url)
        assert server.get("/api/v1/auth/me", token).status_code == 200
        return self.reads_of_sessions(mongodb, database_url) == before

    def test_holds_at_once_without_the_cache(self, start: Start, database_url: str, mongodb: MongoClient[Raw]) -> None:
        here, there = (start(DATABASE_URL=database_url, SECRET_KEY=SECRET, AUTH_CACHE_SECONDS="0") for _ in range(2))
        here.ready()
        there.ready()
        assert here.post("/api/v1/users", ADA).status_code == 201

        for _ in range(20):
            token = here.post("/api/v1/auth/login", ADA).json()["access_token"]
            assert not self.is_answered_from_memory(there, token, mongodb, database_url)

            assert here.post("/api/v1/auth/logout", token=token).status_code == 204

            assert there.get("/api/v1/auth/me", token).status_code == 401


class TestScriptsBesideIt:
    def test_make_a_superuser_while_it_runs(self, start: Start, short_folder: Path) -> None:
        server = start().ready()

        subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", program_of("create_superuser"), "--email", "ada@example.com", "--password-stdin"],
            cwd=PROJECT,
            env=environment(short_folder, {}),
            input=PASSWORD,
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )

        token = server.post("/api/v1/auth/login", ADA).json()["access_token"]
        assert server.get("/api/v1/auth/me", token).json()["role"] == "superuser"
