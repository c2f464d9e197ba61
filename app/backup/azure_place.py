"""Archives as blobs of a private container."""

import io
import secrets
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from azure.storage.blob import BlobBlock, BlobClient, BlobServiceClient

from app.backup.errors import BackupError
from app.backup.folder_place import SUFFIX
from app.core.config import Settings

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK: Final = 16 * 1024 * 1024  # of 50,000 that a blob may have: archives up to 780 GiB

_FIRST: Final = 256 * 1024  # whoever lists archives wants their heads only


class AzurePlace:
    """See `Place`. Blocks of a draft that came to no end are invisible, and Azure removes them after a week."""

    def __init__(self, service: BlobServiceClient, container: str) -> None:
        self._container = service.get_container_client(container)

    @classmethod
    def of(cls, settings: Settings) -> "AzurePlace":
        """In the account of uploads, with its key or as the identity of this machine."""
        if settings.azure_storage_connection_string is not None:
            connection = settings.azure_storage_connection_string.get_secret_value()
            service = BlobServiceClient.from_connection_string(connection)
        elif settings.azure_storage_account_url is not None:
            service = BlobServiceClient(settings.azure_storage_account_url, DefaultAzureCredential())
        else:
            raise BackupError("azure: needs AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_URL.")
        return cls(service, settings.azure_backup_container)

    @contextmanager
    def draft(self, name: str) -> Iterator["_Blocks"]:
        with _told():
            with suppress(ResourceExistsError):
                self._container.create_container()
            blocks = _Blocks(self._container.get_blob_client(name))
            yield blocks
            blocks.commit()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with _told(), io.BufferedReader(_Reader(self._container.get_blob_client(name)), _BLOCK) as file:
            yield cast("BinaryIO", file)

    def names(self) -> Iterator[str]:
        with _told(), suppress(ResourceNotFoundError):  # there is no container before the first backup
            yield from sorted(name for name in self._container.list_blob_names() if name.endswith(SUFFIX))

    def size(self, name: str) -> int:
        with _told():
            return self._container.get_blob_client(name).get_blob_properties().size

    def remove(self, name: str) -> None:
        with _told(), suppress(ResourceNotFoundError):
            self._container.delete_blob(name)


class _Blocks:
    """Sends what is written in blocks, of which nothing can be seen until they are committed together."""

    def __init__(self, blob: BlobClient) -> None:
        self._blob = blob
        self._writer = secrets.token_hex(8)
        self._ids: list[str] = []
        self._waiting = bytearray()

    def write(self, content: bytes) -> None:
        self._waiting += content
        while len(self._waiting) >= _BLOCK:
            self._stage(bytes(self._waiting[:_BLOCK]))
            del self._waiting[:_BLOCK]

    def commit(self) -> None:
        """Make the blob of the blocks, unless there is one of that name."""
        self._stage(bytes(self._waiting))
        blocks = [BlobBlock(block_id) for block_id in self._ids]
        self._blob.commit_block_list(blocks, match_condition=MatchConditions.IfMissing)

    def _stage(self, content: bytes) -> None:
        # All names of a blob have the same length.
        self._ids.append(b64encode(f"{self._writer}{len(self._ids):08}".encode()).decode())
        self._blob.stage_block(self._ids[-1], content, len(content))


class _Reader(io.RawIOBase):
    """A blob as a file; always the same version of it."""

    def __init__(self, blob: BlobClient) -> None:
        super().__init__()
        self._blob = blob
        properties = blob.get_blob_properties()
        self._size, self._etag = properties.size, properties.etag
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        length = min(len(view), self._size - self._at, _BLOCK if self._at else _FIRST)
        if length <= 0:
            return 0
        part = self._blob.download_blob(
            self._at, length, etag=self._etag, match_condition=MatchConditions.IfNotModified
        )
        view[:length] = part.readall()
        self._at += length
        return length


@contextmanager
def _told() -> Iterator[None]:
    """Turn what Azure says into a sentence."""
    try:
        yield
    except AzureError as error:
        code = getattr(error, "error_code", None)
        raise BackupError(f"Azure Blob Storage: {getattr(code, 'value', code) or type(error).__name__}.") from error
