"""Something small that is done again and again for as long as something larger takes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Final

from app.core.logging_config import get_logger
from app.core.tasks import end_if_cancelled

_PROLONGATIONS: Final = 5  # tries to prolong a lease before it runs out
_log = get_logger(__name__)


@asynccontextmanager
async def meanwhile(work: Callable[[], Awaitable[object]], *, every_seconds: float) -> AsyncIterator[None]:
    """Beside what is inside, and outside of its transactions. What fails once may go well the next time."""
    keeper = asyncio.get_running_loop().create_task(_repeat(work, every_seconds), context=Context())
    try:
        yield
    finally:
        keeper.cancel()


async def prolong_until_lost(prolong: Callable[[], Awaitable[bool]], *, seconds: float, asked_at: float) -> None:
    """Prolong a lease of so many seconds while it can be; it is over when this ends, and somebody else may have it.

    `prolong` is false when somebody has. A lease begins when it was asked for, as far as its holder goes: the database
    may have given it at once, and the answer may have been long on its way.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(asked_at + seconds - time.monotonic()) as end:
            while True:
                await asyncio.sleep(seconds / _PROLONGATIONS)
                asked_at = asyncio.get_running_loop().time()
                try:
                    if not await prolong():
                        return
                    end.reschedule(asked_at + seconds)
                except Exception:  # noqa: BLE001 - the database is away: perhaps not for long
                    end_if_cancelled()


async def _repeat(work: Callable[[], Awaitable[object]], every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the database is away: perhaps not for long
            _log.warning("not_done_meanwhile", error=type(error).__name__)
