"""A fault of the driver that tests would stumble over: it loses connections whose opening is cancelled, or right after.

The collector closes them later and warns of that in the middle of another test. What stops an application cancels what
is under way, so of thousands that stop some are just then opening a connection, or wait for a lock behind it.
"""

import asyncio
from contextlib import suppress
from functools import wraps
from typing import Any

from pymongo.asynchronous import pool

_opened: list[Any] = []  # transports


def close_what_is_given_up() -> None:
    """Let an opening that is cancelled come to its end, and close what it has opened. What was opened is remembered."""
    opened = pool._configured_protocol_interface  # type: ignore[attr-defined]

    async def opened_and_remembered(*arguments: Any, **options: Any) -> Any:
        interface = await opened(*arguments, **options)
        _opened.append(interface.conn[0])
        return interface

    @wraps(opened)
    async def opened_or_closed(*arguments: Any, **options: Any) -> Any:
        opening = asyncio.ensure_future(opened_and_remembered(*arguments, **options))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(Exception):
                await (await opening).close()
            raise

    pool._configured_protocol_interface = opened_or_closed  # type: ignore[attr-defined]


def close_what_was_lost() -> None:
    """After a test: close what is open still of loops that are closed, so that nobody could close it any more."""
    still = [transport for transport in _opened if transport._sock is not None]
    _opened[:] = [transport for transport in still if not transport._loop.is_closed()]
    for transport in still:
        if transport._loop.is_closed():
            transport._sock.close()
            transport._sock = None
