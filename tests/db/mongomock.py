"""The documents on a database in memory, for what needs no server. It has no sessions, change streams or commands."""

from typing import Any

from beanie import init_beanie
from mongomock_motor import AsyncMongoMockClient

from app.db.schema import DOCUMENT_MODELS


async def bind_in_memory() -> Any:
    """Bind the documents to an empty database in memory, with their indexes."""
    database: Any = AsyncMongoMockClient(tz_aware=True)["unit"]
    names = database.list_collection_names

    async def list_collection_names(**_: Any) -> list[str]:
        return [str(name) for name in await names()]

    # Beanie 2 asks as one asks PyMongo's asynchronous client; mongomock-motor knows none of its keywords.
    database.list_collection_names = list_collection_names
    await init_beanie(database, document_models=DOCUMENT_MODELS)
    return database
