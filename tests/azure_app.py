"""The application on Azure Blob Storage, or on either storage, for tests that speak to it."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from httpx import AsyncClient, Response
from pydantic import SecretStr

from tests.azurite_server import AzuriteServer, running_azurite
from tests.conftest import Serve

HOME = "https://files.example"

ServeStorage = Callable[..., AbstractAsyncContextManager[AsyncClient]]


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzuriteServer]:
    with running_azurite() as server:
        yield server


@pytest.fixture
def serve_azure(serve: Serve, azurite: AzuriteServer) -> ServeStorage:
    """Each application with a container of its own."""

    def start(**settings: object) -> AbstractAsyncContextManager[AsyncClient]:
        return serve(
            public_url=HOME,
            azure_storage_connection_string=SecretStr(azurite.connection),
            azure_storage_container=f"test-{secrets.token_hex(8)}",
            **settings,
        )

    return start


@pytest.fixture(params=["folder", "azure"])
def serve_either(request: pytest.FixtureRequest, serve: Serve) -> ServeStorage:
    if request.param == "azure":
        start: ServeStorage = request.getfixturevalue("serve_azure")
        return start
    return lambda **settings: serve(public_url=HOME, **settings)


@pytest.fixture
async def client(serve_either: ServeStorage) -> AsyncIterator[AsyncClient]:
    """The application on either storage."""
    async with serve_either() as client:
        yield client


@pytest.fixture
async def home(serve: Serve) -> AsyncIterator[AsyncClient]:
    """The application on a folder, to which it signs links itself."""
    async with serve(public_url=HOME) as client:
        yield client


async def follow(client: AsyncClient, url: str, **headers: str) -> Response:
    """As somebody who has nothing but the link."""
    return await ask(client, "GET", url, headers=headers)


async def ask(client: AsyncClient, method: str, url: str, **more: Any) -> Response:
    if url.startswith(HOME):
        return await client.request(method, url.removeprefix(HOME), **more)
    async with AsyncClient() as stranger:
        return await stranger.request(method, url, **more)
