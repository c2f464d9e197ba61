"""A disk that is soon full."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_BLOCK = 64 * 1024


class SmallDisk:
    """A file system of its own, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, *, but: int = 0) -> None:
        """Leave so many bytes, and no more."""
        with self._filler.open("ab") as filler:
            while (free := self.free() - but) > 0:
                filler.write(b"x" * min(_BLOCK, free))
                filler.flush()

    def empty(self) -> None:
        self._filler.unlink()

    def free(self) -> int:
        usage = os.statvfs(self.folder)
        return usage.f_bavail * usage.f_frsize

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and path != self._filler]


@contextmanager
def small_disk(megabytes: int) -> Iterator[SmallDisk]:
    """One of that size, gone after the block. It takes the right to mount, which a CI must grant."""
    folder = Path(tempfile.mkdtemp(prefix="oct-disk-"))
    program = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size={megabytes}m,mode=0777"
    try:
        mounted = subprocess.run(  # noqa: S603 - programs of the system
            [*program, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
    except FileNotFoundError:
        mounted = None
    try:
        if mounted is None or mounted.returncode:
            missing = "A file system of a test can't be mounted here."
            if os.environ.get("CI") == "true":
                pytest.fail(missing)
            pytest.skip(missing)
        yield SmallDisk(folder)
    finally:
        if mounted is not None and not mounted.returncode:
            subprocess.run([*program, "umount", "--lazy", str(folder)], check=True)  # noqa: S603
        shutil.rmtree(folder, ignore_errors=True)
