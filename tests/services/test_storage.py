"""What both storages promise, on each of them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import pytest

from app.core.clock import utc_now
from app.core.exceptions import ObjectExistsError, ObjectNotFoundError
from app.core.stored_object import key_of, new_stem
from app.services.storage import Storage
from tests.services.storages import azurite, chunks_of, random_bytes, read_all, storage

__all__ = ["azurite", "storage"]

STEM = "3f/a0/3fa0c1d2e3f405162738495a6b7c8d9e"
KEY = f"{STEM}.original"
MEGABYTES_20 = 20 * 1024 * 1024 + 77


class TestWrite:
    @pytest.mark.parametrize("size", [0, 1, 4 * 1024 * 1024, MEGABYTES_20])
    async def test_gives_back_what_was_written(self, storage: Storage, size: int) -> None:
        content = random_bytes(size)

        stored = await storage.write(KEY, chunks_of(content))

        assert stored == (size, hashlib.sha256(content).hexdigest())
        assert await read_all(storage.read(KEY)) == content

    async def test_takes_chunks_of_any_size(self, storage: Storage) -> None:
        content = random_bytes(9_000_000)

        async def uneven() -> AsyncIterator[bytes]:
            yield content[:1]
            yield b""
            yield content[1:8_500_000]
            yield content[8_500_000:]

        await storage.write(KEY, uneven())

        assert await read_all(storage.read(KEY)) == content

    async def test_shows_nothing_before_all_of_it_is_there(self, storage: Storage) -> None:
        seen = []

        async def watched() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield random_bytes(3_000_000)
                seen.append(await storage.stat(KEY))
                seen.extend([found async for found in storage.objects()])

        await storage.write(KEY, watched())

        assert seen == [None, None, None]
        assert await storage.stat(KEY) is not None

    async def test_never_overwrites(self, storage: Storage) -> None:
        await storage.write(KEY, chunks_of(b"first"))

        with pytest.raises(ObjectExistsError):
            await storage.write(KEY, chunks_of(b"second"))

        assert await read_all(storage.read(KEY)) == b"first"

    async def test_lets_one_of_many_writers_of_a_key_win(self, storage: Storage) -> None:
        contents = [bytes([number]) * 300_000 for number in range(8)]

        results = await asyncio.gather(
            *(storage.write(KEY, chunks_of(content)) for content in contents), return_exceptions=True
        )

        winners = [number for number, result in enumerate(results) if not isinstance(result, BaseException)]
        assert len(winners) == 1
        assert sum(isinstance(result, ObjectExistsError) for result in results) == 7
        assert await read_all(storage.read(KEY)) == contents[winners[0]]

    async def test_stores_many_at_once(self, storage: Storage) -> None:
        contents = {key_of(new_stem()): random_bytes(50_000) for _ in range(40)}

        await asyncio.gather(*(storage.write(key, chunks_of(content)) for key, content in contents.items()))

        for key, content in contents.items():
            assert await read_all(storage.read(key)) == content


class TestWriteThatEndsEarly:
    async def test_tells_the_error_of_the_iterator_and_keeps_nothing(self, storage: Storage) -> None:
        async def failing() -> AsyncIterator[bytes]:
            for _ in range(6):
                yield random_bytes(1_500_000)
            raise ConnectionError("The client has hung up.")

        with pytest.raises(ConnectionError, match="hung up"):
            await storage.write(KEY, failing())

        assert await storage.stat(KEY) is None
        assert [found async for found in storage.objects()] == []
        assert await storage.sweep(before=utc_now() + timedelta(days=1)) == 0

    async def test_keeps_nothing_when_it_is_cancelled(self, storage: Storage) -> None:
        is_waiting = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield random_bytes(9_000_000)
            is_waiting.set()
            await asyncio.Event().wait()

        writing = asyncio.create_task(storage.write(KEY, endless()))
        await is_waiting.wait()
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing

        assert writing.cancelled()
        assert await storage.stat(KEY) is None
        assert [found async for found in storage.objects()] == []
        assert await storage.sweep(before=utc_now() + timedelta(days=1)) == 0

    async def test_can_be_done_again(self, storage: Storage) -> None:
        async def failing() -> AsyncIterator[bytes]:
            yield random_bytes(5_000_000)
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await storage.write(KEY, failing())
        await storage.write(KEY, chunks_of(b"whole"))

        assert await read_all(storage.read(KEY)) == b"whole"


class TestRead:
    @pytest.mark.parametrize(
        ("first", "last", "expected"),
        [
            (0, 3, slice(0, 4)),
            (5_000_000, 5_000_000, slice(5_000_000, 5_000_001)),
            (200_000, 9_700_000, slice(200_000, 9_700_001)),
            (9_999_990, None, slice(9_999_990, None)),
            (9_999_990, 12_000_000, slice(9_999_990, None)),
            (0, 9_999_999, slice(None)),
            (10_000_000, None, slice(0, 0)),
            (12_000_000, 13_000_000, slice(0, 0)),
            (4, 3, slice(0, 0)),
        ],
    )
    async def test_gives_the_range(self, storage: Storage, first: int, last: int | None, expected: slice) -> None:
        content = random_bytes(10_000_000)
        await storage.write(KEY, chunks_of(content))

        assert await read_all(storage.read(KEY, first=first, last=last)) == content[expected]

    async def test_gives_nothing_of_an_empty_object(self, storage: Storage) -> None:
        await storage.write(KEY, chunks_of(b""))

        assert await read_all(storage.read(KEY, first=0, last=10)) == b""

    async def test_knows_of_no_such_object(self, storage: Storage) -> None:
        with pytest.raises(ObjectNotFoundError):
            await anext(storage.read(KEY))

    async def test_may_be_left_in_the_middle(self, storage: Storage) -> None:
        content = random_bytes(MEGABYTES_20)
        await storage.write(KEY, chunks_of(content))

        chunks = storage.read(KEY)
        beginning = await anext(chunks)
        await chunks.aclose()  # type: ignore[attr-defined]

        assert content.startswith(beginning)
        assert await read_all(storage.read(KEY, first=MEGABYTES_20 - 5)) == content[-5:]

    async def test_can_be_done_by_many_at_once(self, storage: Storage) -> None:
        content = random_bytes(3_000_000)
        await storage.write(KEY, chunks_of(content))

        read = await asyncio.gather(*(read_all(storage.read(KEY, first=at)) for at in range(20)))

        assert read == [content[at:] for at in range(20)]


class TestStat:
    async def test_tells_size_and_time(self, storage: Storage) -> None:
        begun_at = utc_now()

        await storage.write(KEY, chunks_of(b"twelve bytes"))

        found = await storage.stat(KEY)
        assert found is not None
        assert (found.key, found.size) == (KEY, 12)
        assert begun_at - timedelta(seconds=2) < found.modified_at < utc_now() + timedelta(seconds=2)

    async def test_knows_of_no_such_object(self, storage: Storage) -> None:
        assert await storage.stat(KEY) is None


class TestDelete:
    async def test_removes_an_object_and_may_be_repeated(self, storage: Storage) -> None:
        await storage.write(KEY, chunks_of(b"secret"))

        for _ in range(2):
            await storage.delete(KEY)

        assert await storage.stat(KEY) is None
        with pytest.raises(ObjectNotFoundError):
            await anext(storage.read(KEY))

    async def test_removes_all_parts_of_a_stem_and_no_other(self, storage: Storage) -> None:
        neighbour = key_of(STEM[:-1] + "f")
        for key in (KEY, key_of(STEM, "thumbnail-64"), key_of(STEM, "text"), neighbour):
            await storage.write(key, chunks_of(b"part"))

        for _ in range(2):
            await storage.delete_all(STEM)

        assert [found.key async for found in storage.objects()] == [neighbour]


class TestObjects:
    async def test_come_in_order_while_others_are_written(self, storage: Storage) -> None:
        before = sorted(key_of(new_stem()) for _ in range(30))
        for key in before:
            await storage.write(key, chunks_of(b"x"))

        async def write_more() -> None:
            for _ in range(30):
                await storage.write(key_of(new_stem()), chunks_of(b"y"))

        more = asyncio.create_task(write_more())
        seen = [found.key async for found in storage.objects()]
        await more

        assert seen == sorted(seen)
        assert set(before) <= set(seen)

    @pytest.mark.parametrize(
        ("after", "expected"),
        [
            ("", [0, 1, 2, 3]),
            (f"00/11/0011{'a' * 28}.original", [1, 2, 3]),
            (f"00/11/0011{'a' * 28}.text", [2, 3]),
            (f"00/12/0012{'0' * 28}.original", [2, 3]),
            (f"00/12/0012{'f' * 28}.original", [3]),
            (f"ff/ff/ffff{'f' * 28}.original", []),
        ],
    )
    async def test_go_on_after_a_key(self, storage: Storage, after: str, expected: list[int]) -> None:
        written = [
            f"00/11/0011{'a' * 28}.original",
            f"00/11/0011{'a' * 28}.text",
            f"00/12/0012{'b' * 28}.original",
            f"f0/00/f000{'0' * 28}.original",
        ]
        for key in written:
            await storage.write(key, chunks_of(b"x"))

        seen = [found.key async for found in storage.objects(after=after)]

        assert seen == [written[at] for at in expected]


class TestKey:
    @pytest.mark.parametrize(
        "key",
        [
            "../../etc/passwd",
            "/etc/passwd",
            "drafts/0123456789abcdef0123456789abcdef",
            f"{STEM}.",
            f"{STEM}.original\n",
            f"{STEM}.original/../../..",
            f"{STEM}.Original",
            STEM,
            f"00/a0/{STEM[6:]}.original",
            f"3f/a0/{STEM[6:]}.original\0",
            "",
        ],
    )
    async def test_is_refused_when_it_is_none(self, storage: Storage, key: str) -> None:
        for attempt in (storage.write(key, chunks_of(b"x")), storage.stat(key), storage.delete(key)):
            with pytest.raises(ValueError, match="not the key"):
                await attempt
        with pytest.raises(ValueError, match="not the key"):
            await anext(storage.read(key))
        with pytest.raises(ValueError, match="not the stem"):
            await storage.delete_all(f"{key}..")
