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
    loop = asyncio.get_running_loop()

    def heed(number: int, frame: FrameType | None) -> None:
        is_first, _State.is_stopping = not _State.is_stopping, True
        if is_first and delay > 0:
            loop.call_soon_threadsafe(_postpone, loop, delay, lambda: stop(number, frame))
        else:
            stop(number, frame)

    signal.signal(signal.SIGTERM, heed)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, stop)


def _postpone(loop: asyncio.AbstractEventLoop, delay: float, stop: Callable[[], object]) -> None:
    _log.info("stopping", seconds=delay)
    loop.call_later(delay, stop)


def _is_of_server(handler: Any) -> bool:
    """Whether it is the method of a server, not the process's own way to end."""
    return callable(handler) and type(getattr(handler, "__self__", None)).__module__.startswith("uvicorn.")
