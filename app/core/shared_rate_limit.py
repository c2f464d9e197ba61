"""Counting requests in Redis, for all processes and hosts together.

The windows go by the clock of Redis, so that hosts whose clocks differ agree. The checks that come while one round
trip is under way share the next one: a process has one connection, and a busy one asks less often.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

from app.core.logging_config import get_logger
from app.core.rate_limit import Budget, Charge, MemoryRateLimiter, narrowest, parse_rate

if TYPE_CHECKING:
    from redis.asyncio import Redis

_PATIENCE: Final = 0.1  # seconds for a round trip; a check waits for its own and at most for one before it
_CONNECTING: Final = 2.0  # seconds for connecting at the start and in the background, where no request waits
_PAUSE: Final = 2.0  # seconds in memory before Redis is tried again
_FORGIVEN: Final = 1  # failures in succession: this process was held up, or an idle connection has ended
_BATCH: Final = 200  # requests in a round trip: Redis does nothing else meanwhile
_PREFIX: Final = "octopus:rate"
_DATABASE: Final = re.compile(r"(/\d{0,4})?")
_PROBE: Final[Charge] = ("1/second", "probe", "")

# For each key its limit, its length of window in seconds, and 1 where it begins a request. What a request is charged
# after an exceeded rate is not counted (-1). A key ends a millisecond early: Redis keeps it through its last one.
_SPEND: Final = """
local now = tonumber(redis.call('TIME')[1])
local answer, refused = {now}, false
for at, key in ipairs(KEYS) do
  local limit, period = tonumber(ARGV[3 * at - 2]), tonumber(ARGV[3 * at - 1])
  refused = refused and ARGV[3 * at] == '0'
  local spent = -1
  if not refused then
    spent = redis.call('INCR', key)
    if spent == 1 or redis.call('TTL', key) < 0 then
      redis.call('PEXPIREAT', key, (now - now % period + period) * 1000 - 1)
    end
    refused = spent > limit
  end
  answer[at + 1] = spent
end
return answer
"""

_log = get_logger(__name__)


class SharedRateLimiter:
    """Budgets in Redis. While it can't be reached they are those of this process, and no request waits for it.

    `digest` makes of a key what may be written down elsewhere: it may be an address.
    """

    def __init__(self, url: str, digest: Callable[[bytes], bytes], memory: MemoryRateLimiter | None = None) -> None:
        self._redis = _client(url)
        self._script = self._redis.register_script(_SPEND)
        self._digest = digest
        self._memory = memory or MemoryRateLimiter()
        self._waiting: list[tuple[Sequence[Charge], asyncio.Future[Budget | None]]] = []
        self._courier: asyncio.Task[None] | None = None
        self._search: asyncio.Task[None] | None = None
        self._is_lost = False
        self._failures = 0

    async def open(self) -> None:
        """Connect, so that no request has to; go on without it when that fails."""
        try:
            await self._try()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, requests go on
            self._lose(error)

    async def close(self) -> None:
        self._is_lost = True
        tasks = [task for task in (self._courier, self._search) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        with suppress(Exception):  # a server that hangs hears no farewell
            async with asyncio.timeout(_PATIENCE):
                await self._redis.aclose()

    async def spend(self, *charges: Charge) -> Budget:
        budget = None if self._is_lost else await self._hand_over(charges)
        return await self._memory.spend(*charges) if budget is None else budget

    def _hand_over(self, charges: Sequence[Charge]) -> asyncio.Future[Budget | None]:
        """Have it carried to Redis. None is what comes back when Redis is lost."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Budget | None] = loop.create_future()
        self._waiting.append((charges, answer))
        if self._courier is None or self._courier.done():
            self._courier = loop.create_task(self._carry(), name="rate_limits", context=Context())
        return answer

    async def _carry(self) -> None:
        """Make round trips while there is something to carry."""
        batch: list[tuple[Sequence[Charge], asyncio.Future[Budget | None]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                async with asyncio.timeout(_PATIENCE):
                    budgets = await self._ask([charges for charges, _ in batch])
                self._failures = 0
                for (_, answer), budget in zip(batch, budgets, strict=True):
                    if not answer.done():  # its client has gone
                        answer.set_result(budget)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, requests go on
            self._failures += 1
            if self._failures > _FORGIVEN:
                self._lose(error)
        finally:
            left, self._waiting = [*batch, *self._waiting], []
            for _, answer in left:
                if not answer.done():
                    answer.set_result(None)

    async def _ask(self, requests: Sequence[Sequence[Charge]]) -> list[Budget]:
        """One round trip for all of these requests."""
        keys: list[str] = []
        arguments: list[int] = []
        for charges in requests:
            for at, (rate, purpose, key) in enumerate(charges):
                item = parse_rate(rate)
                keys.append(self._key(purpose, item.get_expiry(), key))
                arguments += (item.amount, item.get_expiry(), int(at == 0))
        now, *spent = await self._script(keys, arguments)
        counts = iter(spent)
        return [_narrowest(charges, counts, now) for charges in requests]

    def _key(self, purpose: str, period: int, key: str) -> str:
        return f"{_PREFIX}:{purpose}:{period}:{self._digest(key.encode()).hex()[:32]}"

    def _lose(self, error: Exception) -> None:
        self._is_lost = True
        _log.warning("rate_limit_store_lost", error=type(error).__name__, hint="each process counts in its memory")
        self._search = asyncio.get_running_loop().create_task(self._find(), name="rate_limit_store", context=Context())

    async def _find(self) -> None:
        """Try Redis until it answers as quickly as a request needs it to."""
        while self._is_lost:
            await asyncio.sleep(_PAUSE)
            try:
                await self._try()
            except Exception:  # noqa: BLE001, S112 - that it is lost is in the log already
                continue
            self._is_lost, self._failures = False, 0
            _log.info("rate_limit_store_back")

    async def _try(self) -> None:
        for patience in (_CONNECTING, _PATIENCE):
            async with asyncio.timeout(patience):
                await self._ask([[_PROBE]])


def _require_store(url: SecretStr) -> SecretStr:
    """Refuse where limits can't be counted. The refusal does not repeat the URL, which may hold a password."""
    text = url.get_secret_value()
    if text != "memory://" and not _is_redis(text):
        raise ValueError("must be memory://, or redis:// or rediss:// with a host")
    return url


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _client(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - a port or an option that is none, said in many ways
        return False
    return parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and _DATABASE.fullmatch(parts.path) is not None


StoreUrl = Annotated[SecretStr, AfterValidator(_require_store)]


def _client(url: str) -> "Redis":
    """It waits for nothing by itself, and tries nothing twice: who asks says how long.

    Loaded here, for it takes a quarter of a second at the start, also of those who count in memory.
    """
    client: Redis = import_module("redis.asyncio").Redis.from_url(
        url, protocol=2, socket_timeout=None, socket_connect_timeout=None, driver_info=None
    )
    return client


async def ping(url: str) -> None:
    """Ask a store for a sign of life, by a connection of its own."""
    client = _client(url)
    try:
        await client.ping()
    finally:
        await client.aclose()


def _narrowest(charges: Sequence[Charge], counts: Iterator[int], now: int) -> Budget:
    """The narrowest budget of those that a request has spent."""
    spent = zip(charges, islice(counts, len(charges)), strict=True)
    return narrowest(_budget(charge, count, now) for charge, count in spent if count >= 0)


def _budget(charge: Charge, count: int, now: int) -> Budget:
    rate, purpose, _ = charge
    item = parse_rate(rate)
    return Budget(
        purpose=purpose,
        limit=item.amount,
        remaining=max(0, item.amount - count),
        resets_at=(now // item.get_expiry() + 1) * item.get_expiry(),
        is_exceeded=count > item.amount,
        counted_at=now,
    )
