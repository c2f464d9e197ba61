"""One at a time by key, in the order of asking, within this process.

Not for correctness, which the database sees to. Transactions that change the same document make each other start
again; those of one process rather wait for each other.
"""

import asyncio
from weakref import WeakValueDictionary


class Turns:
    """Locks by key, kept only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[object, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: object) -> asyncio.Lock:
        """The lock of a key, for `async with turns.of(key)`."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
