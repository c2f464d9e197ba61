"""Limits counted in a real Redis. Rates by the day, so that no window ends while a test runs."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from ssl import SSLContext
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.core import shared_rate_limit
from app.core.rate_limit import Budget, MemoryRateLimiter
from app.core.shared_rate_limit import SharedRateLimiter
from tests.core.test_mailer import certificate, tls
from tests.redis_server import RedisServer, redis_server

__all__ = ["certificate", "redis_server", "tls"]  # the fixtures
DAY = 86400
Open = Callable[..., AbstractAsyncContextManager[SharedRateLimiter]]


@asynccontextmanager
async def opened(url: str, memory: MemoryRateLimiter | None = None) -> AsyncIterator[SharedRateLimiter]:
    limiter = SharedRateLimiter(url, lambda key: hashlib.sha256(b"of the test" + key).digest(), memory)
    await limiter.open()
    try:
        yield limiter
    finally:
        await limiter.close()


@pytest.fixture
async def limiter(redis_server: RedisServer) -> AsyncIterator[SharedRateLimiter]:
    async with opened(redis_server.url) as limiter:
        yield limiter


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy for a moment changes no count, except where waiting is what is tested."""
    if request.cls is not TestHangingRedis:
        monkeypatch.setattr(shared_rate_limit, "_PATIENCE", 5.0)


@pytest.fixture
def quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost Redis is tried again soon."""
    monkeypatch.setattr(shared_rate_limit, "_PAUSE", 0.02)


def lefts(budgets: list[Budget]) -> list[int]:
    return [-1 if budget.is_exceeded else budget.remaining for budget in budgets]


async def spend_times(count: int, limiter: SharedRateLimiter, rate: str = "3/day") -> list[int]:
    """What was left each time, -1 for a refusal."""
    return lefts([await limiter.spend((rate, "login", "192.0.2.1")) for _ in range(count)])


async def until_logged(lines: list[MutableMapping[str, Any]], event: str) -> None:
    async with asyncio.timeout(10):
        while event not in [line["event"] for line in lines]:  # noqa: ASYNC110 - a line of a log is no event
            await asyncio.sleep(0.01)


async def wait_of_one(limiter: SharedRateLimiter) -> float:
    started = time.monotonic()
    await limiter.spend(("3/day", "login", "192.0.2.1"))
    return time.monotonic() - started


@asynccontextmanager
async def tls_before(redis_server: RedisServer, tls: SSLContext) -> AsyncIterator[int]:
    """A port on which TLS is spoken, and passed on to that Redis in clear."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(65536):
            writer.write(part)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_redis = await asyncio.open_connection("127.0.0.1", redis_server.port)
        await asyncio.gather(pass_on(reader, to_redis), pass_on(behind, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


class TestBudget:
    async def test_is_one_for_all_processes(self, redis_server: RedisServer) -> None:
        async with opened(redis_server.url) as here, opened(redis_server.url) as there:
            left = [(await spend_times(1, limiter))[0] for limiter in (here, there, here, there, here)]

        assert left == [2, 1, 0, -1, -1]

    async def test_ends_with_the_day_of_the_clock_in_redis_too(
        self, limiter: SharedRateLimiter, redis_server: RedisServer
    ) -> None:
        before = time.time()
        budget = await limiter.spend(("3/day", "login", "192.0.2.1"))

        ends_at = (int(before) // DAY + 1) * DAY
        assert budget == Budget(
            purpose="login",
            limit=3,
            remaining=2,
            resets_at=ends_at,
            is_exceeded=False,
            counted_at=budget.counted_at,
        )
        assert budget.counted_at - int(before) in {0, 1}
        (key,) = [key for key in redis_server.names() if ":login:" in key]
        left = int(redis_server.ask("PTTL", key)[0].removeprefix(":")) / 1000
        assert abs(time.time() + left - budget.resets_at) < 1

    async def test_is_waited_for_by_the_clock_of_redis_alone(
        self, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.time", lambda: 0.0)  # this host's is wrong by half a century
        async with opened(redis_server.url, MemoryRateLimiter(lambda: 0.0)) as limiter:
            budget = await limiter.spend(("3/hour", "login", "192.0.2.1"))

        (seconds, _) = [line for line in redis_server.ask("TIME") if line[0] not in "*$"]
        assert abs(budget.seconds_left - (3600 - int(seconds) % 3600)) <= 1

    async def test_is_fresh_in_the_next_window(self, limiter: SharedRateLimiter) -> None:
        rate = ("1/second", "login", "192.0.2.1")
        async with asyncio.timeout(10):
            while not (refused := await limiter.spend(rate)).is_exceeded:
                pass
            while (fresh := await limiter.spend(rate)).is_exceeded:
                assert fresh.resets_at == refused.resets_at
                await asyncio.sleep(0.02)

        assert (fresh.remaining, fresh.resets_at) == (0, refused.resets_at + 1)

    async def test_is_not_fresh_when_only_the_number_changes(self, limiter: SharedRateLimiter) -> None:
        await spend_times(3, limiter, "2/day")

        assert await spend_times(2, limiter, "5/day") == [1, 0]

    @pytest.mark.parametrize("other", [("1/day", "login", "b"), ("1/day", "keys", "a"), ("1/hour", "login", "a")])
    async def test_is_one_for_each_window_purpose_and_caller(
        self, limiter: SharedRateLimiter, other: tuple[str, str, str]
    ) -> None:
        both = [await limiter.spend(("1/day", "login", "a")) for _ in range(2)]

        assert lefts([*both, await limiter.spend(other)]) == [0, -1, 0]

    async def test_that_lost_its_end_gets_it_back(self, limiter: SharedRateLimiter, redis_server: RedisServer) -> None:
        await spend_times(1, limiter)
        (key,) = [key for key in redis_server.names() if ":login:" in key]
        redis_server.ask("PERSIST", key)

        await spend_times(1, limiter)

        assert 0 < int(redis_server.ask("TTL", key)[0].removeprefix(":")) <= DAY


class TestSeveralRates:
    async def test_are_spent_in_turn_until_one_is_exceeded(self, limiter: SharedRateLimiter) -> None:
        common, own = ("3/day", "authenticated", "a"), ("1/day", "key's own", "a")

        first, second = await limiter.spend(common, own), await limiter.spend(common, own)
        third, fourth = await limiter.spend(common, own), await limiter.spend(common, own)
        rest = await limiter.spend(("9/day", "key's own", "a"))

        purposes = ["key's own"] * 3 + ["authenticated"]
        assert [budget.purpose for budget in (first, second, third, fourth)] == purposes
        assert [budget.limit for budget in (first, second, third, fourth)] == [1, 1, 1, 3]
        assert lefts([first, second, third, fourth]) == [0, -1, -1, -1]
        assert rest.remaining == 9 - 4  # the fourth request had spent only the common one

    async def test_are_told_of_by_the_narrowest(self, limiter: SharedRateLimiter) -> None:
        common, own = ("3/day", "authenticated", "a"), ("5/day", "key's own", "a")

        budgets = [await limiter.spend(common, own) for _ in range(2)]
        reverse = await limiter.spend(own, common)
        refused = await limiter.spend(own, common)

        assert [(budget.limit, budget.remaining) for budget in (*budgets, reverse)] == [(3, 2), (3, 1), (3, 0)]
        assert (refused.limit, refused.is_exceeded) == (3, True)

    async def test_are_one_question(self, limiter: SharedRateLimiter, redis_server: RedisServer) -> None:
        before = redis_server.scripts_run()

        await limiter.spend(("3/day", "authenticated", "a"), ("1/day", "key's own", "a"))

        assert redis_server.scripts_run() == before + 1


class TestChecksAtOnce:
    async def test_share_a_question_and_are_counted_one_by_one(
        self, limiter: SharedRateLimiter, redis_server: RedisServer
    ) -> None:
        before = redis_server.scripts_run()

        budgets = await asyncio.gather(*(limiter.spend(("100/day", "login", str(n % 2))) for n in range(300)))

        assert sum(budget.is_exceeded for budget in budgets) == 100
        assert sorted(budget.remaining for budget in budgets if not budget.is_exceeded) == sorted([*range(100)] * 2)
        assert redis_server.scripts_run() - before <= 3

    async def test_go_on_when_one_is_given_up(self, limiter: SharedRateLimiter) -> None:
        checks = [asyncio.create_task(limiter.spend(("9/day", "login", "a"))) for _ in range(3)]
        await asyncio.sleep(0)
        checks[1].cancel()

        assert [(await checks[0]).remaining, (await checks[2]).remaining] == [8, 6]


class TestKeys:
    async def test_tell_no_address_and_begin_alike(self, limiter: SharedRateLimiter, redis_server: RedisServer) -> None:
        await spend_times(1, limiter)

        assert len(redis_server.names()) >= 1
        for key in redis_server.names():
            assert key.startswith("octopus:rate:")
            assert "192.0.2.1" not in key


class TestTls:
    @pytest.mark.parametrize(("options", "lost"), [("?ssl_ca_certs={}", []), ("", ["ConnectionError"])])
    async def test_is_spoken_with_a_server_whose_certificate_is_trusted(
        self, redis_server: RedisServer, tls: SSLContext, certificate: Path, options: str, lost: list[str]
    ) -> None:
        async with tls_before(redis_server, tls) as port:
            url = f"rediss://127.0.0.1:{port}/0{options.format(certificate)}"
            with capture_logs() as lines:
                async with opened(url) as limiter:
                    assert await spend_times(4, limiter) == [2, 1, 0, -1]

        assert [line["error"] for line in lines] == lost
        assert bool(redis_server.names()) is (lost == [])


@pytest.mark.usefixtures("quick_search")
class TestLostRedis:
    async def test_leaves_the_budget_of_the_process_and_comes_back(self, redis_server: RedisServer) -> None:
        with capture_logs() as lines:
            async with opened(redis_server.url) as limiter:
                assert await spend_times(2, limiter) == [2, 1]
                redis_server.kill()
                assert await spend_times(5, limiter) == [2, 1, 0, -1, -1]
                redis_server.start()
                await until_logged(lines, "rate_limit_store_back")
                assert await spend_times(4, limiter) == [2, 1, 0, -1]
                assert len(redis_server.names()) >= 1

        assert [(line["log_level"], line["event"]) for line in lines] == [
            ("warning", "rate_limit_store_lost"),
            ("info", "rate_limit_store_back"),
        ]

    async def test_that_was_never_there_comes_too(self, redis_server: RedisServer) -> None:
        redis_server.kill()
        with capture_logs() as lines:
            async with opened(redis_server.url) as limiter:
                assert await spend_times(1, limiter) == [2]
                redis_server.start()
                await until_logged(lines, "rate_limit_store_back")

    async def test_that_was_restarted_between_two_checks_is_not_missed(self, redis_server: RedisServer) -> None:
        with capture_logs() as lines:
            async with opened(redis_server.url) as limiter:
                await spend_times(2, limiter)
                redis_server.kill()
                redis_server.start()

                assert await spend_times(1, limiter) == [2]
        assert lines == []

    @pytest.mark.parametrize("redis_server", [("--requirepass", "s3cret-of-redis")], indirect=True)
    @pytest.mark.parametrize(
        ("password", "lost"), [("s3cret-of-redis", []), ("s3cret-but-wrong", ["AuthenticationError"])]
    )
    async def test_is_one_that_refuses_the_password(
        self, redis_server: RedisServer, password: str, lost: list[str]
    ) -> None:
        url = redis_server.url.replace("redis://", f"redis://:{password}@")
        with capture_logs() as lines:
            async with opened(url) as limiter:
                assert await spend_times(4, limiter) == [2, 1, 0, -1]

        assert [line["error"] for line in lines] == lost
        assert "s3cret" not in str(lines)

    async def test_is_one_that_may_not_be_written(self, limiter: SharedRateLimiter, redis_server: RedisServer) -> None:
        redis_server.ask("CONFIG", "SET", "maxmemory", "1")

        with capture_logs() as lines:
            assert await spend_times(4, limiter) == [2, 1, 0, -1]

        assert [line["event"] for line in lines] == ["rate_limit_store_lost"]

    async def test_has_no_other_line_in_the_log_than_those_of_its_state(self, redis_server: RedisServer) -> None:
        redis_server.kill()
        with capture_logs() as lines:
            async with opened(redis_server.url) as limiter:
                for _ in range(5):
                    await spend_times(20, limiter)
                    await asyncio.sleep(0.05)  # it is tried meanwhile

        assert [line["event"] for line in lines] == ["rate_limit_store_lost"]


@pytest.mark.usefixtures("quick_search")
class TestHangingRedis:
    async def test_is_waited_for_shortly_and_twice(self, redis_server: RedisServer) -> None:
        with capture_logs() as lines:
            async with opened(redis_server.url) as limiter:
                await spend_times(2, limiter)
                redis_server.freeze()
                waits = [await wait_of_one(limiter) for _ in range(50)]
                redis_server.thaw()
                await until_logged(lines, "rate_limit_store_back")
                again = await wait_of_one(limiter)

        assert [wait > 0.09 for wait in waits[:2]] == [True, True]
        assert max(waits[:2]) < 0.5
        assert sorted(waits[2:])[24] < 0.03
        assert again < 0.5
        assert [line["event"] for line in lines] == ["rate_limit_store_lost", "rate_limit_store_back"]

    async def test_holds_up_all_that_ask_at_once_no_longer_than_one(self, redis_server: RedisServer) -> None:
        async with opened(redis_server.url) as limiter:
            redis_server.freeze()
            await asyncio.gather(*(limiter.spend(("1000/day", "login", "a")) for _ in range(1000)))

            assert limiter._failures == 1  # one round trip was waited for, by all

    async def test_is_forgiven_when_it_is_for_a_moment(self, redis_server: RedisServer) -> None:
        with capture_logs() as lines:
            async with opened(redis_server.url) as limiter:
                await spend_times(2, limiter)
                redis_server.freeze()
                await spend_times(1, limiter, "9/day")
                redis_server.thaw()
                left = await spend_times(1, limiter, "9/day")

        assert left[0] in {5, 6}  # it may have counted the one that nobody waited for
        assert lines == []

    async def test_holds_up_no_stop(self, redis_server: RedisServer) -> None:
        async with opened(redis_server.url) as limiter:
            redis_server.freeze()
            check = asyncio.create_task(limiter.spend(("3/day", "login", "a")))
            await asyncio.sleep(0.01)
            started = time.monotonic()
            await limiter.close()

        assert time.monotonic() - started < 1
        assert (await check).remaining == 2
