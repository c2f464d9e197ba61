"""The real database, and the whole application over it. One empty database per test."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from pymongo import MongoClient

from app.core.config import Settings
from app.db import change_feed, mongo
from app.db.embedded import embedded_server, try_lock
from app.main import create_app
from app.models.audit_event import AuditEvent
from tests.commands import Commands
from tests.mailbox import Mailbox, open_mailbox

SECRET = "kJ2vN8qLx4TzR7wYc1MfHs6BpD3gUaE9"
ENCRYPTION_KEY = "7Vh1cX0rPq2dQm5T8sKjW3uYzLb6NfGa9HeRiOoUxCk="
# What production asks for besides secrets. Nothing listens there.
PRODUCTION: dict[str, Any] = {
    "rate_limit_auth": "120/minute",
    "environment": "production",
    "bootstrap_token": "tok-9f2b7c41d8-3e",
    "smtp_url": "smtp://127.0.0.1:9",
    "public_url": "https://octopus.example",
    "bcrypt_rounds": 10,
}
# No limit is met by accident; the tests of limits set their own.
AMPLE = "100000/minute"

# An application that stops waits for the next word of the change feed. Here a thousand of them stop.
change_feed.WORD_EVERY_MS = 10

Serve = Callable[..., AbstractAsyncContextManager[AsyncClient]]


# The folder of the run's database, in memory where that can be, so that no disk is waited for. The workers of
# pytest-xdist inherit the variable and join the server that the first of them starts; who made the folder removes it.
_MEMORY = Path("/dev/shm")  # noqa: S108
_MADE_HERE = "OCTOPUS_TEST_HOME" not in os.environ
if _MADE_HERE:
    os.environ["OCTOPUS_TEST_HOME"] = tempfile.mkdtemp(
        prefix="octopus-test-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None
    )
TEST_HOME = Path(os.environ["OCTOPUS_TEST_HOME"])


def pytest_configure() -> None:
    """Remove what runs have left that were killed: folders whose server nobody uses any more."""
    for lock in TEST_HOME.parent.glob("octopus-test-*/mongodb/in-use.lock") if _MADE_HERE else ():
        with lock.open("w") as file:
            if try_lock(file, fcntl.LOCK_EX):
                shutil.rmtree(lock.parents[1], ignore_errors=True)


def pytest_unconfigure() -> None:
    """Remove the folder once the server has stopped, when the whole run is over."""
    if not _MADE_HERE:
        return
    lock = TEST_HOME / "mongodb" / "in-use.lock"
    if lock.exists():
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    shutil.rmtree(TEST_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def mongodb() -> Iterator[MongoClient[dict[str, Any]]]:
    """One server for the whole run."""
    with embedded_server(TEST_HOME) as url, MongoClient[dict[str, Any]](url) as client:
        yield client


@pytest.fixture(autouse=True)
def logs_of_this_test() -> Iterator[None]:
    """Whatever a test made of the log, which may lead to a file that is closed behind it, the next begins anew."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def database_url(mongodb: MongoClient[dict[str, Any]]) -> str:
    """The URL of a database without documents. The indexes of the last test stay, so that tests are fast."""
    name = f"test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    database = mongodb[name]
    for collection in database.list_collection_names():
        database[collection].delete_many({"_id": {"$ne": "indexes"}})
    host, port = mongodb.address or ("127.0.0.1", 27017)
    replica_set = mongodb.options.replica_set_name
    return f"mongodb://{host}:{port}/{name}?replicaSet={replica_set}"


@pytest.fixture
def with_lists(mongodb: MongoClient[dict[str, Any]], database_url: str) -> Iterator[None]:
    """The indexes of audit events made anew afterwards: after one list in a document the server uses them worse."""
    yield
    database = mongodb[database_url.rpartition("/")[2].partition("?")[0]]
    database.drop_collection("audit_events")
    indexes = [index.document for index in AuditEvent.Settings.indexes]
    database.command({"createIndexes": "audit_events", "indexes": indexes})


@pytest.fixture
def make_settings(database_url: str, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a test: `make_settings(registration="closed")`."""

    def make(**overrides: Any) -> Settings:
        defaults: dict[str, Any] = {
            "environment": "test",
            "database_url": database_url,
            "data_dir": tmp_path,
            "secret_key": SECRET,
            "encryption_keys": [ENCRYPTION_KEY],
            "bcrypt_rounds": 4,
            "rate_limit_anonymous": AMPLE,
            "rate_limit_auth": AMPLE,
            "rate_limit_key_create": AMPLE,
            "rate_limit_authenticated": AMPLE,
        }
        return Settings(_env_file=None, **{**defaults, **overrides})

    return make


@pytest.fixture
def serve(make_settings: Callable[..., Settings]) -> Serve:
    """Serve the application with settings of the test's own.

    `async with serve(registration="closed") as client: ...`
    """

    @asynccontextmanager
    async def start(*, address: str = "127.0.0.1", **overrides: Any) -> AsyncIterator[AsyncClient]:
        app = create_app(make_settings(**overrides))
        async with running(app), client_of(app, address) as client:
            yield client

    return start


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Sees what applications that are started afterwards ask of the database."""
    listener = Commands()
    monkeypatch.setattr(mongo, "_CLIENT_OPTIONS", {**mongo._CLIENT_OPTIONS, "event_listeners": [listener]})
    return listener


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    """A real mail server: `async with serve(smtp_url=mailbox.url) as client: ...`."""
    async with open_mailbox() as opened:
        yield opened


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[AsyncClient]:
    """The application with the settings of a test, called from 127.0.0.1."""
    async with serve() as client:
        yield client


def running(app: FastAPI) -> AbstractAsyncContextManager[Any]:
    return app.router.lifespan_context(app)


def client_of(app: FastAPI, address: str = "127.0.0.1") -> AsyncClient:
    """A client at that address. What the application raises fails the test that caused it."""
    return AsyncClient(transport=ASGITransport(app, client=(address, 50000)), base_url="http://test")


@asynccontextmanager
async def no_event_can_be_written() -> AsyncIterator[None]:
    """Have the last write of every transaction refused: what it had written before must be gone then."""
    database = AuditEvent.get_pymongo_collection().database
    await database.command("collMod", "audit_events", validator={"action": {"$exists": False}})
    try:
        yield
    finally:
        await database.command("collMod", "audit_events", validator={})


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path, gone after the test."""
    folder = Path(tempfile.mkdtemp(prefix="oct-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
