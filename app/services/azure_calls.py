"""Single calls to Azure: how long each may take, and what its failure means here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobBlock, BlobProperties
from azure.storage.blob.aio import BlobClient, ExponentialRetry

from app.core.exceptions import ObjectExistsError, ObjectNotFoundError, StorageUnavailableError
from app.core.stored_object import StoredObject

BLOCK: Final = 4 * 1024 * 1024
OPTIONS: Final[dict[str, Any]] = {
    "connection_timeout": 2,
    "read_timeout": 3.5,
    # Once more at once, then after a second. What was not answered in time is not asked again.
    "retry_policy": ExponentialRetry(
        initial_backoff=0, increment_base=1, retry_total=2, retry_connect=1, retry_read=0, random_jitter_range=0
    ),
    "max_single_get_size": BLOCK,
    "max_chunk_get_size": BLOCK,
}
_PATIENCE: Final = 4.0  # seconds without a sign of life: a request is answered within 5 s
_UPLOADING: Final = 600  # seconds for a block that moves; one that does not has been given up long before
_PACKET: Final = 64 * 1024
_WRITER: Final = "writer"
# What a second writer is told, who may be the first one whose answer was lost.
_TAKEN: Final = frozenset({"BlobAlreadyExists", "InvalidBlockList", "ConditionNotMet"})


@asynccontextmanager
async def asking() -> AsyncIterator[asyncio.Timeout]:
    """Turn failures and silence into errors of our own."""
    try:
        async with asyncio.timeout(_PATIENCE) as limit:
            yield limit
    except (AzureError, TimeoutError) as error:
        code = _code_of(error)
        if code == "BlobNotFound":
            raise ObjectNotFoundError from error
        raise StorageUnavailableError(error=code or type(error).__name__) from error


async def stage(blob: BlobClient, block_id: str, block: bytearray) -> None:
    """Send a block that nobody can see yet. However slow the way is, it goes on while something moves."""
    async with asking() as limit:
        moving = cast("Any", _Moving(block, limit))  # its types do not know what its documentation promises
        await blob.stage_block(block_id, moving, len(block), read_timeout=_UPLOADING)


async def commit(blob: BlobClient, ids: list[str], writer: str) -> None:
    """Make a blob of its blocks, unless there is one: `ObjectExistsError`."""
    try:
        await blob.commit_block_list(
            [BlobBlock(block_id) for block_id in ids],
            metadata={_WRITER: writer},
            match_condition=MatchConditions.IfMissing,
        )
    except HttpResponseError as error:
        if _code_of(error) not in _TAKEN:
            raise
        with suppress(ResourceNotFoundError):
            if (await blob.get_blob_properties()).metadata.get(_WRITER) == writer:
                return
            raise ObjectExistsError from error
        raise


async def forget(blob: BlobClient, writer: str) -> None:
    """Remove what a writer has committed without hearing of it. Where that fails too, it belongs to no upload."""
    with suppress(ObjectNotFoundError, StorageUnavailableError):
        async with asking():
            if (await blob.get_blob_properties()).metadata.get(_WRITER) == writer:
                await blob.delete_blob()


async def drop_blocks(blob: BlobClient) -> None:
    """Let a blob that has nothing but blocks which nobody committed be an empty one, if it is such a one."""
    with suppress(ResourceExistsError):
        await blob.commit_block_list([], match_condition=MatchConditions.IfMissing)


async def begin(blob: BlobClient, first: int, size: int) -> tuple[bytes, int, str] | None:
    """The first bytes, the size of all, and the entity tag; none when the blob ends before.

    As they are stored: who puts a blob may say that it is compressed, and it could be a bomb.
    """
    async with asking():
        try:
            download = await blob.download_blob(first, size, decompress=False)
        except HttpResponseError as error:
            if _code_of(error) == "InvalidRange":
                return None
            raise
        total = (download.properties.content_range or "").rpartition("/")[2]
        return await download.readall(), int(total), download.properties.etag


async def part(blob: BlobClient, first: int, size: int, etag: str) -> bytes:
    """More of the same version. The time-out is that of the socket: a slow way is none that is broken."""
    try:
        download = await blob.download_blob(
            first, size, etag=etag, match_condition=MatchConditions.IfNotModified, decompress=False
        )
        return await download.readall()
    except AzureError as error:
        raise StorageUnavailableError(error=_code_of(error) or type(error).__name__) from error


def known(blob: BlobProperties) -> StoredObject:
    return StoredObject(blob.name, blob.size, blob.last_modified, bool(blob.content_settings.content_encoding))


class _Moving:
    """A block on its way: each packet that the connection takes prolongs the time that there is."""

    def __init__(self, block: bytearray, limit: asyncio.Timeout) -> None:
        self._block = memoryview(block)
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._block), _PACKET):
            self._limit.reschedule(asyncio.get_running_loop().time() + _PATIENCE)
            yield bytes(self._block[at : at + _PACKET])


def _code_of(error: Exception) -> str | None:
    code = getattr(error, "error_code", None)
    return None if code is None else str(getattr(code, "value", code))
