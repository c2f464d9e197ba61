"""Whether everything answers that a request needs. A crowd that asks is one question to database and storage."""

import asyncio
from typing import NamedTuple

from app.core.exceptions import StorageUnavailableError
from app.core.shared_answer import SharedAnswer
from app.db.mongo import is_answering
from app.services.storage import get_storage

REMEMBERED_SECONDS = 1.0
_PING_SECONDS = 2.0


class Checks(NamedTuple):
    """What answers."""

    database: bool
    storage: bool


def new_check() -> SharedAnswer[Checks]:
    return SharedAnswer(_check, seconds=REMEMBERED_SECONDS)


async def _check() -> Checks:
    return Checks(*await asyncio.gather(_database_answers(), _storage_answers()))


async def _database_answers() -> bool:
    try:
        async with asyncio.timeout(_PING_SECONDS):
            return await is_answering()
    except TimeoutError:
        return False


async def _storage_answers() -> bool:
    try:
        async with asyncio.timeout(_PING_SECONDS):
            await get_storage().check()
    except (TimeoutError, StorageUnavailableError):
        return False
    return True
