import asyncio
from collections.abc import AsyncIterator

import pytest

from app.core.chunks import blocks_of, in_order, work_on


async def each(*items: bytes) -> AsyncIterator[bytes]:
    for item in items:
        yield item


class TestBlocksOf:
    @pytest.mark.parametrize(
        ("chunks", "blocks"),
        [
            ([], []),
            ([b""], []),
            ([b"abc"], [b"abc"]),
            ([b"abcd"], [b"abcd"]),
            ([b"a", b"bc", b"", b"de"], [b"abcd", b"e"]),
            ([b"abcdefghij"], [b"abcd", b"efgh", b"ij"]),
            ([b"abc", b"defghijkl"], [b"abcd", b"efgh", b"ijkl"]),
        ],
    )
    async def test_cuts_to_the_size(self, chunks: list[bytes], blocks: list[bytes]) -> None:
        assert [bytes(block) async for block in blocks_of(each(*chunks), 4)] == blocks


class TestWorkOn:
    async def test_has_no_more_under_way_than_it_may(self) -> None:
        under_way, most, done = 0, 0, []

        async def work(item: bytes) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            for _ in range(5):
                await asyncio.sleep(0)
            under_way -= 1
            done.append(item)

        await work_on(each(*(bytes([number]) for number in range(20))), work, at_once=3)

        assert most == 3
        assert sorted(done) == [bytes([number]) for number in range(20)]

    async def test_keeps_the_order_one_at_a_time(self) -> None:
        done = []

        async def work(item: bytes) -> None:
            await asyncio.sleep(0)
            done.append(item)

        await work_on(each(b"a", b"b", b"c"), work, at_once=1)

        assert done == [b"a", b"b", b"c"]

    async def test_ends_everything_when_one_fails(self) -> None:
        ended = []

        async def work(item: bytes) -> None:
            if item == b"fails":
                raise ConnectionError("the first")
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(item)

        with pytest.raises(ConnectionError, match="the first"):
            await work_on(each(b"fails", b"waits", b"never"), work, at_once=2)

        assert ended == [b"waits"]
        assert len(asyncio.all_tasks()) == 1

    async def test_ends_everything_when_no_more_can_come(self) -> None:
        is_begun, ended = asyncio.Event(), []

        async def items() -> AsyncIterator[bytes]:
            yield b"waits"
            await is_begun.wait()
            raise ConnectionError("the client has gone")

        async def work(item: bytes) -> None:
            is_begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(item)

        with pytest.raises(ConnectionError, match="has gone"):
            await work_on(items(), work, at_once=2)

        assert ended == [b"waits"]
        assert len(asyncio.all_tasks()) == 1


class TestInOrder:
    async def test_gives_results_in_the_order_of_the_works(self) -> None:
        async def work(turns: int) -> int:
            for _ in range(turns):
                await asyncio.sleep(0)
            return turns

        assert [result async for result in in_order(map(work, [9, 1, 5, 0]), at_once=3)] == [9, 1, 5, 0]

    async def test_ends_what_is_under_way_when_it_is_left(self) -> None:
        async def work(number: int) -> int:
            if number:
                await asyncio.Event().wait()
            return number

        results = in_order(map(work, range(4)), at_once=2)
        first = await anext(results)
        await results.aclose()

        assert first == 0
        assert len(asyncio.all_tasks()) == 1
