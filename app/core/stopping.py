"""That the server was told to stop: from then on it is not ready, and for a while it may go on serving.

A load balancer learns only from its next probe that it must send requests elsewhere.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from app.core.logging_config import get_logger

_log = get_logger(__name__)


class _State:
    is_stopping = False


def is_stopping() -> bool:
    return _State.is_stopping


@contextmanager
def heeded(delay: float) -> Iterator[None]:
    """Let the server that runs this process hear of SIGTERM only after so many seconds.

    Where none does, as in tests and under other servers, signals are left alone.
    """
    _State.is_stopping = False
    stop: Any = signal.getsignal(signal.SIGTERM)
    if not _is_of_server(stop):
        yield
        return
    signal.signal(signal.SIGTERM, _Patient(stop, delay).heed)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, stop)


class _Patient:
    """In the place of the server's own handler. sse-starlette asks whose method is there whether streams must end."""

    def __init__(self, stop: Any, delay: float) -> None:
        self._stop, self._delay = stop, delay
        self._loop = asyncio.get_running_loop()

    @property
    def should_exit(self) -> bool:
        return bool(self._stop.__self__.should_exit)

    def heed(self, number: int, frame: FrameType | None) -> None:
        is_first, _State.is_stopping = not _State.is_stopping, True
        if self._delay <= 0:
            self._stop(number, frame)
        elif is_first:  # else it is told again, as by its parent where a service manager tells all of a group
            self._loop.call_soon_threadsafe(_postpone, self._loop, self._delay, lambda: self._stop(number, frame))


def _postpone(loop: asyncio.AbstractEventLoop, delay: float, stop: Callable[[], object]) -> None:
    _log.info("stopping", seconds=delay)
    loop.call_later(delay, stop)


def _is_of_server(handler: Any) -> bool:
    """Whether it is the method of a server, not the process's own way to end."""
    return callable(handler) and type(getattr(handler, "__self__", None)).__module__.startswith("uvicorn.")
