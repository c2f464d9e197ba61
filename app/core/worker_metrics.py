"""What all workers have counted, whichever of them is asked.

Each worker writes what it has counted into a file, every second and as a whole, and holds a lock as long as it lives.
Who is asked adds up the files of the others. What a dead worker had counted is kept in one file for all who died: a
count that shrinks would look like a fresh one.
"""

import fcntl
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import orjson

from app.core.meters import Level, Meter, Rows, add_rows

Numbers = dict[str, Rows]

_FILE: Final = ".json"
_LOCK: Final = ".lock"
_DEAD: Final = "dead"


class Sum(NamedTuple):
    """What all have counted, and the processes of those who live."""

    numbers: Numbers
    pids: list[int]


class WorkerMetrics:
    """The counts of this process; with a folder those of all that share it. Files are for `asyncio.to_thread`."""

    def __init__(self, meters: Sequence[Meter], folder: Path | None) -> None:
        self.is_shared = folder is not None
        self._meters = meters
        self._levels = {meter.name for meter in meters if isinstance(meter, Level)}
        self._folder = folder or Path()
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._lock: IO[bytes] | None = None
        self._turn = threading.Lock()  # the last words may come while those before them are being written

    def counted(self) -> Numbers:
        """A copy of the counts of this process."""
        return {meter.name: {labels: list(row) for labels, row in meter.rows.items()} for meter in self._meters}

    def publish(self, counted: Numbers) -> None:
        """Let the others see this. The first time is the beginning of a worker's life."""
        if self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._alone():  # or it would look dead before it has its lock
                self._lock = (self._folder / f"{self._name}{_LOCK}").open("wb")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        with self._turn:
            _write(self._folder / f"{self._name}{_FILE}", _packed(counted))

    def close(self, counted: Numbers) -> None:
        """Publish the last counts, and die."""
        try:
            self.publish(counted)
        finally:
            if self._lock is not None:
                self._lock.close()

    def sum(self, counted: Numbers) -> Sum:
        """These counts, and what the others have published."""
        if not self.is_shared:
            return Sum(counted, [os.getpid()])
        total, pids = _copied(counted), [os.getpid()]
        with self._alone():
            dead = self._take_in_the_dead()
            for name in self._names():
                pids.append(int(name.partition("-")[0]))
                _add(total, _read(self._folder / f"{name}{_FILE}"))
        _add(total, dead)
        return Sum(total, pids)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / "readers").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _names(self) -> Iterable[str]:
        """Of the others."""
        names = sorted(path.stem for path in self._folder.glob(f"*-*{_LOCK}"))
        return [name for name in names if name != self._name]

    def _take_in_the_dead(self) -> Numbers:
        """Add what they had counted to what those before them had, and forget the files. Their levels are nothing."""
        path = self._folder / f"{_DEAD}{_FILE}"
        known = _unpacked(path)
        total, taken = known.get("numbers", {}), set(known.get("taken", ()))
        numbers = _rows_of(total)
        dead = [name for name in self._names() if self._is_dead(name)]
        for name in dead:
            if name not in taken:  # or whoever took it in died before it could remove it
                counted = _read(self._folder / f"{name}{_FILE}")
                _add(numbers, {name: rows for name, rows in counted.items() if name not in self._levels})
        if dead:
            _write(path, orjson.dumps({"numbers": _lists_of(numbers), "taken": dead}))
        for name in dead:
            for suffix in (_FILE, _LOCK):
                (self._folder / f"{name}{suffix}").unlink(missing_ok=True)
        return numbers

    def _is_dead(self, name: str) -> bool:
        with suppress(OSError), (self._folder / f"{name}{_LOCK}").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False


def _copied(numbers: Numbers) -> Numbers:
    return {name: dict(rows) for name, rows in numbers.items()}


def _add(total: Numbers, numbers: Numbers) -> None:
    for name, rows in numbers.items():
        add_rows(total.setdefault(name, {}), rows)


def _write(path: Path, content: bytes) -> None:
    """As a whole: who reads meanwhile reads what was there before."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def _packed(numbers: Numbers) -> bytes:
    return orjson.dumps(_lists_of(numbers))


def _lists_of(numbers: Numbers) -> dict[str, Any]:
    return {name: list(rows.items()) for name, rows in numbers.items()}


def _rows_of(lists: dict[str, Any]) -> Numbers:
    return {name: {tuple(labels): row for labels, row in rows} for name, rows in lists.items()}


def _read(path: Path) -> Numbers:
    return _rows_of(_unpacked(path))


def _unpacked(path: Path) -> dict[str, Any]:
    """Nothing when there is no such file yet."""
    try:
        unpacked: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return unpacked
