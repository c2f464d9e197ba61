"""What can be counted in a process: additions to small objects, on the event loop alone, so without a lock.

They are a fifth of the cost of those of prometheus-client, which only writes them out (docs/decisions/0034).
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

Labels = tuple[str, ...]
Rows = dict[Labels, list[float]]

# More are not told apart. No label is a caller's choice, so that is far more than there are.
_MOST_ROWS: Final = 5000


class Meter:
    """Numbers by labels. The rows of several processes are added up."""

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        self.name = name
        self.meaning = meaning
        self.labels = labels
        self.rows: Rows = {}
        self._zero: list[float] = [0.0]

    def fits(self, labels: Sequence[str], row: Sequence[float]) -> bool:
        """Whether another process could have counted this in the same meter."""
        return len(labels) == len(self.labels) and len(row) == len(self._zero)

    def _begin(self, labels: Labels) -> list[float]:
        if len(self.rows) >= _MOST_ROWS:
            labels = ("other",) * len(self.labels)
        return self.rows.setdefault(labels, list(self._zero))


class Counter(Meter):
    """What only grows."""

    def add(self, *labels: str, amount: float = 1) -> None:
        row = self.rows.get(labels) or self._begin(labels)
        row[0] += amount


class Histogram(Meter):
    """How often something took how long. A row has a number for each bucket, the endless one included, and the sum."""

    def __init__(self, name: str, meaning: str, *labels: str, bounds: Sequence[float]) -> None:
        super().__init__(name, meaning, *labels)
        self.bounds = bounds
        self._zero = [0.0] * (len(bounds) + 2)

    def observe(self, seconds: float, *labels: str) -> None:
        row = self.rows.get(labels) or self._begin(labels)
        row[bisect_left(self.bounds, seconds)] += 1
        row[-1] += seconds


class Level(Meter):
    """How much there is of something now. What a process had that has ended counts no more."""

    def __init__(self, name: str, meaning: str) -> None:
        super().__init__(name, meaning)
        self.rows[()] = [0.0]

    def set(self, value: float) -> None:
        self.rows[()][0] = value

    def move(self, by: int) -> None:
        self.rows[()][0] += by


def add_rows(to: Rows, rows: Rows) -> None:
    for labels, row in rows.items():
        known = to.get(labels)
        to[labels] = list(row) if known is None else [one + other for one, other in zip(known, row, strict=True)]
