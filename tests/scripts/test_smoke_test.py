"""The faults that the smoke test finds. That it lets a working service pass is seen where one is started."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "smoke_test.py"
READY = (200, {"status": "healthy", "version": "1.2.3", "checks": {"database": "ok"}})
REFUSED = (401, {"code": "not_authenticated"})
CUT_OFF = b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"status":'
Answers = dict[str, tuple[int, dict[str, Any]] | bytes]
WELL: Answers = {
    "/health/ready": READY,
    "/health/live": (200, {}),
    **dict.fromkeys(
        ("/api/v1/auth/me", "/api/v1/users", "/api/v1/conversations", "/api/v1/api-keys"),
        REFUSED,
    ),
}


@pytest.mark.parametrize(
    ("answers", "options", "fault"),
    [
        ({}, [], None),
        ({}, ["--version=1.2.3"], None),
        ({}, ["--version=1.2.4", "--wait=1.5"], "its version is 1.2.3, not 1.2.4"),
        ({"/health/ready": (503, {"checks": {"database": "down"}})}, [], "not ready: {'database': 'down'}"),
        ({"/health/ready": (302, {})}, [], "/health/ready is answered with 302"),
        ({"/api/v1/users": (200, {"items": []})}, [], "GET /api/v1/users is answered with 200"),
        ({"/api/v1/api-keys": (500, {"code": "internal"})}, [], "is answered with 500 internal, not 401"),
        ({"/health/ready": CUT_OFF}, [], "it does not answer: IncompleteRead"),
        ({"/health/ready": b"SSH-2.0-tea\r\n\r\n"}, [], "it does not answer: SSH-2.0-tea"),
        ({"/health/live": CUT_OFF}, [], "does not answer: IncompleteRead"),
        ({}, ["--walk"], "POST /api/v1/users is answered with 501"),
    ],
)
def test_names_the_first_fault(answers: Answers, options: list[str], fault: str | None) -> None:
    with _answering(WELL | answers) as url:
        ended = _try(url, *options)

    if fault is None:
        assert (ended.returncode, ended.stderr) == (0, "")
    else:
        assert fault in ended.stderr
        assert ended.stderr.startswith("FAULT: ")
        assert ended.returncode == 1


def test_says_that_nothing_answers() -> None:
    with _answering(WELL) as url:
        pass

    ended = _try(url)

    assert ended.returncode == 1
    assert "does not answer" in ended.stderr


def test_says_that_the_url_is_none() -> None:
    ended = _try("http://127.0.0.1:tea")

    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "nonnumeric port" in ended.stderr


def test_tries_again_after_an_answer_that_was_cut_off() -> None:
    with _answering(WELL, first=CUT_OFF) as url:
        ended = _try(url, "--wait=30")

    assert (ended.returncode, ended.stderr) == (0, "")


def _try(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), url, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603


@contextmanager
def _answering(answers: Answers, *, first: bytes | None = None) -> Iterator[str]:
    """A server that answers so, the first request perhaps otherwise; its URL."""
    odd = [] if first is None else [first]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = odd.pop() if odd else answers[self.path]
            if isinstance(answer, bytes):
                self.wfile.write(answer)
                return
            status, body = answer
            self.send_response(status)
            self.send_header("Content-Type", "application/problem+json")
            self.send_header("Location", "/health/live")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
