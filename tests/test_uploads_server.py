"""Uploads to the service as it is run: cut off anywhere, by either side, and as large as they get."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tests.test_server import Server, Start, bearer, sign_up, start, until

__all__ = ["start"]  # the fixture
BOUNDARY = "a-boundary-of-our-own"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="tea.txt"\r\n'
    "Content-Type: text/plain\r\n\r\n"
).encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()
MIB = 1024 * 1024
LINE = b"Tea is a drink that is made of leaves, and of water.\n"
BLOCK = (LINE * (MIB // len(LINE) + 1))[:MIB]
Raw = dict[str, Any]


@pytest.fixture
def database(database_url: str, mongodb: MongoClient[Raw]) -> Database[Raw]:
    return mongodb[database_url.rpartition("/")[2].partition("?")[0]]


class Sender:
    """One upload, byte by byte."""

    def __init__(self, server: Server, token: str, size: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        length = len(HEAD) + size + len(END)
        self.connection.sendall(
            (
                f"POST /api/v1/uploads HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n\r\n"
            ).encode()
        )

    def send(self, content: bytes) -> None:
        self.connection.sendall(content)

    def hang_up(self) -> None:
        self.connection.close()


def files(folder: Path) -> list[Path]:
    """Every file below the folder of the uploads, half ones included."""
    return [path for path in (folder / "uploads").rglob("*") if path.is_file()]


def used(database: Database[Raw]) -> int:
    return sum(total["storage_bytes"] for total in database["usage_totals"].find())


def is_empty(database: Database[Raw], folder: Path) -> bool:
    counts = [database[name].count_documents({}) for name in ("uploads", "deleted_uploads")]
    return counts == [0, 0] and used(database) == 0 and files(folder) == []


def let_time_pass(database: Database[Raw], folder: Path) -> None:
    """Let the time pass after which what is pending is given up, and the job run."""
    long_ago = time.time() - 7200
    for path in (folder / "uploads").rglob("*"):
        if path.is_file():
            os.utime(path, (long_ago, long_ago))
    now = database.client.admin.command("hello")["localTime"]
    database["uploads"].update_many({"status": "pending"}, {"$set": {"due_at": now}})
    database["jobs"].update_one({"_id": "clean_up_uploads"}, {"$set": {"due_at": now}})


def peak_of(server: Server) -> int:
    """The most that was resident since `forget_peak`."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def forget_peak(server: Server) -> None:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def blocks(count: int) -> Iterator[bytes]:
    yield HEAD
    for _ in range(count):
        yield BLOCK
    yield END


def send(server: Server, token: str, content: Any, **headers: str) -> httpx.Response:
    declared = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **headers}
    return server.client.post("/api/v1/uploads", content=content, headers=bearer(token) | declared)


class TestUpload:
    def test_that_is_killed_leaves_nothing(
        self, start: Start, short_folder: Path, database_url: str, database: Database[Raw]
    ) -> None:
        server = start(DATABASE_URL=database_url).ready()
        token = sign_up(server)
        whole = send(server, token, blocks(1)).json()
        senders = [Sender(server, token, 10 * MIB) for _ in range(4)]
        for sender, content in zip(
            senders, (HEAD + LINE, HEAD + 3 * BLOCK, HEAD + 10 * BLOCK, HEAD + 10 * BLOCK + END[:-8]), strict=True
        ):
            sender.send(content)
        until(lambda: database["uploads"].count_documents({"status": "pending"}) == 4)
        until(lambda: sum(path.stat().st_size for path in files(short_folder)) > 20 * MIB)

        server.kill()
        for sender in senders:
            sender.hang_up()

        assert used(database) == MIB + sum(each["size"] for each in database["uploads"].find({"status": "pending"}))
        server = start(DATABASE_URL=database_url).ready()
        listed = server.get("/api/v1/uploads?status=clean", token).json()
        assert [row["id"] for row in listed] == [whole["id"]]
        let_time_pass(database, short_folder)
        until(lambda: len(files(short_folder)) == 1)
        assert [each["size"] for each in database["uploads"].find()] == [MIB]
        assert used(database) == MIB
        assert [path.stat().st_size for path in files(short_folder)] == [MIB]

    def test_that_is_hung_up_leaves_nothing(
        self, start: Start, short_folder: Path, database_url: str, database: Database[Raw]
    ) -> None:
        server = start(DATABASE_URL=database_url).ready()
        token = sign_up(server)
        senders = [Sender(server, token, 10 * MIB) for _ in range(3)]
        for sender, content in zip(senders, (HEAD, HEAD + LINE, HEAD + 9 * BLOCK), strict=True):
            sender.send(content)
        until(lambda: database["uploads"].count_documents({}) == 2)
        until(lambda: files(short_folder))

        for sender in senders:
            sender.hang_up()

        until(lambda: is_empty(database, short_folder))
        assert server.get("/api/v1/usage/me", token).json()["used"]["storage_bytes"] == 0

    def test_needs_no_more_memory_for_a_large_file(
        self, start: Start, short_folder: Path, database_url: str, database: Database[Raw]
    ) -> None:
        server = start(DATABASE_URL=database_url).ready()
        token = sign_up(server)
        assert send(server, token, blocks(1)).status_code == 201
        forget_peak(server)
        idle = peak_of(server)

        response = send(server, token, blocks(200), **{"Content-Length": str(len(HEAD) + 200 * MIB + len(END))})

        assert (response.status_code, response.json()["size"]) == (201, 200 * MIB)
        assert peak_of(server) - idle < 64 * MIB
        assert used(database) == 201 * MIB
        assert len(files(short_folder)) == 2

    def test_that_is_refused_early_hears_why(
        self, start: Start, short_folder: Path, database_url: str, database: Database[Raw]
    ) -> None:
        server = start(DATABASE_URL=database_url, MAX_UPLOAD_BYTES=str(4 * MIB)).ready()
        token = sign_up(server)
        page = b"<!doctype html>" + BLOCK

        answers = [
            send(server, token, [HEAD, page, BLOCK, BLOCK, END]),
            send(server, token, blocks(12)),
            send(server, token, b"".join(blocks(12))),
            send(server, token, b"".join(blocks(3)), **{"Content-Type": "application/json"}),
        ]

        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
            (422, "file_rejected"),
            (413, "payload_too_large"),
            (413, "payload_too_large"),
            (415, "unsupported_media_type"),
        ]
        assert {answer.headers["connection"] for answer in answers} == {"close"}
        until(lambda: is_empty(database, short_folder))
