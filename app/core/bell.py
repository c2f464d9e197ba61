"""Something that happens here and is waited for there, in the same process."""

import asyncio
from contextlib import suppress


class Bell:
    """Rung by many, heard by one task at a time. Rings that nobody has waited for yet are heard as one."""

    def __init__(self) -> None:
        self._rung: asyncio.Event | None = None

    def ring(self) -> None:
        if self._rung is not None:
            self._rung.set()

    def listen(self) -> None:
        """From now on rings are kept for the task that calls this. An event belongs to one loop, hence not before."""
        self._rung = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Until it is rung, or has been since the last wait; at most that long."""
        if self._rung is None:
            raise RuntimeError("Nobody listens to this bell.")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._rung.wait(), seconds)
        self._rung.clear()
