"""Work that goes on after the answer. It is started here so that it is kept, logged and waited for."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

from app.core.logging_config import get_logger

T = TypeVar("T")

_tasks: set[asyncio.Task[Any]] = set()
_log = get_logger(__name__)


def start(work: Coroutine[None, None, None], *, name: str) -> None:
    """Run the work beside everything else. It must be resumable: the process may end before it does."""
    task = asyncio.get_running_loop().create_task(work, name=name, context=Context())
    _tasks.add(task)
    task.add_done_callback(_finish)


async def to_the_end(work: Coroutine[None, None, T], *, name: str) -> T:
    """The result of work that goes on to its end, also when whoever waits for it is cancelled.

    What goes wrong then is logged.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_finish)  # nobody else will hear of it
        raise


def count() -> int:
    """How much of it is under way."""
    return len(_tasks)


async def drain(timeout: float | None = None) -> None:  # noqa: ASYNC109 - what is late is cancelled, not raised
    """Wait for everything started, and for what that starts; what is late after `timeout` seconds is cancelled."""
    clock = asyncio.get_running_loop().time
    give_up_at = None if timeout is None else clock() + timeout
    while _tasks:
        _, late = await asyncio.wait(_tasks, timeout=None if give_up_at is None else give_up_at - clock())
        if late:
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=1)
            return
        await asyncio.sleep(0)  # lets those that have ended be forgotten


def _finish(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (error := task.exception()):
        _log.error("background_work_failed", work=task.get_name(), exc_info=error)
