"""Full disks under the service as it is run: that of the database, of the uploads, of the metrics, of the log."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pymongo import MongoClient
from pymongo.database import Database

from tests.replica_set import Mongod, ReplicaSet
from tests.small_disk import small_disk
from tests.test_events_server import Chat
from tests.test_metrics_server import ASKED, ask, asked, workers
from tests.test_network_server import Talk, assert_unavailable
from tests.test_server import ADA, PROJECT, Start, bearer, environment, free_port, sign_up, start, until
from tests.test_uploads_server import MIB, blocks, database, send, used

__all__ = ["database", "start"]  # the fixtures
Raw = dict[str, Any]
# So that the server does not set aside more than the disk has.
_SMALL_JOURNAL = ("--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=4MB)")


class TestDiskOfTheDatabase:
    def test_loses_nothing_that_was_acknowledged(self, start: Start) -> None:
        with small_disk(60) as disk:
            mongod = Mongod(disk.folder / "db", *_SMALL_JOURNAL)
            mongod.start()
            try:
                members = ReplicaSet([mongod])
                members.initiate()
                server = start(DATABASE_URL=members.url("octopus")).ready()
                with MongoClient[Raw](members.url("octopus")) as mongo:
                    talk = Talk(server, Chat(server, mongo["octopus"], "ada"))
                disk.fill(but=500_000)
                said: list[Raw] = []
                while (answer := talk.say(f"{len(said)} " + os.urandom(10_000).hex(), f"key-{len(said)}")).is_success:
                    said.append(answer.json())
                assert_unavailable(answer)
                assert_unavailable(server.get(talk.chat.path, talk.chat.people[0].token))
                assert mongod.process.wait(20) != 0  # it ends rather than go on without its journal

                disk.empty()
                mongod.start()
                members.primary()
                last = talk.say_until(answer, (201, None), (409, "conflict"))
                with MongoClient[Raw](members.url("octopus")) as mongo:
                    rows = list(mongo["octopus"]["messages"].find().sort("seq"))
                shown = server.get(talk.chat.path, talk.chat.people[0].token).json()
            finally:
                mongod.kill()

        assert said
        assert [(row["seq"], row["content"]) for row in rows[:-1]] == [(row["seq"], row["content"]) for row in said]
        assert (last.status_code, rows[-1]["seq"]) in {(201, len(said) + 1), (409, len(said) + 1)}
        assert shown["message_count"] == len(said) + 1


class TestDiskOfTheUploads:
    def test_is_said_and_leaves_nothing_behind(self, start: Start, database_url: str, database: Database[Raw]) -> None:
        with small_disk(20) as disk:
            server = start(DATABASE_URL=database_url, DATA_DIR=str(disk.folder)).ready()
            token = sign_up(server)
            until(lambda: any(path.suffix == ".eml" for path in disk.files()))  # the welcome
            before = disk.files()
            disk.fill(but=2 * MIB)

            refused = [send(server, token, blocks(5)) for _ in range(2)]
            left = [path for path in disk.files() if path not in before]
            counted = used(database)
            fits = send(server, token, blocks(1))
            disk.empty()
            mended = send(server, token, blocks(5))

        assert [answer.status_code for answer in refused] == [503, 503]
        for answer in refused:
            assert answer.json()["code"] == "storage_unavailable"
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) > 0
        assert (left, counted) == ([], 0)
        assert (fits.status_code, mended.status_code) == (201, 201)


class TestDiskOfTheMetrics:
    def test_keeps_no_worker_from_starting_and_no_scrape_from_its_answer(self, start: Start, database_url: str) -> None:
        with small_disk(1) as disk:
            server = start("--workers", "2", DATABASE_URL=database_url, METRICS_DIR=str(disk.folder)).ready()
            until(lambda: len(workers(server)) == 2)
            disk.fill()
            died = min(workers(server))
            os.kill(died, signal.SIGKILL)
            until(lambda: len(workers(server) - {died}) == 2)  # another has begun in its place
            said = server.log.read_text()
            disk.empty()
            ask(server)

            until(lambda: all(asked(server) == ASKED for _ in range(8)))
            assert "metrics_not_published" in said
            assert died not in workers(server)
            assert server.stop() == 0


@contextmanager
def logging_to(log: Path, folder: Path, **variables: str) -> Iterator[httpx.Client]:
    """The service with its log there."""
    port = free_port()
    with log.open("wb") as written:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "app", "--port", str(port)],
            cwd=PROJECT,
            env=environment(folder, variables),
            stdout=subprocess.DEVNULL,
            stderr=written,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            until(lambda: answers(client))
            yield client
    finally:
        process.kill()
        process.wait()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


class TestDiskOfTheLog:
    def test_keeps_nobody_from_being_served(self, short_folder: Path, database_url: str) -> None:
        with logging_to(Path("/dev/full"), short_folder, DATABASE_URL=database_url) as client:
            created = client.post("/api/v1/users", json=ADA)
            signed_in = client.post("/api/v1/auth/login", json=ADA)
            headers = bearer(signed_in.json().get("access_token"))
            item = client.post("/api/v1/items", json={"title": "Cup"}, headers=headers | {"Idempotency-Key": "cup"})
            again = client.post("/api/v1/items", json={"title": "Cup"}, headers=headers | {"Idempotency-Key": "cup"})
            listed = client.get("/api/v1/items", headers=headers)
            missing = client.get("/nothing")

        answered = [answer.status_code for answer in (created, signed_in, item, again, listed, missing)]
        assert answered == [201, 200, 201, 201, 200, 404]
        assert [row["id"] for row in listed.json()] == [item.json()["id"]]
