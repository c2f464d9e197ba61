"""The real database, and the whole application over it. One empty database per test."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from beanie import init_beanie
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from pymongo import MongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.database import Database
from pymongo.monitoring import CommandListener

from app.core.config import Settings
from app.db import change_feed, mongo, startup
from app.db.embedded import embedded_server, try_lock
from app.main import create_app
from app.models.audit_event import AuditEvent
from tests import leaks
from tests.commands import Commands
from tests.driver import close_what_is_given_up, close_what_was_lost
from tests.mailbox import Mailbox, open_mailbox
from tests.measuring import measured

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


class SettingsOfTests(Settings):
    """The settings, with nothing from the environment of whoever runs the tests."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        WATCH.made(*leaks.secrets_of(dict(self)))


close_what_is_given_up()

# An application that stops waits for the next word of the change feed. Here a thousand of them stop.
change_feed.WORD_EVERY_MS = 25

_is_beanie_ready = False


async def _bind_documents(database: AsyncDatabase[dict[str, Any]], **options: Any) -> None:
    """What Beanie learns of the documents is the same for every application: a process learns it once."""
    global _is_beanie_ready  # noqa: PLW0603 - as Beanie's own state
    if not _is_beanie_ready:
        await init_beanie(database, **options)
        _is_beanie_ready = True
    for model in options["document_models"]:
        model.set_database(database)
        model.set_collection(database[model.get_collection_name()])


mongo.init_beanie = _bind_documents  # type: ignore[assignment, attr-defined]

# Files of which a test takes many seconds, besides those of servers (`…_server.py`).
LONG = {
    *("test_adding_a_feature.py", "test_architecture.py", "test_audit_chain.py", "test_commands.py", "test_compose.py"),
    *("test_docs_commands.py", "test_drill.py", "test_embedded.py", "test_errors.py", "test_integration_page.py"),
    *("test_kills.py", "test_mail_service.py", "test_migrate.py", "test_openapi_conformance.py"),
    *("test_project_files.py", "test_purge.py", "test_storage_memory.py"),
}

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

# What this process logs, and the secrets it makes: the end of the run looks for these in the logs of all.
_WATCHED = TEST_HOME / "watched"
WATCH = leaks.Watch(_WATCHED, f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}-{os.getpid()}")
leaks.install(WATCH)
WATCH.made(SECRET, ENCRYPTION_KEY, PRODUCTION["bootstrap_token"])


def pytest_configure(config: pytest.Config) -> None:
    """Remove what runs have left that were killed: folders whose server nobody uses any more."""
    config.pluginmanager.register(leaks.Plugin(WATCH, _WATCHED if _MADE_HERE else None))
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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Every worker finds all tests and loads the same for them: of one it is measured."""
    is_first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    with measured("collection", times=int(is_first)):
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each worker begin with its share of what takes long, so that nobody waits for that in the end."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if _is_long(item.path.name)]
    others = [item for item in items if not _is_long(item.path.name)]
    ends = [len(others) * at // workers for at in range(workers + 1)]
    items[:] = []
    for at in range(workers):
        items += [*long[at::workers], *others[ends[at] : ends[at + 1]]]


def _is_long(name: str) -> bool:
    return name in LONG or name.endswith("_server.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        close_what_was_lost()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Of tests that begin alike, what comes before them is measured once."""
    with measured(f"before {_beginning(item)}", times=1):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Of a test with many parameters one is measured: the figures are a little smaller for it, and differ a little."""
    with measured(item.nodeid.partition("[")[0], times=1):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    with measured(f"after {_beginning(item)}", times=1):
        return (yield)


def _beginning(item: pytest.Item) -> str:
    """The fixtures that the test begins with, as its module and its class see them."""
    names: list[str] = getattr(item, "fixturenames", [])
    return f"{item.nodeid.rpartition('::')[0]} {sorted(names)}"


@pytest.fixture(scope="session")
def mongodb() -> Iterator[MongoClient[dict[str, Any]]]:
    """One server for the whole run."""
    with embedded_server(TEST_HOME) as url, MongoClient[dict[str, Any]](url) as client:
        # What a process was doing that a test killed keeps others out until then, else for a minute.
        client.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=20)
        # What has expired goes by itself once a minute, or in the middle of a test.
        client.admin.command("setParameter", 1, ttlMonitorEnabled=False)
        yield client


@pytest.fixture(autouse=True)
def logs_of_this_test() -> Iterator[None]:
    """Whatever a test made of the log, which may lead to a file that is closed behind it, the next begins anew."""
    yield
    structlog.reset_defaults()


# What a database says of its schema and its indexes, in `installation`.
MARKS = ["indexes", "schema"]


@pytest.fixture
def database_url(mongodb: MongoClient[dict[str, Any]]) -> str:
    """The URL of a database without documents. The indexes of the last test stay, so that tests are fast."""
    name = f"test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    database = mongodb[name]
    for collection in _filled(database):
        database[collection].delete_many({"_id": {"$nin": MARKS}})
    host, port = mongodb.address or ("127.0.0.1", 27017)
    replica_set = mongodb.options.replica_set_name
    return f"mongodb://{host}:{port}/{name}?replicaSet={replica_set}"


def _filled(database: Database[dict[str, Any]]) -> list[str]:
    """Which collections hold documents, in one question: a test fills few of them.

    By the counts that the server keeps. To look for a document it would step over all that earlier tests have deleted.
    """
    names = database.list_collection_names()
    if not names:
        return []
    counted: list[dict[str, Any]] = [{"$collStats": {"count": {}}}]
    others = [{"$unionWith": {"coll": name, "pipeline": counted}} for name in names[1:]]
    found = database[names[0]].aggregate([*counted, *others])
    return [row["ns"].partition(".")[2] for row in found if row["count"]]


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
        return SettingsOfTests(**{**defaults, **overrides})

    return make


@pytest.fixture
def serve(make_settings: Callable[..., Settings]) -> Serve:
    """Serve the application with settings of the test's own.

    `async with serve(registration="closed") as client: ...`
    """

    @asynccontextmanager
    async def start(*, address: str = "127.0.0.1", **overrides: Any) -> AsyncIterator[AsyncClient]:
        names = " ".join(sorted(overrides))
        async with AsyncExitStack() as stack:
            with measured(f"start {names}", times=2):
                app = create_app(make_settings(**overrides))
                await stack.enter_async_context(running(app))
                client = await stack.enter_async_context(client_of(app, address))
            yield client
            with measured(f"stop {names}", times=2):
                await stack.aclose()

    return start


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests to applications that are started afterwards wait for the database as long as a busy machine needs.

    For crowds of which every one must get its answer, and none may be told to come back.
    """
    minute = {name: 60_000 for name in mongo._CLIENT_OPTIONS if name.endswith("TimeoutMS")}
    monkeypatch.setattr(mongo, "_CLIENT_OPTIONS", {**mongo._CLIENT_OPTIONS, **minute})
    monkeypatch.setattr(mongo, "_TRANSACTION_SECONDS", 60.0)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Sees what applications that are started afterwards ask of the database."""
    listener = Commands()

    def connected(
        url: str, *, migrates: bool, listeners: Sequence[CommandListener]
    ) -> AbstractAsyncContextManager[Any]:
        return mongo.connected(url, migrates=migrates, listeners=[*listeners, listener])

    monkeypatch.setattr(startup, "connected", connected)
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
