"""Where archives are: a folder, or a container of the storage account of uploads. What is there is whole."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from app.backup.azure_place import AzurePlace
from app.backup.blocks import Sink
from app.backup.errors import BackupError
from app.backup.folder_place import FolderPlace
from app.core.config import Settings

AZURE: Final = "azure:"


class Place(Protocol):
    def draft(self, name: str) -> AbstractContextManager[Sink]:
        """Write an archive. It is there under its name once the block has come to its end, and never before."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]: ...

    def names(self) -> Iterator[str]: ...

    def size(self, name: str) -> int: ...

    def remove(self, name: str) -> None: ...


class Named(NamedTuple):
    place: Place
    name: str


def place_of(text: str | None, settings: Settings) -> Place:
    """The folder of that name, `azure:`, or where the settings say that backups are."""
    if text == AZURE:
        return AzurePlace.of(settings)
    if text is not None and text.partition(":")[0] == "azure":
        # Whoever writes that means the storage account, and would look there for what is in a folder of this machine.
        raise BackupError(
            f"{text}: the storage account is azure: and no more, its container AZURE_BACKUP_CONTAINER. A folder of "
            f"that name is ./{text}"
        )
    return FolderPlace(Path(text) if text else settings.backup_dir or settings.data_dir / "backups")


def archive_of(text: str, settings: Settings) -> Named:
    """What `azure:NAME`, the path of a file, or the bare name of an archive among ours stands for."""
    if text.startswith(AZURE):
        return Named(AzurePlace.of(settings), text.removeprefix(AZURE))
    path = Path(text)
    if path.name == text and not path.exists():
        return Named(place_of(None, settings), text)
    return Named(FolderPlace(path.parent), path.name)
