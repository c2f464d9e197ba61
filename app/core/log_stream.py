"""Where lines of the log go, so that a log that can't be written keeps nobody from being served."""

from contextlib import suppress
from typing import TextIO


class LogStream:
    """A stream whose faults are nobody's: its disk may be full, and its reader gone.

    A line is written in the middle of a request, some once its transaction is committed. What can't be written is lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # the latter of one that was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()
