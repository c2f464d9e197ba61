"""What only Azure can do, and what happens when it does not answer."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.core import background
from app.core.clock import utc_now
from app.core.exceptions import StorageUnavailableError
from app.core.stored_object import key_of, new_stem
from app.services import azure_calls
from app.services.azure_storage import AzureStorage
from app.services.storage import Storage
from tests.azurite_server import AzuriteServer, running_azurite
from tests.services.slow_way import slow_way_to
from tests.services.storages import azure_storage, azurite, chunks_of, random_bytes, read_all

__all__ = ["azurite"]

KEY, OTHER = key_of(new_stem()), key_of(new_stem())
NAME = "attachment; filename=\"r_sum_.pdf\"; filename*=UTF-8''r%C3%A9sum%C3%A9%20%26%20more.pdf"
CALLS: dict[str, Callable[[Storage], Awaitable[Any]]] = {
    "write": lambda storage: storage.write(KEY, chunks_of(b"x")),
    "read": lambda storage: read_all(storage.read(KEY)),
    "stat": lambda storage: storage.stat(KEY),
    "delete": lambda storage: storage.delete(KEY),
    "delete_all": lambda storage: storage.delete_all(KEY.partition(".")[0]),
    "objects": lambda storage: anext(storage.objects()),
    "check": lambda storage: storage.check(),
}


@pytest.fixture
async def storage(azurite: AzuriteServer) -> AsyncIterator[AzureStorage]:
    async with azure_storage(azurite) as storage:
        yield storage


@pytest.fixture
def own_azurite() -> Iterator[AzuriteServer]:
    with running_azurite() as server:
        yield server


async def link_to(storage: AzureStorage, key: str = KEY, *, seconds: int = 60) -> str:
    expires_at = utc_now() + timedelta(seconds=seconds)
    return await storage.signed_url(key, expires_at=expires_at, content_type="application/pdf", disposition=NAME)


async def send(method: str, url: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.request(method, url, **more)


async def blobs_in(storage: AzureStorage) -> set[str]:
    """Those as well of which there are only blocks."""
    return {blob.name async for blob in storage._container.list_blobs(include=["uncommittedblobs"])}


class TestSignedUrl:
    async def test_gives_the_file_with_its_headers(self, storage: AzureStorage) -> None:
        content = random_bytes(5_000)
        await storage.write(KEY, chunks_of(content))

        url = await link_to(storage)
        whole, part = await send("GET", url), await send("GET", url, headers={"Range": "bytes=10-19"})

        assert (whole.status_code, whole.content) == (200, content)
        assert whole.headers["content-type"] == "application/pdf"
        assert whole.headers["content-disposition"] == NAME
        assert (part.status_code, part.content) == (206, content[10:20])

    async def test_is_for_one_object(self, storage: AzureStorage) -> None:
        for key in (KEY, OTHER):
            await storage.write(key, chunks_of(b"private"))

        url = await link_to(storage)

        assert (await send("GET", url.replace(KEY, OTHER))).status_code == 403
        assert (await send("GET", url.partition("?")[0])).status_code in {403, 404}

    async def test_is_for_reading(self, storage: AzureStorage) -> None:
        await storage.write(KEY, chunks_of(b"mine"))

        url = await link_to(storage)
        put = await send("PUT", url, headers={"x-ms-blob-type": "BlockBlob"}, content=b"yours")
        deleted = await send("DELETE", url)

        assert (put.status_code, deleted.status_code) == (403, 403)
        assert await read_all(storage.read(KEY)) == b"mine"

    async def test_ends(self, storage: AzureStorage) -> None:
        await storage.write(KEY, chunks_of(b"late"))

        assert (await send("GET", await link_to(storage, seconds=-1))).status_code == 403

    async def test_can_not_be_given_other_headers(self, storage: AzureStorage) -> None:
        await storage.write(KEY, chunks_of(b"<script>"))

        url = await link_to(storage)
        forged = url.replace("rsct=application/pdf", "rsct=text/html")

        assert forged != url
        assert (await send("GET", forged)).status_code == 403


class TestDirectUpload:
    async def test_takes_one_file(self, storage: AzureStorage) -> None:
        content = random_bytes(300_000)
        target = await storage.direct_upload(KEY, expires_at=utc_now() + timedelta(minutes=1))

        put = await send("PUT", target.url, headers=target.headers, content=content)

        found = await storage.stat(KEY)
        assert put.status_code == 201
        assert found is not None
        assert found.size == 300_000
        assert await read_all(storage.read(KEY)) == content

    async def test_that_is_said_to_be_compressed_is_read_as_it_is(self, storage: AzureStorage) -> None:
        bomb = gzip.compress(bytes(50_000_000))
        target = await storage.direct_upload(KEY, expires_at=utc_now() + timedelta(minutes=1))

        await send("PUT", target.url, headers={**target.headers, "x-ms-blob-content-encoding": "gzip"}, content=bomb)

        found = await storage.stat(KEY)
        assert found is not None
        assert (found.size, found.is_encoded) == (len(bomb), True)
        assert await read_all(storage.read(KEY)) == bomb
        assert await read_all(storage.read(KEY, first=100, last=199)) == bomb[100:200]

    async def test_never_overwrites(self, storage: AzureStorage) -> None:
        target = await storage.direct_upload(KEY, expires_at=utc_now() + timedelta(minutes=1))

        await send("PUT", target.url, headers=target.headers, content=b"checked")
        again = await send("PUT", target.url, headers=target.headers, content=b"something else")

        assert again.status_code in {403, 409}
        assert await read_all(storage.read(KEY)) == b"checked"

    async def test_is_for_nothing_else(self, storage: AzureStorage) -> None:
        await storage.write(OTHER, chunks_of(b"private"))
        url, headers = await storage.direct_upload(KEY, expires_at=utc_now() + timedelta(minutes=1))
        late = await storage.direct_upload(KEY, expires_at=utc_now() - timedelta(seconds=1))

        answers = [
            await send("PUT", url.replace(KEY, key_of(new_stem())), headers=headers, content=b"x"),
            await send("PUT", late.url, headers=headers, content=b"x"),
            await send("GET", url.replace(KEY, OTHER)),
            await send("DELETE", url.replace(KEY, OTHER)),
            await send("GET", url),
        ]

        assert [answer.status_code for answer in answers] == [403] * 5
        assert [found.key async for found in storage.objects()] == [OTHER]


class TestWrite:
    async def test_whose_answer_was_lost_finds_its_own_blob(
        self, storage: AzureStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The commit is carried out twice, as by a client whom the first answer did not reach."""
        commit = azure_calls.commit

        async def twice(*arguments: Any) -> None:
            await commit(*arguments)
            await commit(*arguments)

        monkeypatch.setattr(azure_calls, "commit", twice)

        stored = await storage.write(KEY, chunks_of(b"once"))

        assert stored.size == 4
        assert await read_all(storage.read(KEY)) == b"once"

    async def test_that_is_cancelled_at_the_last_step_takes_it_back(
        self, storage: AzureStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        is_committed = asyncio.Event()
        commit = azure_calls.commit

        async def unheard(*arguments: Any) -> None:
            await commit(*arguments)
            is_committed.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(azure_calls, "commit", unheard)
        writing = asyncio.create_task(storage.write(KEY, chunks_of(b"x")))
        await is_committed.wait()
        writing.cancel()
        await asyncio.wait([writing])
        await background.drain()

        assert await storage.stat(KEY) is None

    async def test_that_came_to_no_end_leaves_no_blocks_when_its_upload_goes(self, storage: AzureStorage) -> None:
        async def cut_off() -> AsyncIterator[bytes]:
            yield bytes(9_000_000)
            while not await blobs_in(storage):
                pass
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(storage.write(KEY, cut_off()), 10)
        await storage.write(OTHER, chunks_of(b""))
        before = await blobs_in(storage)
        for key in (KEY, OTHER):
            await storage.delete_all(key.partition(".")[0])

        assert before == {KEY, OTHER}
        assert await blobs_in(storage) == set()

    async def test_takes_back_only_its_own(self, storage: AzureStorage) -> None:
        await storage.write(KEY, chunks_of(b"mine"))

        await azure_calls.forget(storage._blob(KEY), "another writer")

        assert await read_all(storage.read(KEY)) == b"mine"

    async def test_goes_on_while_a_slow_way_takes_something(
        self, azurite: AzuriteServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(azure_calls, "_PATIENCE", 1.5)
        content = random_bytes(9_000_000)

        async with slow_way_to(azurite.port, bytes_per_second=1_500_000) as port:
            connection = azurite.connection.replace(str(azurite.port), str(port))
            storage = AzureStorage.of_connection_string(connection, "slow")
            begun = time.monotonic()
            await storage.write(OTHER, chunks_of(content))
            took = time.monotonic() - begun
            await storage.close()

        assert took > 3


class TestContainer:
    async def test_is_made_when_it_is_missing(self, azurite: AzuriteServer) -> None:
        storage = AzureStorage.of_connection_string(azurite.connection, "made-by-write")

        await storage.write(KEY, chunks_of(b"x"))

        assert [found.key async for found in storage.objects()] == [KEY]
        await storage.close()

    async def test_is_made_again_by_a_check(self, storage: AzureStorage) -> None:
        await storage._container.delete_container()

        with pytest.raises(StorageUnavailableError):
            await storage.write(KEY, chunks_of(b"x"))
        await storage.check()

        assert (await storage.write(KEY, chunks_of(b"x"))).size == 1


class TestAzureThatIsAway:
    async def test_is_told_at_once_when_it_dies_in_the_middle(self, own_azurite: AzuriteServer) -> None:
        async def cut_off() -> AsyncIterator[bytes]:
            yield random_bytes(9_000_000)
            own_azurite.kill()
            for _ in range(20):
                yield random_bytes(1_000_000)

        async with azure_storage(own_azurite) as storage:
            begun = time.monotonic()
            with pytest.raises(StorageUnavailableError):
                await storage.write(KEY, cut_off())
            took = time.monotonic() - begun

            own_azurite.start()
            await storage.check()
            assert await storage.stat(KEY) is None
            assert (await storage.write(KEY, chunks_of(b"again"))).size == 5

        assert took < 5

    @pytest.mark.parametrize("is_frozen", [False, True])
    async def test_answers_no_call_later_than_in_5_seconds(
        self, own_azurite: AzuriteServer, *, is_frozen: bool
    ) -> None:
        async with azure_storage(own_azurite) as storage:
            if is_frozen:
                own_azurite.freeze()
            else:
                own_azurite.kill()
            results = await asyncio.gather(*(outcome_of(call(storage)) for call in CALLS.values()))
            own_azurite.thaw()

        for name, (outcome, took) in zip(CALLS, results, strict=True):
            assert isinstance(outcome, StorageUnavailableError), name
            assert took < 5, name


async def outcome_of(call: Awaitable[Any]) -> tuple[Any, float]:
    begun = time.monotonic()
    try:
        result: Any = await call
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        result = error
    return result, time.monotonic() - begun
