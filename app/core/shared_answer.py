"""A question that many ask at once, and that costs something: asked once for all of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """However many ask, the question is put once at a time, and its answer is good for so many seconds."""

    def __init__(self, ask: Callable[[], Awaitable[T]], *, seconds: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._answers: list[T] = []  # one, or none yet
        self._is_good_until = 0.0

    async def get(self) -> T:
        if not self._is_good():
            async with self._turn:
                if not self._is_good():  # or somebody before us has asked
                    self._answers = [await self._ask()]
                    self._is_good_until = time.monotonic() + self._seconds
        return self._answers[0]

    def _is_good(self) -> bool:
        return bool(self._answers) and time.monotonic() < self._is_good_until
