"""API keys in the hands of a crowd: the service as it is run, with two workers."""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tests.test_server import Server, Start, sign_up, start, until

__all__ = ["start"]  # the fixture
KEYS = "/api/v1/api-keys"
ME = "/api/v1/auth/me"
CLIENTS = 100
Answer = tuple[int, str | None]


@pytest.fixture
def database(mongodb: MongoClient[dict[str, Any]], database_url: str) -> Database[dict[str, Any]]:
    return mongodb[database_url.rpartition("/")[2].partition("?")[0]]


def make_key(server: Server, token: str, **more: Any) -> dict[str, Any]:
    response = server.post(KEYS, {"name": "ci", "scopes": ["read"], **more}, token)
    assert response.status_code == 201
    made: dict[str, Any] = response.json()
    return made


def verdict(response: httpx.Response) -> Answer:
    return response.status_code, response.json().get("code")


def all_at_once(server: Server, clients: int, ask: Callable[[httpx.Client], list[Answer]]) -> Counter[Answer]:
    """What so many clients are answered that begin at the same moment, each on a connection of its own."""
    all_are_connected = Barrier(clients)

    def run(_: int) -> list[Answer]:
        with httpx.Client(base_url=str(server.client.base_url), timeout=30) as client:
            assert client.get("/health/live").status_code == 200
            all_are_connected.wait(30)
            return ask(client)

    with ThreadPoolExecutor(clients) as pool:
        return Counter(answer for answers in pool.map(run, range(clients)) for answer in answers)


class TestQuota:
    def test_of_100_lets_100_of_400_through(
        self, start: Start, database_url: str, database: Database[dict[str, Any]]
    ) -> None:
        server = start(WORKERS="2", DATABASE_URL=database_url).ready()
        token = sign_up(server)
        made = make_key(server, token, quota={"limit": 100, "period": "month"})
        headers = {"Octopus-API-Key": made["key"]}

        answers = all_at_once(
            server, CLIENTS, lambda client: [verdict(client.get(ME, headers=headers)) for _ in range(4)]
        )

        assert answers == {(200, None): 100, (429, "quota_exceeded"): 300}
        assert [row["used"] for row in database["api_key_quotas"].find()] == [100]
        assert server.get(f"{KEYS}/{made['id']}", token).json()["quota"]["remaining"] == 0


class TestRotation:
    def test_is_won_by_one_of_20(self, start: Start, database_url: str, database: Database[dict[str, Any]]) -> None:
        server = start(WORKERS="2", DATABASE_URL=database_url).ready()
        token = sign_up(server)
        made = make_key(server, token)
        headers = {"Authorization": f"Bearer {token}"}

        answers = all_at_once(
            server,
            20,
            lambda client: [verdict(client.post(f"{KEYS}/{made['id']}/rotate", headers=headers))],
        )

        assert answers == {(200, None): 1, (409, "conflict"): 19}
        assert database["api_keys"].count_documents({}) == 2

    def test_without_grace_ends_the_key_in_all_processes(self, start: Start, database_url: str) -> None:
        server = start(WORKERS="2", DATABASE_URL=database_url, AUTH_CACHE_SECONDS="60").ready()
        token = sign_up(server)
        made = make_key(server, token)
        headers = {"Octopus-API-Key": made["key"]}
        clients = [httpx.Client(base_url=str(server.client.base_url), timeout=30) for _ in range(16)]
        assert {client.get(ME, headers=headers).status_code for client in clients} == {200}

        assert server.post(f"{KEYS}/{made['id']}/rotate", token=token).status_code == 200

        until(lambda: {client.get(ME, headers=headers).status_code for client in clients} == {401}, 3)
        for client in clients:
            client.close()


class TestUsage:
    def test_is_what_was_asked_also_across_a_restart(
        self, start: Start, database_url: str, database: Database[dict[str, Any]]
    ) -> None:
        server = start(WORKERS="2", DATABASE_URL=database_url).ready()
        token = sign_up(server)
        made = make_key(server, token)
        headers = {"Octopus-API-Key": made["key"]}

        def ask(client: httpx.Client) -> list[Answer]:
            refused = client.get(KEYS, headers=headers)
            return [verdict(client.get(ME, headers=headers)), verdict(refused)]

        assert all_at_once(server, 30, ask) == {(200, None): 30, (403, "insufficient_scope"): 30}
        assert server.stop() == 0
        assert totals(database) == (60, 30)

        again = start(WORKERS="2", DATABASE_URL=database_url).ready()
        assert all_at_once(again, 20, ask) == {(200, None): 20, (403, "insufficient_scope"): 20}
        until(lambda: totals(database) == (100, 50), 15)  # within 10 s, while it runs
        shown = again.get(f"{KEYS}/{made['id']}/usage", token).json()
        assert sum(row["requests"] for row in shown) == 100
        key = again.get(f"{KEYS}/{made['id']}", token).json()
        assert (key["last_used_ip"], key["last_used_at"] > key["created_at"]) == ("127.0.0.1", True)
        assert again.stop() == 0
        assert totals(database) == (100, 50)


def totals(database: Database[dict[str, Any]]) -> tuple[int, int]:
    rows = list(database["api_key_usage"].find())
    return sum(row["requests"] for row in rows), sum(row["denied"] for row in rows)


class TestKeyInTheWrongPlace:
    def test_is_not_accepted_and_never_logged(self, start: Start, database_url: str) -> None:
        server = start(DATABASE_URL=database_url, DEBUG="true").ready()
        key = make_key(server, sign_up(server))["key"]
        answers = [
            verdict(server.client.get(f"{ME}?{name}={key}"))
            for name in ("api_key", "key", "octopus-api-key", "Octopus-API-Key", "access_token", "token")
        ]
        answers += [verdict(server.client.get(ME, headers=headers)) for headers in elsewhere(key)]
        server.client.get(f"{KEYS}/{key}")
        server.client.get(f"/{key}", headers={"X-Request-ID": "the-last"})

        assert {status for status, _ in answers} == {401}
        until(lambda: any("the-last" in line for line in server.logged()))
        assert [line for line in server.log.read_text().splitlines() if key[17:] in line] == []
        paths = [json.loads(line).get("url.path") for line in server.logged()]
        assert f"/{key[:17]}…" in paths


def elsewhere(key: str) -> list[dict[str, str]]:
    return [
        {"Authorization": f"Bearer {key}"},
        {"Authorization": key},
        {"Cookie": f"Octopus-API-Key={key}"},
        {"X-API-Key": key},
    ]
