"""A file while it is written: under a name that nobody reads, until it is whole and on the disk."""

import errno
import hashlib
import os
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from threading import Lock
from typing import Final

from app.core.exceptions import ObjectExistsError
from app.core.stored_object import Stored

# For larger writes Linux takes larger pages of memory, which are seldom at hand: 2.9 s of its time a GiB, not 1.1 s.
_PIECE: Final = 64 * 1024
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class Draft:
    """Its methods run in threads. A request that is cancelled can't stop a thread, so each waits for the one before.

    Whatever was given up does nothing any more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._file: BufferedWriter | None = None
        self._digest = hashlib.sha256()
        self._size = 0
        self._final: Path | None = None
        self._is_over = False

    def append(self, block: bytearray) -> None:
        with self._lock:
            with memoryview(block) as bytes_:
                for at in range(0, len(block), _PIECE):
                    self._opened().write(bytes_[at : at + _PIECE])
            self._digest.update(block)
            self._size += len(block)

    def commit(self, final: Path) -> Stored:
        """Bring it to the disk, and only then to its name. `ObjectExistsError` when there is such a file."""
        with self._lock, self._opened() as file:
            file.flush()
            os.fsync(file.fileno())
            final.parent.mkdir(parents=True, exist_ok=True)
            _publish(self._path, final)
            self._final = final
            # Each of them may be new, and one that another writer has just made need not be on the disk either.
            for folder in (final.parent, final.parent.parent, final.parent.parent.parent):
                sync_folder(folder)
            return Stored(self._size, self._digest.hexdigest())

    def discard(self) -> None:
        """Remove whatever there is of it, even if it has got its name: nobody was told."""
        with self._lock:
            self._is_over = True
            if self._file is not None:
                with suppress(OSError):  # what is still to be written may not fit on the disk
                    self._file.close()
            for path in (self._path, self._final):
                if path is not None:
                    path.unlink(missing_ok=True)

    def _opened(self) -> BufferedWriter:
        if self._is_over:
            raise RuntimeError("This draft was given up.")
        if self._file is None:
            drafts = self._path.parent
            drafts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # nobody else on this machine may look into it
            drafts.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb")
        return self._file


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(draft: Path, final: Path) -> None:
    """A link, unlike a rename, never replaces what another writer has put there."""
    try:
        os.link(draft, final)
    except FileExistsError:
        raise ObjectExistsError from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without links. Keys are random, so hardly anybody is between these two.
        if final.exists():
            raise ObjectExistsError from None
        draft.rename(final)
    else:
        draft.unlink()
