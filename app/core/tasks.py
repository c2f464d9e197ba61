"""How the tasks of this process end: when they are cancelled, and with a last try to write what is only in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

LAST_SECONDS: Final = 4.0  # in which a process that ends may still write what it has counted
_PAUSE: Final = 0.1


def is_cancelled() -> bool:
    """Whether this task was cancelled. The driver may swallow the cancellation itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def end_if_cancelled() -> None:
    """The driver swallows a cancellation, or makes it an error of its own, at some moments. The task remembers it."""
    if is_cancelled():
        raise asyncio.CancelledError


async def try_to_the_last(work: Callable[[], Awaitable[bool]]) -> bool:
    """Try until it says that it went well. False when that was not before the process must end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_SECONDS) as limit:
            while not limit.expired():  # the driver may swallow the cancellation by which the time-out ends this
                if await work():
                    return True
                await asyncio.sleep(_PAUSE)
    return False
