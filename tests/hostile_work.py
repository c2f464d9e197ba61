"""Work that goes wrong, or tries what it must not: `python -m tests.hostile_work MEMORY SECONDS WHAT`.

What a library does that a file has got into its hands.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from app.core.file_work import Answer, Fault, UnworkableError, serve


def work(file: BinaryIO, arguments: Sequence[str]) -> Answer:
    return WAYS[arguments[0]](file)


def answer(file: BinaryIO) -> Answer:
    return Answer({"pid": os.getpid()}, [file.read(), b"more"])


def hang(_: BinaryIO) -> Answer:
    time.sleep(600)
    return Answer({})


def spin(_: BinaryIO) -> Answer:
    while True:
        pass


def eat_memory(_: BinaryIO) -> Answer:
    return Answer({}, [bytes(2 * 1024**3)])


def crash(_: BinaryIO) -> Answer:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Answer({})


def leave(_: BinaryIO) -> Answer:
    os._exit(3)


def leave_without_a_word(_: BinaryIO) -> Answer:
    os._exit(0)


def answer_nonsense(_: BinaryIO) -> Answer:
    os.write(_pipe(), b"\0\0\0\5hello")
    os._exit(0)


def answer_without_end(_: BinaryIO) -> Answer:
    while True:
        os.write(_pipe(), bytes(65_536))


def print_much(file: BinaryIO) -> Answer:
    sys.stdout.write("noise" * 100_000)
    sys.stderr.write("noise" * 100_000)
    return answer(file)


def raise_something(_: BinaryIO) -> Answer:
    raise KeyError("/Kids")


def refuse(_: BinaryIO) -> Answer:
    raise UnworkableError(Fault.REFUSED, "No.")


def reach_out(_: BinaryIO) -> Answer:
    """What it has of what it should not have."""
    attempts: dict[str, Callable[[], object]] = {
        "reads": lambda: Path("/etc/passwd").read_text(),
        "writes": lambda: Path("/tmp/written").write_text("here"),  # noqa: S108
        "connects": lambda: socket.create_connection(("127.0.0.1", 9)),
        "listens": socket.socket,
        "sees": os.listdir,
    }
    done = [name for name, attempt in attempts.items() if _succeeds(attempt)]
    kinds = [name for number in range(100) if (name := _kind(number))]
    os.close(2)  # which gives its number back, but no right to it
    done += [f"{name} in its place" for name, attempt in attempts.items() if _succeeds(attempt)]
    return Answer({"done": done, "environment": sorted(os.environ), "open": kinds})


_ENDINGS = (hang, spin, eat_memory, crash, leave, leave_without_a_word, raise_something, refuse)
_ANSWERS = (answer, answer_nonsense, answer_without_end, print_much, reach_out)
WAYS: dict[str, Callable[[BinaryIO], Answer]] = {way.__name__: way for way in (*_ENDINGS, *_ANSWERS)}


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _kind(number: int) -> str | None:
    try:
        mode = os.fstat(number).st_mode >> 12
    except OSError:
        return None
    return {1: "pipe", 2: "device", 8: "file", 12: "socket"}.get(mode, json.dumps(mode))


def _pipe() -> int:
    """The number by which the answer goes out."""
    return max(number for number in range(100) if _kind(number) in {"pipe", "socket"})


if __name__ == "__main__":
    serve(work)
