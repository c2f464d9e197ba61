"""The network between the service as it is run and its database: cut, deaf, broken in the middle, slow, and healed."""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import httpx
import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.database import Database

from tests.conftest import SECRET
from tests.factories import PASSWORD
from tests.tcp_proxy import TcpProxy, proxied
from tests.test_events_server import Chat, Follower
from tests.test_server import Server, bearer, until

LONGEST: Final = 15.0  # seconds that a request may take
HEALED_WITHIN: Final = 15.0
Raw = dict[str, Any]


class Network(NamedTuple):
    """The service, and what is between it and its database."""

    server: Server
    proxy: TcpProxy
    database: Database[Raw]


@pytest.fixture(scope="module")
def network(mongodb: MongoClient[Raw]) -> Iterator[Network]:
    """The service knows its database by the address of the proxy alone."""
    name = f"network_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    assert mongodb.address is not None
    with TemporaryDirectory(prefix="oct-") as folder, proxied(mongodb.address[1]) as proxy:
        url = f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true"
        server = Server(Path(folder), DATABASE_URL=url, SECRET_KEY=SECRET)
        try:
            yield Network(server.ready(), proxy, mongodb[name])
        finally:
            server.kill()
            mongodb.drop_database(name)


def assert_unavailable(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.elapsed.total_seconds() < LONGEST


class Talk:
    """What Ada says in a conversation, each time under a key."""

    def __init__(self, server: Server, chat: Chat) -> None:
        self.server, self.chat = server, chat
        self.headers = bearer(chat.people[0].token)

    def say(self, content: str, key: str | None = None) -> httpx.Response:
        headers = self.headers | {"Idempotency-Key": key or str(uuid.uuid4())}
        return self.server.client.post(f"{self.chat.path}/messages", json={"content": content}, headers=headers)

    def say_until(self, refused: httpx.Response, *verdicts: tuple[int, str | None]) -> httpx.Response:
        """Repeat it until one of these comes, as a client does that was told to come back."""
        give_up_at = time.monotonic() + HEALED_WITHIN
        while True:
            answer = self.server.client.send(refused.request)
            if (answer.status_code, answer.json().get("code")) in verdicts:
                return answer
            assert answer.status_code in {503, 409}, answer.text
            assert time.monotonic() < give_up_at, answer.text
            time.sleep(0.2)

    def stored(self) -> list[str]:
        return [
            row["content"]
            for row in self.chat.database["messages"].find({"conversation_id": ObjectId(self.chat.id)}).sort("seq")
        ]


Call = Callable[[httpx.Client], httpx.Response]


def calls_of(talk: Talk) -> list[Call]:
    """What a client does all day."""
    path, headers, ada = talk.chat.path, talk.headers, {"email": "ada@example.com", "password": PASSWORD}
    return [
        lambda client: client.get("/api/v1/users/me", headers=headers),
        lambda client: client.get(f"{path}/messages", headers=headers),
        lambda client: client.post("/api/v1/auth/login", json=ada),
        lambda client: client.post("/api/v1/items", json={"title": "Cup"}, headers=headers),
        lambda client: client.patch(path, json={"title": "Tea"}, headers=headers),
    ]


def ask_at_once(talk: Talk) -> list[httpx.Response]:
    """The same, a stream of events, and a write under a key, each as a client of its own."""
    keyed = talk.headers | {"Idempotency-Key": str(uuid.uuid4())}
    calls: list[Call] = [
        *calls_of(talk),
        lambda client: client.get(f"{talk.chat.path}/events", headers=talk.headers),
        lambda client: client.post("/api/v1/items", json={"title": "Cup"}, headers=keyed),
    ]

    def ask(call: Call) -> httpx.Response:
        with httpx.Client(base_url=str(talk.server.client.base_url), timeout=60) as client:
            return call(client)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(ask, calls))


def ask_in_turn(talk: Talk) -> list[httpx.Response]:
    return [call(talk.server.client) for call in calls_of(talk)]


class Listener:
    """Follows a conversation, coming back whenever the stream ends, as a browser does."""

    def __init__(self, server: Server, chat: Chat) -> None:
        self.follower = Follower(server, chat, chat.people[1])
        self.count: int | None = None  # of the messages that end it; to be said before the last of them
        self._has_begun, self._stop = threading.Event(), threading.Event()

    def _follow(self) -> None:
        while not self._is_over():
            try:
                with self.follower.connected() as events:
                    for _ in events:
                        self._has_begun.set()
                        if self._is_over():
                            return
            except (httpx.TransportError, AssertionError):  # it is refused as long as the database is away
                self._stop.wait(0.2)

    def _is_over(self) -> bool:
        return self._stop.is_set() or (self.count is not None and len(self.follower.seqs()) >= self.count)

    @contextmanager
    def following(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            task = pool.submit(self._follow)
            try:
                assert self._has_begun.wait(20)
                yield
                task.result(timeout=30)
            finally:
                self._stop.set()


class TestCut:
    def test_is_said_and_mended_without_a_restart(self, network: Network) -> None:
        server, proxy, database = network
        chat = Chat(server, database, "ada", "ben")
        talk, listener = Talk(server, chat), Listener(server, chat)

        listener.count = 5
        with listener.following():
            for way in (proxy.refuse, proxy.swallow):
                assert talk.say(f"Before {way.__name__}").is_success
                way()
                lost = talk.say(f"During {way.__name__}", way.__name__)
                for answer in (lost, *ask_at_once(talk)):
                    assert_unavailable(answer)
                assert server.get("/health/ready").json()["checks"]["database"] == "unavailable"
                proxy.heal()
                talk.say_until(lost, (201, None))
                until(lambda: server.get("/health/ready").status_code == 200, seconds=HEALED_WITHIN)
                assert [answer.status_code for answer in ask_in_turn(talk)] == [200, 200, 200, 201, 200]
            assert talk.say("The end").is_success

        assert talk.stored() == ["Before refuse", "During refuse", "Before swallow", "During swallow", "The end"]
        assert listener.follower.seqs() == [1, 2, 3, 4, 5]


class TestBrokenConnection:
    def test_doubles_nothing_whose_answer_is_lost(self, network: Network) -> None:
        server, proxy, database = network
        talk = Talk(server, Chat(server, database, "cem"))
        lost_before = proxy.lost
        assert talk.say("One").is_success

        proxy.lose_answer_to(b"commitTransaction")  # the driver asks again what became of it
        assert (talk.say("Two").status_code, proxy.lost - lost_before) == (201, 1)

        for step, fault in (
            (b"start", proxy.refuse_from),
            (b"start", proxy.swallow_from),
            (b"commit", proxy.swallow_from),
        ):
            fault(step + b"Transaction")
            refused = talk.say(f"{step.decode()}, {fault.__name__}")
            assert_unavailable(refused)
            proxy.heal()
            talk.say_until(refused, (201, None))

        proxy.lose_answer_to(b"commitTransaction", and_refuse=True)
        carried_out = talk.say("Carried out")
        assert_unavailable(carried_out)
        assert proxy.lost - lost_before == 2
        proxy.heal()
        talk.say_until(carried_out, (409, "conflict"))

        refusals = ["start, refuse_from", "start, swallow_from", "commit, swallow_from"]
        assert talk.stored() == ["One", "Two", *refusals, "Carried out"]
        assert server.get(talk.chat.path, talk.chat.people[0].token).json()["message_count"] == 6


class TestSlowNetwork:
    def test_is_waited_for_only_so_long(self, network: Network) -> None:
        server, proxy, database = network
        talk = Talk(server, Chat(server, database, "dora"))

        proxy.slow_down(0.05)
        assert talk.say("Slow").is_success
        proxy.slow_down(5)
        refused = talk.say("Too slow")
        assert_unavailable(refused)
        proxy.heal()
        talk.say_until(refused, (201, None))

        assert talk.stored() == ["Slow", "Too slow"]
