"""Both storages, and what tests put into them."""

import random
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.services.azure_storage import AzureStorage
from app.services.folder_storage import FolderStorage
from app.services.storage import Storage
from tests.azurite_server import AzuriteServer, running_azurite


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzuriteServer]:
    """One server for the whole run; each test has a container of its own."""
    with running_azurite() as server:
        yield server


@pytest.fixture(params=["folder", "azure"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    opened = (
        folder_storage(tmp_path) if request.param == "folder" else azure_storage(request.getfixturevalue("azurite"))
    )
    async with opened as storage:
        yield storage


@asynccontextmanager
async def folder_storage(folder: Path) -> AsyncIterator[FolderStorage]:
    storage = FolderStorage(folder / "uploads")
    await storage.open()
    yield storage
    await storage.close()


@asynccontextmanager
async def azure_storage(server: AzuriteServer) -> AsyncIterator[AzureStorage]:
    storage = AzureStorage.of_connection_string(server.connection, f"test-{secrets.token_hex(8)}")
    await storage.open()
    yield storage
    await storage.close()


def random_bytes(size: int) -> bytes:
    return random.randbytes(size)  # noqa: S311 - content, no secret


async def chunks_of(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


async def read_all(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])
