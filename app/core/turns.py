"""One at a time by key, in the order of asking, within this process.

Not for correctness, which the database sees to. Transactions that change the same document make each other start
again; those of one process rather wait for each other, but not for long: a database that does not answer must not
make a queue of what could be refused at once.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

_LONGEST_WAIT_SECONDS: Final = 0.5


class Turns:
    """Locks by key, kept only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[object, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, key: object) -> AsyncIterator[None]:
        """Go on when it is one's turn, or when half a second has passed without."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        has_turn = await _acquire(lock)
        try:
            yield
        finally:
            if has_turn:
                lock.release()


async def _acquire(lock: asyncio.Lock) -> bool:
    try:
        async with asyncio.timeout(_LONGEST_WAIT_SECONDS):
            return await lock.acquire()
    except TimeoutError:
        return False
