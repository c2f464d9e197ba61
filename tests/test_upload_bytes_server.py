"""Clients that hang up in the middle, of a server as it is run: nothing of theirs stays open or behind."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests import test_server
from tests.factories import PASSWORD
from tests.test_server import Server, bearer, free_port

SIZE = 32 * 1024 * 1024
FIRST = b"\x89PNG\r\n\x1a\n" + bytes(4) + b"\rIHDR"
CONTENT = FIRST + bytes(SIZE - len(FIRST))


@pytest.fixture
def server(database_url: str, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    port = free_port()
    monkeypatch.setattr(test_server, "free_port", lambda: port)
    server = Server(short_folder, DATABASE_URL=database_url, PUBLIC_URL=f"http://127.0.0.1:{port}")
    yield server.ready()
    server.kill()


@pytest.fixture
def token(server: Server) -> str:
    body = {"email": "ada@example.com", "password": PASSWORD}
    server.post("/api/v1/users", body)
    return str(server.post("/api/v1/auth/login", body).json()["access_token"])


def announce(server: Server, token: str) -> Any:
    return server.post("/api/v1/uploads/direct", {"filename": "tea.png", "size": SIZE}, token).json()


def comes_true(condition: Callable[[], bool]) -> bool:
    give_up_at = time.monotonic() + 10
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.02)
    return True


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def has_open(server: Server, folder: Path) -> bool:
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    for each in descriptors.iterdir():
        try:
            if os.readlink(each).startswith(str(folder)):  # noqa: PTH115 - what it leads to may be gone
                return True
        except FileNotFoundError:
            continue
    return False


def request_of(method: str, url: str, headers: dict[str, str]) -> bytes:
    parts = urlsplit(url)
    lines = [f"{method} {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


class TestHangingUp:
    def test_while_putting_leaves_nothing_and_may_be_tried_again(self, server: Server, token: str) -> None:
        plan, uploads = announce(server, token), server.folder / "uploads"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request_of("PUT", plan["url"], {"Content-Length": str(SIZE)}))
            connection.sendall(CONTENT[: SIZE // 2])
            assert comes_true(lambda: has_open(server, uploads))

        is_clean = comes_true(lambda: not files_in(uploads) and not has_open(server, uploads))
        # Whoever hung up gives its place away when nothing of it is left.
        is_taken = comes_true(lambda: httpx.put(plan["url"], content=CONTENT, timeout=30).status_code == 204)
        done = server.post(f"/api/v1/uploads/{plan['upload']['id']}/complete", token=token)

        assert is_clean
        assert is_taken
        assert done.status_code == 200

    def test_while_reading_closes_the_file(self, server: Server, token: str) -> None:
        plan, uploads = announce(server, token), server.folder / "uploads"
        httpx.put(plan["url"], content=CONTENT, timeout=30)
        server.post(f"/api/v1/uploads/{plan['upload']['id']}/complete", token=token)
        url = f"http://127.0.0.1:{server.port}/api/v1/uploads/{plan['upload']['id']}/content"

        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request_of("GET", url, bearer(token)))
            assert connection.recv(12) == b"HTTP/1.1 200"
            was_open = comes_true(lambda: has_open(server, uploads))

        assert was_open
        assert comes_true(lambda: not has_open(server, uploads))
