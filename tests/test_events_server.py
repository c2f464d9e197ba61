"""Following conversations on the service as it is run: several processes, sockets, signals, clients that misbehave."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tests.conftest import SECRET
from tests.factories import PASSWORD
from tests.scraping import parsed
from tests.streams import Event, event_of
from tests.test_server import Server, Start, bearer, start, until

__all__ = ["start"]  # the fixture
MESSAGES = 1000
WRITERS = 8
Raw = dict[str, Any]


class Person(NamedTuple):
    id: str
    token: str


class Chat:
    """A conversation of people, and what happens in it."""

    def __init__(self, server: Server, database: Database[Raw], *names: str) -> None:
        self.database = database
        self.people = [sign_up(server, name) for name in names]
        database["users"].update_many({}, {"$set": {"limits": {"daily_messages": None}}})
        body = {"title": "Tea", "participant_ids": [person.id for person in self.people[1:]]}
        self.id = server.post("/api/v1/conversations", body, self.people[0].token).json()["id"]
        self.path = f"/api/v1/conversations/{self.id}"


def sign_up(server: Server, name: str) -> Person:
    account = {"email": f"{name}@example.com", "password": PASSWORD}
    user_id = server.post("/api/v1/users", account).json()["id"]
    return Person(user_id, str(server.post("/api/v1/auth/login", account).json()["access_token"]))


@pytest.fixture
def database(database_url: str, mongodb: MongoClient[Raw]) -> Database[Raw]:
    return mongodb[database_url.rpartition("/")[2].partition("?")[0]]


class Follower:
    """A client that reads events, and remembers the last as a browser does."""

    def __init__(self, server: Server, chat: Chat, person: Person) -> None:
        self.server, self.chat, self.person = server, chat, person
        self.last_id: str | None = None
        self.told: list[Event] = []

    @contextmanager
    def connected(self) -> Iterator[Iterator[Event]]:
        headers = bearer(self.person.token) | ({"Last-Event-ID": self.last_id} if self.last_id else {})
        url = f"http://127.0.0.1:{self.server.port}{self.chat.path}/events"
        with httpx.Client(timeout=30) as client, client.stream("GET", url, headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            yield self._events(answer)

    def _events(self, answer: httpx.Response) -> Iterator[Event]:
        block: list[str] = []
        for line in answer.iter_lines():
            if line:
                block.append(line)
                continue
            event, block = event_of(block), []
            if event is not None:
                self.last_id = event.id or self.last_id
                self.told.append(event)
                yield event

    def seqs(self) -> list[int]:
        return [event.data["seq"] for event in self.told if event.type == "message.created"]


def read_until(follower: Follower, count: int, *, breaks_every: int | None = None) -> None:
    """Read so many messages, hanging up and coming back after each so many."""
    while len(follower.seqs()) < count:
        with follower.connected() as events:
            for event in events:
                seen = len(follower.seqs())
                is_break = breaks_every and event.type == "message.created" and seen % breaks_every == 0
                if seen >= count or is_break:
                    break


def write(server: Server, chat: Chat, person: Person, count: int) -> None:
    with httpx.Client(base_url=str(server.client.base_url), timeout=30, headers=bearer(person.token)) as client:
        for number in range(count):
            said = client.post(f"{chat.path}/messages", json={"content": f"cup {number}"})
            assert said.status_code == 201, said.text


class TestTwoWorkers:
    def test_tell_everybody_of_everything_once_and_in_order(
        self, start: Start, database_url: str, database: Database[Raw]
    ) -> None:
        server = start(WORKERS="2", DATABASE_URL=database_url).ready()
        chat = Chat(server, database, "ada", "ben")
        ada, ben = chat.people
        followers = [Follower(server, chat, person) for person in (ada, ben, ada, ben)]
        for follower in followers:
            with follower.connected() as events:
                assert next(events).type == "ready"

        with ThreadPoolExecutor(WRITERS + len(followers)) as pool:
            reading = [
                pool.submit(read_until, follower, MESSAGES, breaks_every=90 if at == 0 else None)
                for at, follower in enumerate(followers)
            ]
            writing = [
                pool.submit(write, server, chat, chat.people[number % 2], MESSAGES // WRITERS)
                for number in range(WRITERS)
            ]
            for task in (*writing, *reading):
                task.result(timeout=180)

        for follower in followers:
            assert follower.seqs() == list(range(1, MESSAGES + 1))
        assert len([event for event in followers[0].told if event.type == "ready"]) >= 11
        assert {event.type for event in followers[0].told} == {"ready", "message.created"}

    def test_that_lose_one_let_its_clients_resume_at_the_other(
        self, start: Start, database_url: str, database: Database[Raw]
    ) -> None:
        server = start(WORKERS="2", DATABASE_URL=database_url).ready()
        chat = Chat(server, database, "ada", "ben")
        followers = [Follower(server, chat, chat.people[0]) for _ in range(6)]
        have_begun = threading.Barrier(len(followers) + 1)

        def follow(follower: Follower) -> int:
            """How often the connection broke."""
            breaks = 0
            while True:
                try:
                    with follower.connected() as events:
                        for event in events:
                            if event.type == "ready" and len(follower.told) == 1:
                                have_begun.wait(30)
                            if len(follower.seqs()) == 60:
                                return breaks
                        breaks += 1
                except httpx.TransportError:
                    breaks += 1

        with ThreadPoolExecutor(len(followers)) as pool:
            tasks = [pool.submit(follow, follower) for follower in followers]
            have_begun.wait(30)
            write(server, chat, chat.people[1], 20)
            os.kill(worker_of(server), signal.SIGKILL)
            write_through(server, chat, chat.people[1], 40)
            breaks = [task.result(timeout=60) for task in tasks]

        assert sum(breaks) > 0
        for follower in followers:
            assert follower.seqs() == list(range(1, 61))


def worker_of(server: Server) -> int:
    lines = [json.loads(line) for line in server.logged()]
    return next(int(line["message"].split("[")[1].rstrip("]")) for line in lines if "server process" in line["message"])


def write_through(server: Server, chat: Chat, person: Person, count: int) -> None:
    """Write so many messages, though a worker dies: what was not answered counts if it was stored."""
    stored = chat.database["messages"]
    wanted = stored.count_documents({}) + count
    while (missing := wanted - stored.count_documents({})) > 0:
        try:
            write(server, chat, person, min(missing, 5))
        except httpx.TransportError:
            time.sleep(0.05)


class TestRevocation:
    @pytest.mark.parametrize("how", ["session", "removal"])
    def test_ends_streams_of_the_other_process_at_once(
        self, start: Start, database_url: str, database: Database[Raw], how: str
    ) -> None:
        here, there = (start(DATABASE_URL=database_url, SECRET_KEY=SECRET) for _ in range(2))
        here.ready()
        there.ready()
        chat = Chat(here, database, "ada", "ben")
        ben = chat.people[1]
        follower = Follower(there, chat, ben)
        with follower.connected() as events:
            assert next(events).type == "ready"

            begun = time.monotonic()
            if how == "session":
                assert here.post("/api/v1/auth/logout", token=ben.token).status_code == 204
            else:
                path = f"{chat.path}/participants/{ben.id}"
                assert here.client.delete(path, headers=bearer(chat.people[0].token)).status_code == 200
            rest = [event.type for event in events]
            took = time.monotonic() - begun

        assert rest == ([] if how == "session" else ["participant.removed"])
        assert took < 0.25 + 0.25  # the promise, and what a loaded machine adds


class TestBrokenFeed:
    def test_goes_on_when_an_operator_kills_what_runs(
        self, start: Start, database_url: str, database: Database[Raw], mongodb: MongoClient[Raw]
    ) -> None:
        server = start(DATABASE_URL=database_url).ready()
        chat = Chat(server, database, "ada", "ben")
        follower = Follower(server, chat, chat.people[0])
        with follower.connected() as events:
            assert next(events).type == "ready"
            for number in range(1, 4):
                until(lambda: self.is_killed(mongodb, database.name))
                write(server, chat, chat.people[1], 2)
                assert [next(events).data["seq"] for _ in range(2)] == [2 * number - 1, 2 * number]

        assert "event_feed_interrupted" in server.log.read_text()

    @staticmethod
    def is_killed(mongodb: MongoClient[Raw], name: str) -> bool:
        running = mongodb.admin.aggregate([{"$currentOp": {}}, {"$match": {"op": "getmore"}}])
        reads = [row for row in running if "conversation_events" in str(row.get("cursor")) and name in row["ns"]]
        for row in reads:
            mongodb.admin.command({"killOp": 1, "op": row["opid"]})
        return bool(reads)


class TestSlowClient:
    def test_is_cut_off_and_costs_little(self, start: Start, database_url: str, database: Database[Raw]) -> None:
        server = start(DATABASE_URL=database_url).ready()
        chat = Chat(server, database, "ada", "ben")
        ada, ben = chat.people
        fast = Follower(server, chat, ada)
        with ThreadPoolExecutor(1) as pool, fast.connected() as events:
            assert next(events).type == "ready"
            reading = pool.submit(lambda: [event for event in events if len(fast.seqs()) == 1500][:0])
            slow = [connect_slowly(server, chat, ben) for _ in range(20)]
            before = memory_of(server)
            with httpx.Client(base_url=str(server.client.base_url), timeout=30, headers=bearer(ben.token)) as client:
                for _ in range(400):
                    assert client.post(f"{chat.path}/messages", json={"content": "x" * 32_000}).status_code == 201
            grown = memory_of(server) - before
            until(lambda: server.log.read_text().count('"message":"event_stream_cut_off"') == 20)
            until(lambda: len(connections_of(server)) <= 3, seconds=40)  # the fast one, and idle ones of clients
            assert len(fast.seqs()) == 400
            scraped = parsed(httpx.get(f"{server.client.base_url}/metrics", timeout=30, trust_env=False).text)
            assert scraped.value("octopus_connections_cut_total", reason="slow_reader") == len(slow)
            for connection in slow:
                connection.close()
            server.stop()
            reading.exception(timeout=30)

        assert grown < 60 * 2**20
        assert "Traceback" not in server.log.read_text()


def connect_slowly(server: Server, chat: Chat, person: Person) -> socket.socket:
    """A client that asks for events and takes next to nothing of them."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    request = f"GET {chat.path}/events HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {person.token}\r\n\r\n"
    connection.sendall(request.encode())
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


def memory_of(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def connections_of(server: Server) -> list[str]:
    """What is connected to its port, as the kernel knows it."""
    local = f":{server.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[1].endswith(local) and line.split()[3] == "01"]


class TestStop:
    @pytest.mark.parametrize(("workers", "code"), [("1", -signal.SIGTERM), ("2", 0)])
    def test_ends_open_streams_at_once(
        self, start: Start, database_url: str, database: Database[Raw], workers: str, code: int
    ) -> None:
        server = start(WORKERS=workers, DATABASE_URL=database_url).ready()
        chat = Chat(server, database, "ada")
        followers = [Follower(server, chat, chat.people[0]) for _ in range(10)]
        have_begun = threading.Barrier(len(followers) + 1)

        def follow(follower: Follower) -> None:
            """Until the end of the stream, which is a proper one."""
            with follower.connected() as events:
                for _ in events:
                    have_begun.wait(30)

        with ThreadPoolExecutor(len(followers)) as pool:
            tasks = [pool.submit(follow, follower) for follower in followers]
            have_begun.wait(30)
            begun = time.monotonic()
            assert server.stop() == code
            took = time.monotonic() - begun
            for task in tasks:
                task.result(timeout=10)

        assert took < 5
        assert "Traceback" not in server.log.read_text()

    def test_logs_a_stream_once_at_its_end(self, start: Start, database_url: str, database: Database[Raw]) -> None:
        server = start(DATABASE_URL=database_url).ready()
        chat = Chat(server, database, "ada")
        with Follower(server, chat, chat.people[0]).connected() as events:
            assert next(events).type == "ready"
            begun = time.monotonic()
            write(server, chat, chat.people[0], 1)
            assert next(events).type == "message.created"
            assert "/events" not in server.log.read_text()
            at_least = (time.monotonic() - begun) * 1000

        until(lambda: any("/events" in line for line in server.logged()))
        lines = [json.loads(line) for line in server.logged()]
        [line] = [line for line in lines if line.get("url.path", "").endswith("/events")]
        assert (line["message"], line["http.response.status_code"]) == ("request", 200)
        assert at_least <= line["event.duration"] / 10**6 < 30_000
