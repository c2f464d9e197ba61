"""Objects as files of a folder: `uploads/3f/a0/3fa0….original`.

Everything that touches the disk runs in threads of its own, few of them, so that a slow disk holds up uploads only.
"""

import asyncio
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Final, TypeVar

from app.core.chunks import blocks_of, work_on
from app.core.exceptions import ObjectNotFoundError, StorageUnavailableError
from app.core.stored_object import DirectUpload, Stored, StoredObject, is_key, require_key, require_stem
from app.services.folder_draft import Draft, sync_folder

R = TypeVar("R")

_THREADS: Final = 8
_BLOCK: Final = 1024 * 1024
_PATIENCE: Final = 4.0  # seconds for a look at the disk: a request is answered within 5 s
_WRITING: Final = 60.0  # seconds for a block, or for bringing a file to the disk: a busy one is slow, not away
_SHARD: Final = 2  # digits
_IS_SHARD: Final = re.compile("[0-9a-f]{2}")


class FolderStorage:
    """See `Storage` for what each method promises."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drafts = folder / "drafts"
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage")

    async def open(self) -> None:
        """Nothing to do: the first write makes the folder."""

    async def close(self) -> None:
        self._threads.shutdown(wait=False)  # what is to be closed or removed still is

    async def check(self) -> None:
        if not await self._run(_can_write, self._drafts):
            raise StorageUnavailableError(error="the folder can't be written to")

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> Stored:
        draft, final = Draft(self._drafts / secrets.token_hex(16)), self._path(key)
        try:
            async with aclosing(blocks_of(chunks, _BLOCK)) as blocks:
                # One at a time, since they have an order; meanwhile the next one comes in.
                await work_on(blocks, lambda block: self._run(draft.append, block, seconds=_WRITING), at_once=1)
            return await self._run(draft.commit, final, seconds=_WRITING)
        except BaseException:
            with suppress(StorageUnavailableError, RuntimeError):  # what can't be removed now is swept later
                await asyncio.shield(self._run(draft.discard, seconds=_WRITING))
            raise

    async def read(self, key: str, *, first: int = 0, last: int | None = None) -> AsyncIterator[bytes]:
        source = _Source(self._path(key))
        try:
            while chunk := await self._run(
                source.read, first, _BLOCK if last is None else min(_BLOCK, last - first + 1)
            ):
                first += len(chunk)
                yield chunk
        finally:
            with suppress(RuntimeError):  # the process ends
                self._threads.submit(source.close)

    async def stat(self, key: str) -> StoredObject | None:
        return await self._run(_look_at, key, self._path(key))

    async def delete(self, key: str) -> None:
        await self._run(_remove, self._path(key))

    async def delete_all(self, stem: str) -> None:
        shard = (self._folder / require_stem(stem)).parent
        await self._run(_remove_all, shard, stem.rpartition("/")[2] + ".")

    async def objects(self, *, after: str = "") -> AsyncIterator[StoredObject]:
        for shard in await self._run(self._shards, self._folder, after[:_SHARD]):
            begin = after[_SHARD + 1 : 2 * _SHARD + 1] if shard.name == after[:_SHARD] else ""
            for folder in await self._run(self._shards, shard, begin):
                for found in await self._run(self._objects, folder):
                    if found.key > after:
                        yield found

    async def sweep(self, *, before: datetime) -> int:
        return await self._run(_remove_older, self._drafts, before.timestamp(), seconds=_WRITING)

    async def signed_url(self, key: str, *, expires_at: datetime, content_type: str, disposition: str) -> str | None:  # noqa: ARG002
        """None: a folder has no address. The API signs links to itself."""
        require_key(key)
        return None

    async def direct_upload(self, key: str, *, expires_at: datetime) -> DirectUpload | None:  # noqa: ARG002
        require_key(key)
        return None

    def _path(self, key: str) -> Path:
        return self._folder / require_key(key)

    def _shards(self, folder: Path, begin: str) -> list[Path]:
        if not folder.exists():
            return []
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if _IS_SHARD.fullmatch(each.name) and each.is_dir()]
        return [folder / name for name in sorted(names) if name >= begin]

    def _objects(self, folder: Path) -> list[StoredObject]:
        names = (
            f"{folder.parent.name}/{folder.name}/{name}" for name in sorted(path.name for path in folder.iterdir())
        )
        found = (_look_at(key, self._folder / key) for key in names if is_key(key))
        return [each for each in found if each is not None]  # one may have gone since

    async def _run(self, work: Callable[..., R], *arguments: object, seconds: float = _PATIENCE) -> R:
        """In a thread. Whoever is cancelled, or out of patience, does not stop it."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        except (OSError, TimeoutError) as error:
            raise StorageUnavailableError(error=str(error) or type(error).__name__) from error


class _Source:
    """A file that is read by threads one after the other, whether or not somebody still waits for what they read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._file: FileIO | None = None
        self._is_over = False

    def read(self, first: int, size: int) -> bytes:
        with self._lock:
            if self._is_over or size <= 0:
                return b""
            if self._file is None:
                try:
                    self._file = FileIO(self._path, opener=_without_links)
                except FileNotFoundError:
                    raise ObjectNotFoundError from None
            return os.pread(self._file.fileno(), size, first)

    def close(self) -> None:
        with self._lock:
            self._is_over = True
            if self._file is not None:
                self._file.close()


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _can_write(folder: Path) -> bool:
    """Whether there is such a folder, or the first write can make it."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def _look_at(key: str, path: Path) -> StoredObject | None:
    try:
        known = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(known.st_mode):
        return None
    return StoredObject(key, known.st_size, datetime.fromtimestamp(known.st_mtime, UTC))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    if path.parent.exists():
        sync_folder(path.parent)


def _remove_all(shard: Path, beginning: str) -> None:
    if shard.exists():
        for path in shard.iterdir():
            if path.name.startswith(beginning):
                path.unlink(missing_ok=True)
        sync_folder(shard)


def _remove_older(folder: Path, than: float) -> int:
    removed = 0
    for path in folder.iterdir() if folder.exists() else ():
        with suppress(FileNotFoundError):  # its writer has come to an end
            if path.lstat().st_mtime < than:
                path.unlink()
                removed += 1
    return removed
