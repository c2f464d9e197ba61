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
        total, pids = _copied(counted), [os.getpid()]
        if not self.is_shared:
            return Sum(total, pids)
        with suppress(OSError), self._alone():  # without the folder there is what is known here
            dead = [name for name in self._names() if self._is_dead(name)]
            _add(total, self._taken_in(dead))
            for name in self._names() - set(dead):
                pids.append(int(name.partition("-")[0]))
                _add(total, self._read(name))
        return Sum(total, pids)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / "readers").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _names(self) -> set[str]:
        """Of the others."""
        return {path.stem for path in self._folder.glob(f"*-*{_LOCK}")} - {self._name}

    def _taken_in(self, dead: Sequence[str]) -> Numbers:
        """What they and those before them had counted. Their files are forgotten, and their levels are nothing."""
        path = self._folder / f"{_DEAD}{_FILE}"
        known = _unpacked(path)
        numbers, taken = self._fitting(known.get("numbers", {})), set(known.get("taken", ()))
        for name in dead:
            if name not in taken:  # or whoever took it in died before it could remove it
                counted = self._read(name)
                _add(numbers, {name: rows for name, rows in counted.items() if name not in self._levels})
        if dead:
            with suppress(OSError):  # the disk is full: their files stay, and are taken in another time
                _write(path, orjson.dumps({"numbers": _lists_of(numbers), "taken": dead}))
                self._forget(dead)
        return numbers

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            for suffix in (_FILE, _LOCK):
                (self._folder / f"{name}{suffix}").unlink(missing_ok=True)

    def _read(self, name: str) -> Numbers:
        return self._fitting(_unpacked(self._folder / f"{name}{_FILE}"))

    def _fitting(self, lists: dict[str, Any]) -> Numbers:
        """Without what can't be added up: another version may have had other labels, or other buckets."""
        return {
            meter.name: {tuple(labels): row for labels, row in lists.get(meter.name, ()) if meter.fits(labels, row)}
            for meter in self._meters
        }

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


def _unpacked(path: Path) -> dict[str, Any]:
    """Nothing when there is no such file yet, or when the end of its host has left it empty."""
    try:
        unpacked: dict[str, Any] = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return unpacked
