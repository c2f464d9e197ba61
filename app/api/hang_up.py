"""Noticing that the caller is gone while it is still waiting for the beginning of an answer."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")


class HangUpError(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work. It is cut off when the caller hangs up: `HangUpError`.

    Only for requests that have no body: if there is one it is passed over.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_wait_for_end(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        watching.result()  # an error when the body is too large
        raise HangUpError
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait((working, watching))


async def _wait_for_end(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
