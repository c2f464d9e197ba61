"""Streams of bytes, cut to a size and worked on with as much memory as a few blocks need."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def blocks_of(chunks: AsyncIterable[bytes], size: int) -> AsyncGenerator[bytearray, None]:
    """The same bytes in blocks of that size; the last may be smaller, and of no bytes there is none."""
    block = bytearray()
    async for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            taken = rest[: size - len(block)]
            block += taken
            rest = rest[len(taken) :]
            if len(block) == size:
                yield block
                block = bytearray()
    if block:
        yield block


async def work_on(items: AsyncIterable[T], work: Callable[[T], Awaitable[Any]], *, at_once: int) -> None:
    """Work on each item while the next ones come, on so many at once. The first failure ends all; none goes on then."""
    under_way: deque[asyncio.Task[Any]] = deque()
    try:
        async for item in items:
            if len(under_way) == at_once:
                await under_way.popleft()
            under_way.append(asyncio.ensure_future(_run(work, item)))
        while under_way:
            await under_way.popleft()
    finally:
        await _give_up(under_way)


async def in_order(works: Iterable[Coroutine[Any, Any, T]], *, at_once: int) -> AsyncGenerator[T, None]:
    """The results in the order of the works, of which so many are under way at once."""
    under_way: deque[asyncio.Task[T]] = deque()
    try:
        for work in works:
            under_way.append(asyncio.ensure_future(work))
            if len(under_way) == at_once:
                yield await under_way.popleft()
        while under_way:
            yield await under_way.popleft()
    finally:
        await _give_up(under_way)


async def _run(work: Callable[[T], Awaitable[Any]], item: T) -> None:
    await work(item)


async def _give_up(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        _ = task.cancelled() or task.exception()  # the first failure is told, the others are only looked at
