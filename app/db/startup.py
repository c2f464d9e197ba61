"""Opening the database as the settings say, for the application and for scripts alike."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from app.core.config import Settings
from app.db.command_listener import CommandMeter
from app.db.embedded import embedded_server
from app.db.migrator import SchemaError, ensure_schema
from app.db.mongo import connected, patient
from app.db.restore_state import RestoreUnfinishedError


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[None]:
    """Start or join the embedded server when that is the database, and connect.

    `EmbeddedServerError` when there is no server to start, `SchemaError` when this code can't work on its schema.
    """
    migrates, listeners = settings.migrate_on_start, [CommandMeter()] if settings.is_watched else []
    async with _server(settings) as url, connected(url, migrates=migrates, listeners=listeners):
        yield


@asynccontextmanager
async def open_as_it_is(settings: Settings) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
    """The same database, whatever its schema: for what changes that."""
    async with _server(settings) as url, patient(url) as database:
        yield database


async def prepare_database(settings: Settings) -> str | None:
    """Bring its schema up to date before there are workers, or give the reason why that can't be.

    Workers would find out too, each by itself. That it does not answer, they say.
    """
    with suppress(PyMongoError):
        try:
            async with open_as_it_is(settings) as database:
                await ensure_schema(database, migrates=settings.migrate_on_start)
        except (RestoreUnfinishedError, SchemaError) as error:
            return str(error)
    return None


@asynccontextmanager
async def _server(settings: Settings) -> AsyncIterator[str]:
    with ExitStack() as stack:
        url = settings.database_url.get_secret_value()
        if settings.is_embedded:
            server = embedded_server(settings.data_dir, settings.mongod_path)
            url = await asyncio.to_thread(stack.enter_context, server)
        yield url
