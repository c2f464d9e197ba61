"""Counting requests in fixed windows, in the memory of this process; `shared_rate_limit.py` counts for many.

The syntax of rates and the window arithmetic are those of `limits`, the engine of slowapi. The counting is
here, because its asynchronous memory store walks every key it knows at every hit.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from limits import RateLimitItem, parse, parse_many

_DAY: Final = 24 * 3600


class Budget(NamedTuple):
    """What is left of a rate after a hit.

    `resets_at` and `counted_at` are in whole seconds since the epoch, by the clock of where it is counted.
    """

    purpose: str
    limit: int
    remaining: int
    resets_at: int
    is_exceeded: bool
    counted_at: int

    @property
    def seconds_left(self) -> int:
        """How long to wait for a fresh one, at least 1."""
        return max(1, self.resets_at - self.counted_at)


def narrowest(budgets: Iterable[Budget]) -> Budget:
    """The one that refused, else that with the least left; of several the one that lasts longest."""
    return min(budgets, key=lambda budget: (not budget.is_exceeded, budget.remaining, -budget.resets_at))


Charge = tuple[str, str, str]
"""One request against a rate, such as `10/minute`: the rate, the purpose, the key of who is charged."""


class RateLimiter(Protocol):
    async def spend(self, *charges: Charge) -> Budget:
        """Count one request against each rate in turn, until one is exceeded. The narrowest of these budgets."""


class MemoryRateLimiter:
    """One budget for each purpose, length of window and key; all of a window are forgotten when it ends.

    The budget stays the same when only the number of the rate changes, so that changing it gives no fresh one.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, int], tuple[float, defaultdict[str, int]]] = {}

    def hit(self, rate: str, purpose: str, key: str) -> Budget:
        """Count one request against `rate`, such as `10/minute`."""
        item, now = parse_rate(rate), self._clock()
        period = item.get_expiry()
        window = self._windows.get((purpose, period))
        # Also when the clock was put back, for the window would last that much longer.
        if window is None or not window[0] - period <= now < window[0]:
            window = self._windows[purpose, period] = ((now // period + 1) * period, defaultdict(int))
        ends_at, counts = window
        counts[key] += 1
        spent = counts[key]
        return Budget(
            purpose=purpose,
            limit=item.amount,
            remaining=max(0, item.amount - spent),
            resets_at=math.ceil(ends_at),
            is_exceeded=spent > item.amount,
            counted_at=math.floor(now),
        )

    async def spend(self, *charges: Charge) -> Budget:
        budgets = []
        for charge in charges:
            budgets.append(budget := self.hit(*charge))
            if budget.is_exceeded:
                break
        return narrowest(budgets)


def is_rate(text: str) -> bool:
    """Whether the text is one rate by the second, minute, hour or day, such as `600/minute`."""
    try:
        rates = parse_many(text)
    except ValueError:
        return False
    return len(rates) == 1 and rates[0].amount > 0 and rates[0].multiples == 1 and rates[0].get_expiry() <= _DAY


def is_at_most(rate: str, other: str) -> bool:
    """Whether a rate allows no more per second than the other."""
    one, two = parse_rate(rate), parse_rate(other)
    return one.amount * two.get_expiry() <= two.amount * one.get_expiry()


@lru_cache(maxsize=1024)
def parse_rate(rate: str) -> RateLimitItem:
    return parse(rate)
