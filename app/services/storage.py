"""Where the bytes of uploads are: a folder, or Azure Blob Storage. What is stored never changes until it is deleted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from app.core.config import Settings
from app.core.exceptions import StorageUnavailableError
from app.core.logging_config import get_logger
from app.core.stored_object import DirectUpload, Stored, StoredObject
from app.services.folder_storage import FolderStorage

if TYPE_CHECKING:
    from app.services.azure_storage import AzureStorage

_log = get_logger(__name__)


class Storage(Protocol):
    """What both do. Keys are those of `app/core/stored_object.py`; memory holds a few blocks of what passes through.

    `StorageUnavailableError` from every method when the storage does not answer: within 5 s, but writing waits for a
    busy disk for up to a minute, and a read that has begun for up to 10 s.
    """

    async def open(self) -> None:
        """See to it that the first write finds all it needs."""

    async def close(self) -> None: ...

    async def check(self) -> None:
        """Ask for a sign of life that costs little."""

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> Stored:
        """Store what comes. Nobody can read it before all of it is stored for good.

        Whatever ends this early, the iterator's own error or a cancellation, leaves nothing behind.
        `ObjectExistsError` when there is an object of that key: it stays as it is.
        """

    def read(self, key: str, *, first: int = 0, last: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `first` to `last`, both included, as far as there are any.

        `ObjectNotFoundError` before the first chunk.
        """

    async def stat(self, key: str) -> StoredObject | None: ...

    async def delete(self, key: str) -> None:
        """Remove an object; nothing to remove is no error."""

    async def delete_all(self, stem: str) -> None:
        """Remove every part of a stem."""

    def objects(self, *, after: str = "") -> AsyncIterator[StoredObject]:
        """Every object whose key comes after that one, in the order of the keys.

        What is written or deleted meanwhile may or may not be among them.
        """

    async def sweep(self, *, before: datetime) -> int:
        """Remove what writers that died have left and nobody has touched since; how many there were."""

    async def signed_url(self, key: str, *, expires_at: datetime, content_type: str, disposition: str) -> str | None:
        """A link to the storage itself that gives this object to whoever has it, with these two headers.

        None where there is no such link.
        """

    async def direct_upload(self, key: str, *, expires_at: datetime) -> DirectUpload | None:
        """Where a client may put this one object, once and nothing else. None where it can't."""


class _Opened:
    storage: Storage | None = None


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncIterator[Storage]:
    """Open the storage that the settings name. One that is away does not keep the process from starting."""
    storage = _storage_of(settings)
    _Opened.storage = storage
    try:
        try:
            await storage.open()
        except StorageUnavailableError as error:
            _log.warning("storage_unavailable", **error.context)
        yield storage
    finally:
        _Opened.storage = None
        await storage.close()


def get_storage() -> Storage:
    if _Opened.storage is None:
        raise RuntimeError("The storage is not open.")
    return _Opened.storage


def _storage_of(settings: Settings) -> Storage:
    connection, account = settings.azure_storage_connection_string, settings.azure_storage_account_url
    if connection is None and account is None:
        return FolderStorage(settings.data_dir / "uploads")
    # Azure's library takes a third of a second and 20 MiB, which nobody pays who does not use it.
    azure_storage: type[AzureStorage] = import_module("app.services.azure_storage").AzureStorage
    if connection is not None:
        return azure_storage.of_connection_string(connection.get_secret_value(), settings.azure_storage_container)
    return azure_storage.of_account(str(account), settings.azure_storage_container)
