"""Noticing that the caller is gone, or the server told to stop, while the beginning of an answer is waited for."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from fastapi import Request
from sse_starlette import EventSourceResponse

from app.core.exceptions import ProviderUnavailableError

T = TypeVar("T")

# What a server that is told to stop leaves to an answer that has not come to its end.
GRACE_SECONDS: Final = 5.0


class HangUpError(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work. It is cut off when the caller hangs up, by `HangUpError`, or when the server stops.

    Only for requests that have no body: if there is one it is passed over.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_wait_for_hang_up(request))
    stopping = asyncio.create_task(_wait_for_stop())
    tasks = (working, watching, stopping)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if watching.done():
            watching.result()  # an error when the body is too large
            raise HangUpError
        raise ProviderUnavailableError("The service is about to stop. Ask again.", retry_after=1)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _wait_for_hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _wait_for_stop() -> None:
    await EventSourceResponse._listen_for_exit_signal()  # noqa: SLF001 - what ends all streams of events
    await asyncio.sleep(GRACE_SECONDS)
