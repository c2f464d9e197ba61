"""One budget for several servers, and what becomes of it when Redis dies: the service as it is run."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import pytest

from tests.conftest import SECRET, Serve
from tests.factories import make_conversation, make_messages, make_signed_in
from tests.redis_server import RedisServer, redis_server
from tests.test_server import Server, Start, start, until

__all__ = ["redis_server", "start"]  # the fixtures
PASSWORD = "s3cret-of-redis"
Shared = Callable[..., Server]


@pytest.fixture
def shared(start: Start, database_url: str, redis_server: RedisServer) -> Shared:
    """Start a server whose limits are in that Redis."""

    def run(**variables: str) -> Server:
        defaults = {"DATABASE_URL": database_url, "SECRET_KEY": SECRET, "RATE_LIMIT_STORAGE_URL": redis_server.url}
        return start(**{**defaults, **variables})

    return run


def statuses(server: Server, count: int) -> list[int]:
    return [server.get("/").status_code for _ in range(count)]


def events(server: Server) -> list[str]:
    """What the log tells of the store of rates, in order."""
    lines = [json.loads(line) for line in server.logged() if line.startswith("{")]
    return [line["message"] for line in lines if line["message"].startswith("rate_limit_store")]


class PatientServer(Server):
    program = "tests.patient_service"


class TestSeveralServers:
    server_kind = PatientServer

    def test_share_each_budget(self, shared: Shared) -> None:
        here, there = (shared(RATE_LIMIT_ANONYMOUS="7/day") for _ in range(2))
        here.ready()
        there.ready()

        answers = [server.get("/") for _ in range(4) for server in (here, there)]

        assert [answer.status_code for answer in answers] == [200] * 7 + [429]
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == [*"6543210", "0"]
        assert len({answer.headers["x-ratelimit-reset"] for answer in answers}) == 1

    def test_share_it_exactly_however_many_ask_whichever_worker(self, shared: Shared) -> None:
        server = shared(RATE_LIMIT_ANONYMOUS="30/day", WORKERS="2").ready()

        def ask(_: int) -> int:  # each on a connection of its own, so that both workers answer some
            with httpx.Client(base_url=str(server.client.base_url), timeout=30) as client:
                return client.get("/").status_code

        with ThreadPoolExecutor(20) as pool:
            answers = sorted(pool.map(ask, range(100)))

        assert answers == [200] * 30 + [429] * 70


class TestLostRedis:
    def test_in_the_middle_of_a_load_loses_no_request(self, shared: Shared, redis_server: RedisServer) -> None:
        here, there = (shared(RATE_LIMIT_ANONYMOUS="100000/day") for _ in range(2))
        here.ready()
        there.ready()
        is_over = Event()

        def load(server: Server) -> list[tuple[int, int]]:
            seen = []
            with httpx.Client(base_url=str(server.client.base_url), timeout=30) as client:
                while not is_over.is_set():
                    response = client.get("/")
                    seen.append((response.status_code, int(response.headers["x-ratelimit-remaining"])))
            return seen

        with ThreadPoolExecutor(8) as pool:
            loads = [pool.submit(load, server) for server in (here, there) for _ in range(4)]
            try:
                until(lambda: int(here.get("/").headers["x-ratelimit-remaining"]) < 99_900)
                redis_server.kill()
                until(lambda: events(here) == events(there) == ["rate_limit_store_lost"])
                until(lambda: int(here.get("/").headers["x-ratelimit-remaining"]) < 99_900)
                redis_server.start()
                until(lambda: [events(here)[1:], events(there)[1:]] == [["rate_limit_store_back"]] * 2)
                until(lambda: int(here.get("/").headers["x-ratelimit-remaining"]) < 99_900)
            finally:
                is_over.set()
        answers = [answer for each in loads for answer in each.result()]

        assert len(answers) > 300
        assert {status for status, _ in answers} == {200}

    def test_leaves_limits_in_memory_and_shares_them_again(self, shared: Shared, redis_server: RedisServer) -> None:
        here, there = (shared(RATE_LIMIT_ANONYMOUS="3/day") for _ in range(2))
        here.ready()
        there.ready()
        assert [*statuses(here, 2), *statuses(there, 2)] == [200, 200, 200, 429]

        redis_server.kill()

        assert statuses(here, 5) == statuses(there, 5) == [200, 200, 200, 429, 429]
        assert here.get("/health/ready").status_code == 200

        redis_server.start()
        until(lambda: [events(server)[1:] for server in (here, there)] == [["rate_limit_store_back"]] * 2)
        assert [*statuses(here, 2), *statuses(there, 2)] == [200, 200, 200, 429]
        assert events(here) == events(there) == ["rate_limit_store_lost", "rate_limit_store_back"]

    def test_that_hangs_costs_little_and_only_at_first(self, shared: Shared, redis_server: RedisServer) -> None:
        server = shared(RATE_LIMIT_ANONYMOUS="100000/day").ready()
        statuses(server, 3)
        redis_server.freeze()

        waits = []
        for _ in range(40):
            started = time.monotonic()
            assert server.get("/").status_code == 200
            waits.append(time.monotonic() - started)

        assert max(waits) < 0.8
        assert len([wait for wait in waits if wait > 0.09]) < 10
        assert events(server) == ["rate_limit_store_lost"]

    def test_that_is_not_there_keeps_no_server_from_starting(self, shared: Shared, redis_server: RedisServer) -> None:
        redis_server.kill()

        server = shared(RATE_LIMIT_ANONYMOUS="3/day").ready()

        assert statuses(server, 4) == [200, 200, 200, 429]
        assert events(server) == ["rate_limit_store_lost"]
        assert server.stop() == -15


@pytest.mark.parametrize("redis_server", [("--requirepass", PASSWORD)], indirect=True)
class TestPassword:
    @pytest.mark.parametrize("password", [PASSWORD, f"{PASSWORD}-wrong"])
    def test_is_in_no_line_of_the_log(self, shared: Shared, redis_server: RedisServer, password: str) -> None:
        url = redis_server.url.replace("redis://", f"redis://default:{password}@")
        server = shared(RATE_LIMIT_STORAGE_URL=url, RATE_LIMIT_ANONYMOUS="2/day", LOG_LEVEL="DEBUG").ready()

        assert statuses(server, 3) == [200, 200, 429]
        redis_server.kill()
        assert statuses(server, 3)[0] in {200, 429}
        server.stop()

        log = server.log.read_text()
        assert "rate_limit_store_lost" in log
        assert PASSWORD not in log


class TestAnswers:
    """What clients see does not depend on where it is counted."""

    async def test_show_the_budget_also_when_they_are_streamed_or_refused(
        self, serve: Serve, redis_server: RedisServer
    ) -> None:
        limits: dict[str, Any] = {"rate_limit_storage_url": redis_server.url, "rate_limit_authenticated": "50/day"}
        async with serve(**limits, rate_limit_anonymous="1/day", rate_limit_auth="1/day") as client:
            ada = await make_signed_in()
            await make_messages(await make_conversation(ada), 20, by=ada)
            bad = {"Octopus-API-Key": "nonsense"}

            answers = [
                await client.get("/api/v1/users/me/export", headers=ada.headers),
                await client.get("/api/v1/users", headers=ada.headers),
                await client.get("/"),
                await client.get("/nowhere"),
                await client.get("/api/v1/auth/me", headers=bad),
                await client.get("/api/v1/auth/me", headers=bad),
            ]

        assert [answer.status_code for answer in answers] == [200, 403, 200, 429, 401, 429]
        names = ("x-ratelimit-limit", "x-ratelimit-remaining")
        shown = [tuple(answer.headers.get_list(name) for name in names) for answer in answers]
        assert shown == [
            *((["10"], ["9"]), (["50"], ["48"]), (["1"], ["0"]), (["1"], ["0"])),
            *((["1"], ["0"]), (["1"], ["0"])),
        ]
        assert 0 < int(answers[3].headers["retry-after"]) <= 86400
        assert not [name for name in redis_server.names() if "127.0.0.1" in name or str(ada.id) in name]
