"""Opening the database as the settings say, for the application and for scripts alike."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from app.core.config import Settings
from app.db.command_listener import CommandMeter
from app.db.embedded import embedded_server
from app.db.mongo import connected


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[None]:
    """Start or join the embedded server when that is the database, and connect.

    `EmbeddedServerError` when there is no server to start.
    """
    with ExitStack() as stack:
        url = settings.database_url.get_secret_value()
        if settings.is_embedded:
            server = embedded_server(settings.data_dir, settings.mongod_path)
            url = await asyncio.to_thread(stack.enter_context, server)
        async with connected(url, *([CommandMeter()] if settings.is_watched else [])):
            yield
