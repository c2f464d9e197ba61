"""The primary of three database servers is killed again and again, while clients of the service as it is run write."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from threading import Event
from typing import Any, Final, NamedTuple

import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tests.conftest import SECRET
from tests.factories import PASSWORD
from tests.replica_set import ReplicaSet, replica_set
from tests.test_events_server import Chat
from tests.test_network_server import Listener
from tests.test_server import Server, Start, bearer, start

__all__ = ["start"]  # the fixture
SECONDS: Final = 60.0
EVERY: Final = 5.0  # the primary is killed
FEWEST: Final = 4  # kills, on the busiest machine
PAUSE: Final = 0.05  # of each client before each request
ENOUGH: Final = 20
LONGEST: Final = 15.0  # seconds that a request may take
WRITERS: Final = 3
Raw = dict[str, Any]


@pytest.fixture
def members() -> Iterator[ReplicaSet]:
    with replica_set() as made:
        yield made


class Service(NamedTuple):
    """The service, and what its clients need to write there."""

    url: str
    chat: str
    token: str
    key: str


def open_service(server: Server, chat: Chat) -> Service:
    key = server.post("/bootstrap").json()["api_key"]
    return Service(str(server.client.base_url), chat.path, chat.people[0].token, key)


class Client:
    """One that sends what is not acknowledged again under the same key, until it knows what became of it."""

    def __init__(self, service: Service, number: int, stop: Event) -> None:
        self.service, self.number, self.stop = service, number, stop
        self.http = httpx.Client(base_url=service.url, timeout=60)
        self.longest = 0.0
        self.sent: Counter[str] = Counter()  # by kind
        self.acknowledged: dict[str, Raw] = {}
        self.refused = 0
        self.faults: list[str] = []

    def work(self) -> "Client":
        while not self.stop.is_set():
            self.say()
            self.read_back()
            self.make_key()
            self.say()
            self.register()
        return self

    def names(self, kind: str) -> set[str]:
        return {f"{kind}-{self.number}-{count + 1}" for count in range(self.sent[kind])}

    def say(self) -> None:
        name = self._name("message")
        self._send_until_known(name, f"{self.service.chat}/messages", {"content": name}, bearer(self.service.token))

    def make_key(self) -> None:
        name = self._name("key")
        body = {"name": name, "scopes": ["read"]}
        self._send_until_known(name, "/api/v1/api-keys", body, {"Octopus-API-Key": self.service.key})

    def register(self) -> None:
        name = self._name("user")
        body = {"email": f"{name}@example.com", "password": PASSWORD}
        self._send_until_known(name, "/api/v1/users", body, {"Octopus-API-Key": self.service.key})

    def read_back(self) -> None:
        """What was acknowledged to it last is there, unless there is no answer."""
        name = f"message-{self.number}-{self.sent['message']}"
        answer = self._send("GET", f"{self.service.chat}?limit=200", headers=bearer(self.service.token))
        if answer.status_code == HTTPStatus.OK and name in self.acknowledged:
            mine = self.acknowledged[name]
            rows = {row["id"]: row for row in answer.json()["messages"]}
            is_newer = max(rows.values(), key=seq_of)["seq"] >= mine["seq"]
            if not is_newer or rows.get(mine["id"], mine) != mine:
                self.faults.append(f"{name} was not read")

    def _send_until_known(self, name: str, path: str, body: Raw, headers: dict[str, str]) -> None:
        key = {"Idempotency-Key": name}
        is_first = True
        while True:
            answer = self._send("POST", path, json=body, headers=headers | key)
            if answer.status_code == HTTPStatus.CREATED:
                self.acknowledged[name] = answer.json()
                return
            code = answer.json().get("code")
            if code == "conflict" and not is_first:  # it was carried out, and the answer is lost
                return
            if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE and (is_first or code != "idempotency_in_progress"):
                self.faults.append(f"{name}: {answer.text}")
                return
            is_first = False
            time.sleep(0.5)  # sooner than it was told to: that must do no harm

    def _send(self, method: str, path: str, **what: Any) -> httpx.Response:
        time.sleep(PAUSE)
        answer = self.http.request(method, path, **what)
        self.longest = max(self.longest, answer.elapsed.total_seconds())
        if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            self.refused += 1
            is_told = answer.headers["content-type"] == "application/problem+json"
            is_told = is_told and answer.json()["code"] == "database_unavailable"
            if not is_told or int(answer.headers.get("retry-after", "0")) <= 0:
                self.faults.append(f"{method} {path}: {answer.headers} {answer.text}")
        elif method == "GET" and answer.status_code != HTTPStatus.OK:
            self.faults.append(f"{method} {path}: {answer.text}")
        return answer

    def _name(self, kind: str) -> str:
        self.sent[kind] += 1
        return f"{kind}-{self.number}-{self.sent[kind]}"


def seq_of(row: Raw) -> int:
    return int(row["seq"])


def work_while(service: Service, disturb: Callable[[], int]) -> list[Client]:
    stop = Event()
    clients = [Client(service, number, stop) for number in range(WRITERS)]
    with ThreadPoolExecutor(WRITERS) as pool:
        working = [pool.submit(client.work) for client in clients]
        try:
            assert disturb() >= FEWEST
        finally:
            stop.set()
        return [each.result() for each in working]


def kill_again_and_again(members: ReplicaSet) -> int:
    """For a minute: how often. Who is killed comes back at once, as a service manager sees to it.

    Then one hands over in good order, and one hangs for a while and wakes up believing that it is still the primary.
    """
    begun, kills = time.monotonic(), 0
    while (elapsed := time.monotonic() - begun) < SECONDS - EVERY:
        primary = members.primary()
        primary.kill()
        primary.start()
        kills += 1
        time.sleep(max(0.0, EVERY - (time.monotonic() - begun - elapsed)))
    members.step_down()
    time.sleep(1)
    primary = members.primary()
    primary.freeze()
    time.sleep(EVERY)
    primary.thaw()
    return kills


class TestPrimaryThatIsKilled:
    def test_loses_and_doubles_nothing(self, start: Start, members: ReplicaSet) -> None:
        server = start("--workers", "2", DATABASE_URL=members.url("octopus"), SECRET_KEY=SECRET).ready()
        with MongoClient[Raw](members.url("octopus")) as mongo:
            database = mongo["octopus"]
            chat = Chat(server, database, "ada", "ben")
            service, listener = open_service(server, chat), Listener(server, chat)

            with listener.following():
                clients = work_while(service, lambda: kill_again_and_again(members))
                members.primary()
                listener.count = count_of(clients, "message") + 1
                clients[0].say()

            assert listener.follower.seqs() == list(range(1, listener.count + 1))
            check_messages(database, clients)
            check_others(database, clients)
            assert server.get(service.chat, service.token).json()["message_count"] == count_of(clients, "message")
        for client in clients:
            client.http.close()
        assert [fault for client in clients for fault in client.faults] == []
        assert max(client.longest for client in clients) < LONGEST
        assert "unexpected_error" not in server.log.read_text()
        assert all(len(client.acknowledged) > ENOUGH for client in clients)  # it went on all the while


def count_of(clients: list[Client], kind: str) -> int:
    return sum(client.sent[kind] for client in clients)


def check_messages(database: Database[Raw], clients: list[Client]) -> None:
    """All that were sent are there, once, as they were acknowledged, and the counters are theirs."""
    rows = list(database["messages"].find().sort("seq"))
    assert Counter(row["content"] for row in rows) == {
        name: 1 for client in clients for name in client.names("message")
    }
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    stored = {row["content"]: (str(row["_id"]), row["seq"]) for row in rows}
    told = {
        name: (row["id"], row["seq"])
        for client in clients
        for name, row in client.acknowledged.items()
        if name.startswith("message")
    }
    assert told.items() <= stored.items()
    [conversation] = database["conversations"].find()
    assert (conversation["message_count"], conversation["last_seq"]) == (len(rows), len(rows))
    assert sum(row.get("messages", 0) for row in database["usage_counters"].find()) == len(rows)


def check_others(database: Database[Raw], clients: list[Client]) -> None:
    """The same of keys and users, each with one event of the audit trail; Ada and Ben were there before."""
    keys = Counter(row["name"] for row in database["api_keys"].find({"name": {"$regex": "^key-"}}))
    assert keys == {name: 1 for client in clients for name in client.names("key")}
    users = Counter(row["email"] for row in database["users"].find({"email": {"$regex": "^user-"}}))
    assert users == {f"{name}@example.com": 1 for client in clients for name in client.names("user")}
    for action, kind, more in (("api_key:created", "key", 0), ("user:created", "user", 2)):
        events = database["audit_events"].count_documents({"action": action, "outcome": "success"})
        assert events == count_of(clients, kind) + more
