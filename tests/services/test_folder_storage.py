"""What only a folder can meet: a full disk, a dead process, a disk that hangs, strange files."""

import asyncio
import errno
import os
import resource
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from app.core.clock import utc_now
from app.core.exceptions import ObjectExistsError, StorageUnavailableError
from app.services.folder_storage import FolderStorage
from tests.services.storages import chunks_of, folder_storage, random_bytes, read_all

KEY = "3f/a0/3fa0c1d2e3f405162738495a6b7c8d9e.original"
# Writes 5 MB of an endless upload, says so, and waits to be killed.
DIES = """
import asyncio, sys
from pathlib import Path
from app.services.folder_storage import FolderStorage

async def endless():
    for _ in range(5):
        yield bytes(1024 * 1024)
    while not list(Path(sys.argv[1]).glob("uploads/drafts/*")):
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(FolderStorage(Path(sys.argv[1]) / "uploads").write(sys.argv[2], endless()))
"""


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[FolderStorage]:
    async with folder_storage(tmp_path) as storage:
        yield storage


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


class TestFiles:
    async def test_are_under_their_keys_and_nobody_elses(self, storage: FolderStorage, tmp_path: Path) -> None:
        await storage.write(KEY, chunks_of(b"private"))

        uploads = tmp_path / "uploads"
        assert files_in(uploads) == [KEY]
        assert stat.S_IMODE(uploads.stat().st_mode) == 0o700
        assert stat.S_IMODE((uploads / KEY).stat().st_mode) == 0o600

    async def test_that_are_no_objects_are_passed_over(self, storage: FolderStorage, tmp_path: Path) -> None:
        await storage.write(KEY, chunks_of(b"x"))
        uploads = tmp_path / "uploads"
        (uploads / "3f" / "README").write_text("a stranger")
        (uploads / "ab").write_text("no folder")
        (uploads / "3f" / "a0" / ".DS_Store").write_text("a stranger")

        assert [found.key async for found in storage.objects()] == [KEY]

    async def test_are_not_followed_elsewhere(self, storage: FolderStorage, tmp_path: Path) -> None:
        await storage.write(KEY, chunks_of(b"x"))
        secret = tmp_path / "secret"
        secret.write_text("of the host")
        (tmp_path / "uploads" / KEY).unlink()
        (tmp_path / "uploads" / KEY).symlink_to(secret)

        assert await storage.stat(KEY) is None
        with pytest.raises(StorageUnavailableError):
            await anext(storage.read(KEY))

    async def test_are_committed_where_there_are_no_links(
        self, storage: FolderStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)

        await storage.write(KEY, chunks_of(b"first"))
        with pytest.raises(ObjectExistsError):
            await storage.write(KEY, chunks_of(b"second"))

        assert await read_all(storage.read(KEY)) == b"first"
        assert files_in(tmp_path / "uploads") == [KEY]


class TestFullDisk:
    async def test_is_told_and_nothing_stays(self, storage: FolderStorage, tmp_path: Path) -> None:
        """The kernel itself refuses the third megabyte."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, before[1]))
        try:
            with pytest.raises(StorageUnavailableError) as refusal:
                await storage.write(KEY, chunks_of(random_bytes(6_000_000)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        assert "File too large" in str(refusal.value.context["error"])
        assert files_in(tmp_path / "uploads") == []

    async def test_at_the_last_step_takes_even_the_name_back(
        self, storage: FolderStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("app.services.folder_draft.sync_folder", refuse)

        with pytest.raises(StorageUnavailableError):
            await storage.write(KEY, chunks_of(b"nearly stored"))

        assert files_in(tmp_path / "uploads") == []


class TestDeadWriter:
    async def test_leaves_a_draft_that_is_swept_when_it_is_old(self, storage: FolderStorage, tmp_path: Path) -> None:
        command = [sys.executable, "-c", DIES, str(tmp_path), KEY]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220, S603
        with writer:
            assert writer.stdout is not None
            assert await asyncio.to_thread(writer.stdout.readline) == "ready\n"
            writer.kill()

        left = files_in(tmp_path / "uploads")
        assert [Path(name).parent.name for name in left] == ["drafts"]
        assert await storage.stat(KEY) is None
        assert [found async for found in storage.objects()] == []

        swept = [await storage.sweep(before=utc_now() + timedelta(hours=hours)) for hours in (-1, 1)]

        assert swept == [0, 1]
        assert files_in(tmp_path / "uploads") == []
        assert (await storage.write(KEY, chunks_of(b"again"))).size == 5


class TestDiskThatHangs:
    async def test_does_not_keep_anybody_waiting(
        self, storage: FolderStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A pipe without a writer: whoever opens it waits, as with a network file system that is away."""
        monkeypatch.setattr(FolderStorage._run, "__kwdefaults__", {"seconds": 0.2})
        pipe = tmp_path / "uploads" / KEY
        pipe.parent.mkdir(parents=True)
        os.mkfifo(pipe)

        try:
            with pytest.raises(StorageUnavailableError) as refusal:
                async with asyncio.timeout(3):
                    await anext(storage.read(KEY))
        finally:
            os.close(os.open(pipe, os.O_WRONLY))  # lets the thread go

        assert refusal.value.context["error"] == "TimeoutError"


class TestCheck:
    async def test_passes_before_the_first_write_and_writes_nothing(
        self, storage: FolderStorage, tmp_path: Path
    ) -> None:
        await storage.check()

        assert os.listdir(tmp_path) == []  # noqa: PTH208

    async def test_fails_where_nothing_can_be_written(self, storage: FolderStorage, tmp_path: Path) -> None:
        (tmp_path / "uploads").write_text("a file stands where the folder should be")

        with pytest.raises(StorageUnavailableError):
            await storage.check()
        with pytest.raises(StorageUnavailableError):
            await storage.write(KEY, chunks_of(b"x"))
