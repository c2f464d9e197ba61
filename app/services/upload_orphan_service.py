"""What is on one side only: bytes in the storage that no upload has, and uploads whose bytes are gone.

Both sides are walked together, in the order of the stems. It tells and removes nothing: what nobody knows of may be
what a backup of the database is about to know of again.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, cast

from app.core.clock import utc_now
from app.core.logging_config import get_logger
from app.core.stored_object import StoredObject, key_of
from app.crud import crud_upload
from app.db.mongo import Raw
from app.models.enums import UploadStatus
from app.services.storage import get_storage

_BATCH: Final = 500
_SHOWN: Final = 20
_OLD: Final = timedelta(days=1)  # what is younger may be on its way in, or out

_log = get_logger(__name__)


class Orphans(NamedTuple):
    """How many objects were seen, how many of them (and bytes) no upload has, and how many uploads lack theirs."""

    objects: int
    unowned: int
    unowned_bytes: int
    missing: int


async def find_orphans() -> Orphans:
    before, after = utc_now() - _OLD, ""
    seen, unowned_bytes, unowned, missing = 0, 0, _Named(), _Named()
    async for batch in _batches():
        seen += len(batch)
        nobodys = await _unowned(batch, before)
        unowned.add(each.key for each in nobodys)
        unowned_bytes += sum(each.size for each in nobodys)
        until = _stem(batch[-1])
        async for ids in _missing(after, until, {each.key for each in batch}, before):
            missing.add(ids)
        after = until
    async for ids in _missing(after, None, set(), before):
        missing.add(ids)
    if unowned.count or missing.count:
        _log.warning("orphans_found", objects=unowned.first, uploads=missing.first)
    return Orphans(seen, unowned.count, unowned_bytes, missing.count)


class _Named:
    """How many there are, and what the first of them are called."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, names: Iterable[str]) -> None:
        for name in names:
            self.count += 1
            if len(self.first) < _SHOWN:
                self.first.append(name)


async def _batches() -> AsyncIterator[list[StoredObject]]:
    batch = []
    async for each in get_storage().objects():
        batch.append(each)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _unowned(batch: Sequence[StoredObject], before: datetime) -> list[StoredObject]:
    old = [each for each in batch if each.modified_at < before]
    owned = await crud_upload.owned_stems({_stem(each) for each in old}) if old else set()
    return [each for each in old if _stem(each) not in owned]


async def _missing(after: str, until: str | None, keys: set[str], before: datetime) -> AsyncIterator[list[str]]:
    """The ids of the clean uploads of a stretch whose object is not among these keys, and is not there after all."""
    while rows := await crud_upload.by_stem(after=after, until=until, limit=_BATCH):
        settled = [row for row in rows if row["status"] == UploadStatus.CLEAN and _time(row) < before]
        doubtful = [row for row in settled if key_of(row["stem"]) not in keys]
        yield [str(row["_id"]) for row in doubtful if await get_storage().stat(key_of(row["stem"])) is None]
        after = rows[-1]["stem"]


def _time(row: Raw) -> datetime:
    return cast("datetime", row["updated_at"]).replace(tzinfo=UTC)


def _stem(each: StoredObject) -> str:
    return each.key.rpartition(".")[0]
