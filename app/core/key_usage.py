"""What API keys are used for, counted in the memory of this process until it is written in batches.

Counting is an addition to a small object. The number of those is bounded: while the database is too slow to take
them, the oldest are given up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now

MAX_COUNTS: Final = 50_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_TIME: Final = timedelta(0)
_HOUR: Final = timedelta(hours=1)


class KeyHour(NamedTuple):
    key_id: ObjectId
    hour: datetime


@dataclass(slots=True)
class Count:
    """Of one key in one hour. What was refused to the key is no use of it, and leaves its last use as it was."""

    requests: int = 0
    denied: int = 0
    last_used_at: datetime | None = None
    last_used_ip: str | None = None


Counts = Mapping[KeyHour, Count]


class KeyUsage:
    def __init__(self) -> None:
        self._counts: dict[KeyHour, Count] = {}
        self._lost = 0
        self._hour = _EPOCH  # the one that is being counted

    def count(self, key_id: ObjectId, *, ip: str | None, is_denied: bool) -> None:
        now = utc_now()
        if not _NO_TIME <= now - self._hour < _HOUR:
            self._hour = now.replace(minute=0, second=0, microsecond=0)
        count = self._counts.get((key_id, self._hour)) or self._begin(KeyHour(key_id, self._hour))  # type: ignore[call-overload]
        count.requests += 1
        if is_denied:
            count.denied += 1
        else:
            count.last_used_at, count.last_used_ip = now, ip

    def __len__(self) -> int:
        return len(self._counts)

    def take(self, most: int) -> dict[KeyHour, Count]:
        """The oldest counts, which are the taker's from now on."""
        taken = {name: self._counts[name] for name, _ in zip(self._counts, range(most), strict=False)}
        for name in taken:
            del self._counts[name]
        return taken

    def take_lost(self) -> int:
        """How many requests were given up since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def _begin(self, name: KeyHour) -> Count:
        if len(self._counts) >= MAX_COUNTS:
            self._lost += self._counts.pop(next(iter(self._counts))).requests
        self._counts[name] = count = Count()
        return count


gathered: Final = KeyUsage()
