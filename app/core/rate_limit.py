"""Counting requests in fixed windows, in the memory of this process.

The syntax of rates and the window arithmetic are those of `limits`, the engine of slowapi. The counting is
here, because its asynchronous memory store walks every key it knows at every hit.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from limits import RateLimitItem, parse, parse_many


class Budget(NamedTuple):
    """What is left of a rate after a hit. `resets_at` is in seconds since the epoch."""

    limit: int
    remaining: int
    resets_at: int
    is_exceeded: bool


class MemoryRateLimiter:
    """One budget for each rate, purpose and key; forgotten as a whole when its window ends."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, str], tuple[float, defaultdict[str, int]]] = {}

    def hit(self, rate: str, purpose: str, key: str) -> Budget:
        """Count one request against `rate`, such as `10/minute`."""
        item, now = _parsed(rate), self._clock()
        ends_at, counts = self._windows.get((rate, purpose), (0.0, None))
        if counts is None or now >= ends_at:
            period = item.get_expiry()
            ends_at, counts = (now // period + 1) * period, defaultdict(int)
            self._windows[rate, purpose] = (ends_at, counts)
        counts[key] += 1
        spent = counts[key]
        return Budget(
            limit=item.amount,
            remaining=max(0, item.amount - spent),
            resets_at=math.ceil(ends_at),
            is_exceeded=spent > item.amount,
        )

    def seconds_until(self, resets_at: int) -> int:
        return max(1, math.ceil(resets_at - self._clock()))


def is_rate(text: str) -> bool:
    """Whether the text is one rate, such as `600/minute` or `10 per 5 seconds`."""
    try:
        rates = parse_many(text)
    except ValueError:
        return False
    return len(rates) == 1 and rates[0].amount > 0 and rates[0].multiples > 0


@cache
def _parsed(rate: str) -> RateLimitItem:
    return parse(rate)
