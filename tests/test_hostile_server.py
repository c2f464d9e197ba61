"""A real server process, and clients that do not behave."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tests.conftest import SECRET
from tests.factories import PASSWORD

ROOT = Path(__file__).parents[1]
START_SECONDS = 30
PATIENCE_SECONDS = 15
MEGABYTE = 1000 * 1000
GET = b"GET /health/live HTTP/1.1\r\nHost: test\r\n"


class Server:
    """The server as an operator runs it, seen from outside: its port, its memory, its log."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path, database: Database[Any]) -> None:
        self.process, self.port, self.log, self.database = process, port, log, database
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS, trust_env=False)
        self.mark = 0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def ask(self, content: bytes) -> bytes:
        """Everything that the server answers until it hangs up."""
        with closing(self.connect()) as connection:
            send_what_is_taken(connection, content)
            return answer_of(connection)

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged since the test began, but for a line that it is just writing."""
        whole = self.log.read_bytes()[self.mark :].rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for_requests(self, request_id: str, count: int) -> list[dict[str, Any]]:
        """The access lines of requests with such an id, once there are that many: those requests are over."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            lines = [line for line in self.lines() if line["message"] == "request"]
            found = [line for line in lines if line["http.request.id"].startswith(request_id)]
            if len(found) >= count:
                return found
            assert time.monotonic() < give_up_at, f"only {len(found)} requests arrived"
            time.sleep(0.02)

    def emails(self) -> list[str]:
        return sorted(row["email"] for row in self.database["users"].find())

    def is_well(self) -> bool:
        """It runs, it answers, and nothing has surprised it."""
        assert self.process.poll() is None
        assert self.client.get("/health/ready").status_code == 200
        assert [line for line in self.lines() if line["log.level"] in {"error", "critical"}] == []
        return True

    def forget_peak(self) -> int:
        """Begin to measure the peak of memory anew; gives what is in use now, in bytes."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    def peak(self) -> int:
        return self._memory("VmHWM")

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture(scope="module")
def running_server(mongodb: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    name = f"hostile_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    host, database_port = mongodb.address or ("127.0.0.1", 27017)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RATE_LIMIT_")},
        **dict.fromkeys(["RATE_LIMIT_ANONYMOUS", "RATE_LIMIT_AUTH", "RATE_LIMIT_AUTHENTICATED"], "100000/minute"),
        "DATABASE_URL": f"mongodb://{host}:{database_port}/{name}?replicaSet={mongodb.options.replica_set_name}",
        "ENVIRONMENT": "test",
        "SECRET_KEY": SECRET,
        "BCRYPT_ROUNDS": "4",
        "PYTHONPATH": str(ROOT),
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "app", "--port", str(port)], cwd=folder, env=environment, stderr=output
        )
    server = Server(process, port, log, mongodb[name])
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            server.client.close()
            mongodb.drop_database(name)


@pytest.fixture
def server(running_server: Server) -> Server:
    """The server of this file with nobody in it, whose log begins here."""
    for name in ("users", "audit_events", "sessions", "conversations", "messages"):
        running_server.database[name].delete_many({})
    running_server.mark = running_server.log.stat().st_size
    return running_server


def _wait_until_ready(server: Server) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    while True:
        with suppress(httpx.TransportError):
            if server.client.get("/health/ready").status_code == 200:
                return
        assert server.process.poll() is None, server.log.read_text()
        assert time.monotonic() < give_up_at, server.log.read_text()
        time.sleep(0.05)


def send_what_is_taken(connection: socket.socket, content: bytes) -> int:
    """Send until all is sent or the server has hung up; gives how much it took."""
    sent = 0
    with suppress(ConnectionError):
        while sent < len(content):
            sent += connection.send(content[sent : sent + 65536])
    return sent


def answer_of(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while content := connection.recv(65536):
            received += content
    return received


def status_of(answer: bytes) -> int | None:
    """The status of the first answer; none when the connection was cut without one."""
    return int(answer.split(b" ", 2)[1]) if answer else None


def problem_of(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    problem: dict[str, Any] = json.loads(body)
    return problem


def reset(connection: socket.socket) -> None:
    """Hang up the hard way: the other end sees a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def account(name: str) -> bytes:
    return json.dumps({"email": f"{name}@example.com", "password": PASSWORD}).encode()


def registration_head(name: str, *, length: int, more: bytes = b"") -> bytes:
    return (
        b"POST /api/v1/auth/register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nX-Request-ID: %s\r\n%sContent-Length: %d\r\n\r\n"
    ) % (name.encode(), more, length)


def registration(name: str) -> bytes:
    return registration_head(name, length=len(account(name))) + account(name)


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


CHUNKED_POST = (
    b"POST /api/v1/auth/login HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n"
)


class TestTooManyHeaders:
    @pytest.mark.parametrize(
        "headers",
        [
            GET + b"".join(b"X-%07d: %s\r\n" % (number, b"a" * 80) for number in range(110_000)) + b"\r\n",
            GET + b"X-Large: " + b"a" * 10 * MEGABYTE + b"\r\n\r\n",
            GET + b"a" * 10 * MEGABYTE,
            b"GET /" + b"a" * 10 * MEGABYTE + b" HTTP/1.1\r\nHost: test\r\n\r\n",
            CHUNKED_POST + b"\r\n" + chunk(b"{}") + b"0\r\nX-Trailer: " + b"a" * 10 * MEGABYTE + b"\r\n\r\n",
            CHUNKED_POST + b"\r\n" + chunk(b"{}") + b"0\r\n" + b"X: aaaaaaaaaaaaaaaa\r\n" * 500_000 + b"\r\n",
        ],
        ids=["many", "one large value", "one large name", "request line", "large trailer", "many trailers"],
    )
    def test_cost_the_server_nothing(self, server: Server, headers: bytes) -> None:
        assert len(headers) >= 10 * MEGABYTE
        server.ask(GET + b"Connection: close\r\n\r\n")
        before = server.forget_peak()

        answer = server.ask(headers)

        assert server.peak() - before < 8 * MEGABYTE
        assert status_of(answer) in {None, 400, 422, 431}
        assert server.is_well()

    @pytest.mark.parametrize(
        "headers",
        [
            b"GET /%s HTTP/1.1\r\nHost: test\r\n\r\n" % (b"a" * 100_000),
            b"GET /?%s HTTP/1.1\r\nHost: test\r\n\r\n" % (b"a" * 100_000),
            GET + b"Cookie: " + b"a" * 100_000 + b"\r\n\r\n",
            GET + b"X: aaaaaaaaaaaaaaaa\r\n" * 5000 + b"\r\n",
        ],
        ids=["path", "query", "header", "headers"],
    )
    def test_are_refused_as_such(self, server: Server, headers: bytes) -> None:
        answer = server.ask(headers)

        assert status_of(answer) == 431
        assert problem_of(answer)["code"] == "invalid_request"
        assert server.is_well()

    def test_are_refused_again_at_every_connection(self, server: Server) -> None:
        answers = [server.ask(GET + b"a" * 200_000) for _ in range(50)]

        assert {status_of(answer) for answer in answers} == {431}
        assert server.is_well()

    def test_are_counted_for_each_request_alone(self, server: Server) -> None:
        large = GET + b"Cookie: " + b"a" * 30_000 + b"\r\n\r\n"

        with closing(server.connect()) as connection:
            for _ in range(5):
                connection.sendall(large)
                answer = b""
                while not answer.endswith(b'{"status":"alive"}'):
                    content = connection.recv(65536)
                    assert content, "the server hung up"
                    answer += content
                assert status_of(answer) == 200

        assert server.is_well()


EARLY = registration("early")
BODY_STARTS = EARLY.index(b"\r\n\r\n") + 4


class TestHangingUp:
    @pytest.mark.parametrize("how", [socket.socket.close, reset])
    @pytest.mark.parametrize(
        "taken",
        [0, 1, 25, 60, BODY_STARTS - 4, BODY_STARTS - 1, BODY_STARTS, BODY_STARTS + 1, len(EARLY) - 1],
    )
    def test_early_leaves_nothing_behind(self, server: Server, taken: int, how: Any) -> None:
        for _ in range(20):
            connection = server.connect()
            connection.sendall(EARLY[:taken])
            how(connection)

        assert status_of(server.ask(registration("after"))) == 201
        assert server.is_well()
        assert server.emails() == ["after@example.com"]
        assert server.database["audit_events"].count_documents({}) == 1

    @pytest.mark.parametrize("how", [socket.socket.close, reset])
    def test_before_the_answer_leaves_nothing_half_written(self, server: Server, how: Any) -> None:
        for number in range(20):
            body = account(f"late-{number}")
            with closing(server.connect()) as connection:
                connection.sendall(
                    registration_head(f"late-{number}", length=len(body), more=b"Expect: 100-continue\r\n")
                )
                assert status_of(connection.recv(65536)) == 100  # the application waits for the body
                connection.sendall(body)
                how(connection)

        lines = server.wait_for_requests("late-", 20)
        assert {line["http.response.status_code"] for line in lines} <= {201, 400}
        assert len(server.emails()) == [line["http.response.status_code"] for line in lines].count(201)
        assert server.database["audit_events"].count_documents({"action": "user:created"}) == len(server.emails())
        assert server.is_well()

    def test_while_the_answer_comes_harms_nobody(self, server: Server) -> None:
        request = b"GET /openapi.json HTTP/1.1\r\nHost: test\r\nX-Request-ID: cut\r\n\r\n"
        for _ in range(20):
            connection = server.connect()
            connection.sendall(request * 5)
            connection.recv(1)
            reset(connection)

        server.wait_for_requests("cut", 20)
        assert server.is_well()

    @pytest.mark.parametrize("promised", [100, 10_000, 1_000_000])
    def test_before_the_promised_end_of_the_body_stores_nothing(self, server: Server, promised: int) -> None:
        with closing(server.connect()) as connection:
            connection.sendall(registration_head(f"short-{promised}", length=promised) + account("short"))
            connection.shutdown(socket.SHUT_WR)
            answer = answer_of(connection)

        [line] = server.wait_for_requests(f"short-{promised}", 1)
        assert status_of(answer) in {None, 400}
        assert line["http.response.status_code"] == 400
        assert server.emails() == []
        assert server.is_well()


INVALID = {
    "noise": b"\x00\x01\x02\xff\xfe\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + b"\x00" * 100,
    "text": b"hello, is anybody there?\r\n\r\n",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\nHost: test\r\n\r\n",
    "method": b"FETCH / HTTP/1.1\r\nHost: test\r\n\r\n",
    "no path": b"GET HTTP/1.1\r\nHost: test\r\n\r\n",
    "space in path": b"GET /a b HTTP/1.1\r\nHost: test\r\n\r\n",
    "bytes in path": b"GET /\xff\xfe HTTP/1.1\r\nHost: test\r\n\r\n",
    "nul in header": b"GET / HTTP/1.1\r\nHost: te\x00st\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : test\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    "negative length": b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: -1\r\n\r\n",
    "length of text": b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: ten\r\n\r\n",
    "endless length": b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %s\r\n\r\n" % (b"9" * 40),
    "two lengths": b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": (
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "bad chunk": CHUNKED_POST + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
}


class TestInvalidHttp:
    @pytest.mark.parametrize("kind", INVALID)
    def test_is_refused_and_ends_the_connection(self, server: Server, kind: str) -> None:
        answer = server.ask(INVALID[kind])

        assert status_of(answer) == 400
        assert server.is_well()

    def test_is_refused_as_a_problem(self, server: Server) -> None:
        answer = server.ask(INVALID["text"])

        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (400, "invalid_request")
        assert f"\r\nx-request-id: {problem['request_id']}\r\n".encode() in answer
        assert problem.keys() == {"type", "title", "status", "detail", "instance", "code", "request_id"}

    def test_is_no_way_to_smuggle_a_second_request(self, server: Server) -> None:
        smuggled = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"
        head = b"POST /bootstrap/no HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n"

        server.ask(head % (len(smuggled) + 5) + b"0\r\n\r\n" + smuggled)

        assert [line for line in server.lines() if line.get("url.path") == "/smuggled"] == []
        assert server.is_well()


class TestStrangeButValid:
    def test_byte_by_byte_is_answered(self, server: Server) -> None:
        with closing(server.connect()) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in registration("ada"):
                connection.sendall(bytes([byte]))
                time.sleep(0.001)  # so that each byte arrives alone: the slowness is what this is about
            answer = answer_of(connection)

        assert status_of(answer) == 201
        assert server.emails() == ["ada@example.com"]
        assert server.is_well()

    def test_pipelined_requests_are_answered_in_order(self, server: Server) -> None:
        requests = [
            b"GET /health/ready HTTP/1.1\r\nHost: test\r\nX-Request-ID: p-%d\r\n\r\n" % number for number in range(9)
        ]

        answer = server.ask(b"".join(requests) + registration("ada"))

        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
        assert statuses == [200] * 9 + [201]
        assert re.findall(rb"x-request-id: p-(\d)", answer) == [b"%d" % number for number in range(9)]
        assert server.is_well()

    @pytest.mark.parametrize(("count", "cookie"), [(2999, 1), (9, 40_000)])
    def test_pipelined_requests_are_all_answered_however_long_the_line(
        self, server: Server, count: int, cookie: int
    ) -> None:
        request = GET + b"Cookie: " + b"a" * cookie + b"\r\n"

        answer = server.ask((request + b"\r\n") * count + request + b"Connection: close\r\n\r\n")

        assert answer.count(b"HTTP/1.1 200 ") == count + 1
        assert server.is_well()

    def test_a_body_in_chunks_is_put_together(self, server: Server) -> None:
        body = account("ada")
        head = CHUNKED_POST.replace(b"login", b"register") + b"Connection: close\r\n\r\n"

        answer = server.ask(head + b"".join(chunk(body[at : at + 1]) for at in range(len(body))) + b"0\r\n\r\n")

        assert status_of(answer) == 201
        assert server.is_well()

    def test_an_old_client_is_answered(self, server: Server) -> None:
        answer = server.ask(b"GET /health/live HTTP/1.0\r\n\r\n")

        assert status_of(answer) == 200

    def test_an_upgrade_is_not_taken(self, server: Server) -> None:
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n"

        with closing(server.connect()) as connection:
            connection.sendall(GET + upgrade + b"\r\n")
            answer = connection.recv(65536)

        assert status_of(answer) != 101
        assert server.is_well()

    def test_silent_connections_do_not_keep_others_waiting(self, server: Server) -> None:
        silent = [server.connect() for _ in range(200)]
        for connection in silent:
            connection.sendall(GET)

        answer = server.ask(GET + b"Connection: close\r\n\r\n")

        assert status_of(answer) == 200
        for connection in silent:
            connection.close()
        assert server.is_well()


class TestTooLargeBody:
    @pytest.mark.parametrize("size", [1000, 64 * 1024, 4 * MEGABYTE])
    def test_in_chunks_is_refused_while_it_comes(self, server: Server, size: int) -> None:
        before = server.forget_peak()

        answer = server.ask(CHUNKED_POST + b"\r\n" + chunk(b" " * size) * (20 * MEGABYTE // size))

        assert status_of(answer) == 413
        assert problem_of(answer)["code"] == "payload_too_large"
        assert b"connection: close" in answer.lower()
        assert server.peak() - before < 10 * MEGABYTE
        assert server.is_well()

    def test_is_refused_before_it_comes_when_it_is_announced(self, server: Server) -> None:
        head = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"

        answer = server.ask(head + b"Expect: 100-continue\r\nContent-Length: 10000000000\r\n\r\n")

        assert status_of(answer) == 413
        assert problem_of(answer)["code"] == "payload_too_large"
        assert server.is_well()
