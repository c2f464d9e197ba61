"""Archives in a folder, for the eyes of their owner only."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from app.backup.errors import BackupError

SUFFIX: Final = ".backup"
_DRAFT: Final = ".draft"


class FolderPlace:
    """See `Place`. A draft is locked while somebody writes it, so who finds one unlocked removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def draft(self, name: str) -> Iterator[BinaryIO]:
        with self._told():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep()
            draft = self._folder / f"{name}{_DRAFT}"
            with open(draft, "xb", opener=_for_the_owner) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    draft.rename(self._folder / name)
                except BaseException:
                    draft.unlink(missing_ok=True)
                    raise
            self._settle()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with self._told(), (self._folder / name).open("rb") as file:
            yield file

    def names(self) -> Iterator[str]:
        yield from sorted(path.name for path in self._folder.glob(f"*{SUFFIX}") if path.is_file())

    def size(self, name: str) -> int:
        with self._told():
            return (self._folder / name).stat().st_size

    def remove(self, name: str) -> None:
        with self._told():
            (self._folder / name).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what backups have left that were killed."""
        for path in self._folder.glob(f"*{SUFFIX}{_DRAFT}"):
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def _settle(self) -> None:
        """Let the new name survive a power cut as well."""
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the file system says into a sentence."""
        try:
            yield
        except OSError as error:
            raise BackupError(f"{error.filename or self._folder}: {error.strerror or error}.") from error


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
