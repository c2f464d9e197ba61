"""A fault of the driver that tests would stumble over: it loses a connection whose opening is cancelled.

The collector closes it later and warns of that in the middle of another test. What stops an application cancels what is
under way, so of thousands that stop some are just then opening a connection.
"""

import asyncio
from contextlib import suppress
from functools import wraps
from typing import Any

from pymongo.asynchronous import pool


def close_what_is_given_up() -> None:
    """Let an opening that is cancelled come to its end, and close what it has opened."""
    opened = pool._configured_protocol_interface  # type: ignore[attr-defined]

    @wraps(opened)
    async def opened_or_closed(*arguments: Any, **options: Any) -> Any:
        opening = asyncio.ensure_future(opened(*arguments, **options))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(Exception):
                await (await opening).close()
            raise

    pool._configured_protocol_interface = opened_or_closed  # type: ignore[attr-defined]
