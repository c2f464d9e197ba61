"""Memory does not grow with the file, neither in nor out, in a process that does nothing else."""

import subprocess
import sys

import pytest

from tests.azurite_server import AzuriteServer
from tests.services.storages import azurite

__all__ = ["azurite"]

PASSES = """
import asyncio, sys
from pathlib import Path
from app.services.azure_storage import AzureStorage
from app.services.folder_storage import FolderStorage

KEY = "3f/a0/3fa0c1d2e3f405162738495a6b7c8d9e.original"
MEGABYTES = 200

def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024

async def zeros(megabytes):
    for _ in range(16 * megabytes):
        yield bytes(64 * 1024)

async def pass_through(storage, key, megabytes):
    await storage.write(key, zeros(megabytes))
    size = 0
    async for chunk in storage.read(key):
        size += len(chunk)
    assert size == megabytes * 1024 * 1024

async def main(kind, place):
    if kind == "folder":
        storage = FolderStorage(Path(place))
    else:
        storage = AzureStorage.of_connection_string(place, "memory")
    await storage.open()
    await pass_through(storage, KEY.replace("original", "warm"), 1)
    before = peak()
    await pass_through(storage, KEY, MEGABYTES)
    print(peak() - before)
    await storage.close()

asyncio.run(main(*sys.argv[1:]))
"""


def growth(kind: str, place: str) -> int:
    """By how many megabytes 200 of them raise the most that the process ever took."""
    command = [sys.executable, "-c", PASSES, kind, place]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)  # noqa: S603


def test_does_not_grow_in_a_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert growth("folder", str(tmp_path_factory.mktemp("uploads"))) < 24


def test_does_not_grow_with_azure(azurite: AzuriteServer) -> None:
    assert growth("azure", azurite.connection) < 64
