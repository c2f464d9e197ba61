"""Objects as blobs of one private container of an Azure storage account."""

import asyncio
import hashlib
import secrets
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Final

from azure.core.exceptions import ResourceExistsError
from azure.identity.aio import DefaultAzureCredential
from azure.storage.blob.aio import BlobClient, BlobServiceClient

from app.core import background
from app.core.chunks import blocks_of, in_order, work_on
from app.core.exceptions import ObjectNotFoundError, StorageUnavailableError
from app.core.stored_object import DirectUpload, Stored, StoredObject, is_key, require_key, require_stem
from app.services import azure_calls
from app.services.azure_calls import BLOCK, OPTIONS, asking
from app.services.azure_links import AzureLinks

_FIRST: Final = 256 * 1024  # the first bytes are read with less, so that they come soon
_AT_ONCE: Final = 3
_SHARDS: Final = 256
_PAGE: Final = 1000


class AzureStorage:
    """See `Storage` for what each method promises.

    Blocks of a write that came to no end are invisible until `delete_all` removes them, or Azure after a week.
    """

    def __init__(
        self, service: BlobServiceClient, container: str, credential: DefaultAzureCredential | None = None
    ) -> None:
        self._service = service
        self._container = service.get_container_client(container)
        self._credential = credential
        self._links = AzureLinks(service)
        self._has_container = False

    @classmethod
    def of_connection_string(cls, connection: str, container: str) -> "AzureStorage":
        return cls(BlobServiceClient.from_connection_string(connection, **OPTIONS), container)

    @classmethod
    def of_account(cls, url: str, container: str) -> "AzureStorage":
        """As the identity of the machine or container, or as the developer who has signed in with `az login`."""
        credential = DefaultAzureCredential()
        return cls(BlobServiceClient(url, credential, **OPTIONS), container, credential)

    async def open(self) -> None:
        async with asking():
            await self._ensure_container()

    async def close(self) -> None:
        await self._service.close()
        if self._credential is not None:
            await self._credential.close()

    async def check(self) -> None:
        self._has_container = False  # it may have been removed
        await self.open()

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> Stored:
        blob, blocks = self._blob(key), _Blocks(chunks)
        await self.open()
        async with aclosing(blocks.numbered()) as numbered:
            await work_on(numbered, lambda each: azure_calls.stage(blob, *each), at_once=_AT_ONCE)
        try:
            async with asking():
                await azure_calls.commit(blob, blocks.ids, blocks.writer)
        except (asyncio.CancelledError, StorageUnavailableError):
            # It may have been carried out all the same.
            background.start(azure_calls.forget(blob, blocks.writer), name="storage_forget")
            raise
        return Stored(blocks.size, blocks.digest.hexdigest())

    async def read(self, key: str, *, first: int = 0, last: int | None = None) -> AsyncIterator[bytes]:
        blob = self._blob(key)
        size = _FIRST if last is None else min(_FIRST, last - first + 1)
        if size <= 0 or (begin := await azure_calls.begin(blob, first, size)) is None:
            return
        chunk, total, etag = begin
        yield chunk
        end = total if last is None else min(last + 1, total)
        starts = range(first + len(chunk), end, BLOCK)
        works = (azure_calls.part(blob, at, min(BLOCK, end - at), etag) for at in starts)
        async with aclosing(in_order(works, at_once=_AT_ONCE)) as parts:
            async for part in parts:
                yield part

    async def stat(self, key: str) -> StoredObject | None:
        blob = self._blob(key)
        with suppress(ObjectNotFoundError):
            async with asking():
                return azure_calls.known(await blob.get_blob_properties())
        return None

    async def delete(self, key: str) -> None:
        blob = self._blob(key)
        with suppress(ObjectNotFoundError):
            async with asking():
                await blob.delete_blob(delete_snapshots="include")

    async def delete_all(self, stem: str) -> None:
        """Also the blocks of a writer that came to no end."""
        async for found in self._listed(require_stem(stem) + ".", include=["uncommittedblobs"]):
            if not found.size:
                async with asking():
                    await azure_calls.drop_blocks(self._blob(found.key))
            await self.delete(found.key)

    async def objects(self, *, after: str = "") -> AsyncIterator[StoredObject]:
        """Azure can't begin after a key. By the first two digits, little has to be passed over to go on after one."""
        shards = [f"{shard:02x}/" for shard in range(int(after[:2], 16), _SHARDS)] if after else [""]
        for shard in shards:
            async for found in self._listed(shard):
                if found.key > after:
                    yield found

    async def sweep(self, *, before: datetime) -> int:  # noqa: ARG002
        """None: Azure does that itself."""
        return 0

    async def signed_url(self, key: str, *, expires_at: datetime, content_type: str, disposition: str) -> str:
        blob = self._blob(key)
        async with asking():
            return await self._links.to_read(
                blob, expires_at=expires_at, content_type=content_type, disposition=disposition
            )

    async def direct_upload(self, key: str, *, expires_at: datetime) -> DirectUpload:
        """One PUT of at most 5,000 MiB, and never over what is there: that has been checked."""
        blob = self._blob(key)
        async with asking():
            await self._ensure_container()
            url = await self._links.to_create(blob, expires_at=expires_at)
        return DirectUpload(url, {"x-ms-blob-type": "BlockBlob"})

    def _blob(self, key: str) -> BlobClient:
        return self._container.get_blob_client(require_key(key))

    async def _ensure_container(self) -> None:
        if self._has_container:
            return
        if not await self._container.exists():
            with suppress(ResourceExistsError):  # another process was first
                await self._container.create_container()
        self._has_container = True

    async def _listed(self, prefix: str, include: list[str] | None = None) -> AsyncIterator[StoredObject]:
        pages = self._container.list_blobs(prefix, include, results_per_page=_PAGE).by_page()
        while True:
            async with asking():
                page = await anext(pages, None)
                if page is None:
                    return
                found = [azure_calls.known(blob) async for blob in page]
            for each in found:
                if is_key(each.key):
                    yield each


class _Blocks:
    """What one writer sends: blocks under names that no other writer of the same key has, counted and hashed."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self.writer = secrets.token_hex(8)
        self.digest = hashlib.sha256()
        self.size = 0
        self.ids: list[str] = []
        self._chunks = chunks

    async def numbered(self) -> AsyncGenerator[tuple[str, bytearray], None]:
        async with aclosing(blocks_of(self._chunks, BLOCK)) as blocks:
            async for block in blocks:
                await asyncio.to_thread(self.digest.update, block)
                self.size += len(block)
                # All names of a blob have the same length.
                self.ids.append(b64encode(f"{self.writer}{len(self.ids):08}".encode()).decode())
                yield self.ids[-1], block
