"""Something small that is done again and again for as long as something larger takes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context

from app.core.logging_config import get_logger

_log = get_logger(__name__)


@asynccontextmanager
async def meanwhile(work: Callable[[], Awaitable[object]], *, every_seconds: float) -> AsyncIterator[None]:
    """Beside what is inside, and outside of its transactions. What fails once may go well the next time."""
    keeper = asyncio.get_running_loop().create_task(_repeat(work, every_seconds), context=Context())
    try:
        yield
    finally:
        keeper.cancel()


async def _repeat(work: Callable[[], Awaitable[object]], every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the database is away: perhaps not for long
            _log.warning("not_done_meanwhile", error=type(error).__name__)
