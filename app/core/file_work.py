"""What happens inside a process that works on one foreign file: it fences itself in, works, answers and ends.

The file is its standard input and the answer its standard output; there is nothing else that it could reach. See
`services/file_worker.py` for the other side and docs/decisions/0028 for the reasons.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

if sys.platform != "win32":
    import resource

_LENGTH_BYTES: Final = 4
_SPARE_SECONDS: Final = 10  # by which it ends by itself when nobody is left to end it
_OPEN_FILES: Final = 3
_HIGHEST_FILE: Final = 65_536


class Fault(StrEnum):
    """Why there is no result."""

    REFUSED = "refused"  # the file asks for more than it may
    DAMAGED = "damaged"
    TOO_LONG = "too_long"
    TOO_LARGE = "too_large"  # for the memory
    DIED = "died"
    BUSY = "busy"  # says nothing about the file: try again
    CLOSED = "closed"  # likewise


class UnworkableError(Exception):
    """The work can't be done; `str()` is a sentence for whoever sent the file."""

    def __init__(self, fault: Fault, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = fault


class Answer(NamedTuple):
    """What came out: small facts, and parts that are bytes."""

    facts: dict[str, Any]
    parts: Sequence[bytes] = ()

    def encode(self) -> bytes:
        facts = json.dumps({**self.facts, "parts": [len(part) for part in self.parts]}).encode()
        return b"".join((len(facts).to_bytes(_LENGTH_BYTES, "big"), facts, *self.parts))

    @classmethod
    def decode(cls, raw: bytes) -> "Answer":
        """`ValueError` when it is none: whoever wrote it may be in the hands of the file."""
        start = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES], "big")
        facts = json.loads(raw[_LENGTH_BYTES:start])
        lengths = facts.pop("parts", None) if isinstance(facts, dict) else None
        if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
            raise ValueError("no answer")
        if start + sum(lengths) != len(raw):
            raise ValueError("an answer that is cut off, or more than one")
        ends = [start + sum(lengths[: number + 1]) for number in range(len(lengths))]
        return cls(facts, [raw[end - length : end] for end, length in zip(ends, lengths, strict=True)])


Work = Callable[[BinaryIO, Sequence[str]], Answer]


def serve(work: Work) -> NoReturn:
    """Work on the standard input as the arguments say: `MEMORY_BYTES SECONDS ARGUMENT...`. The process ends with it."""
    memory_bytes, seconds, *arguments = sys.argv[1:]
    os.closerange(_OPEN_FILES, _HIGHEST_FILE)  # uvloop lends the three of them twice
    answer_to = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    fence(memory_bytes=int(memory_bytes), seconds=int(seconds))
    answer = attempt(work, os.fdopen(0, "rb", closefd=False), arguments).encode()
    while answer:
        answer = answer[os.write(answer_to, answer) :]
    os._exit(0)


def attempt(work: Work, file: BinaryIO, arguments: Sequence[str]) -> Answer:
    """What the work answers, or why it does not."""
    try:
        return work(file, arguments)
    except UnworkableError as error:
        return Answer({"fault": error.fault, "sentence": str(error)})
    except MemoryError:
        pass
    except Exception as error:  # noqa: BLE001 - a library may raise anything on what it was not written for
        return Answer({"fault": Fault.DAMAGED, "reason": type(error).__name__})
    return Answer({"fault": Fault.TOO_LARGE})  # here the memory is free again


def fence(*, memory_bytes: int, seconds: int) -> None:
    """Give up, for good, what the work does not need.

    No file can be opened any more, and no connection either; not even in the place of one that is closed.
    """
    if sys.platform != "win32":
        signal.alarm(seconds + _SPARE_SECONDS)
        limits = {
            resource.RLIMIT_AS: memory_bytes,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_NOFILE: 0,
        }
        for limit, most in limits.items():
            resource.setrlimit(limit, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # the first one says which it was
