"""What API keys are used for: written every few seconds by each process, and at its end."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import ConflictError, InvalidContentError
from app.core.key_usage import MAX_COUNTS, Counts, gathered
from app.core.logging_config import get_logger
from app.core.principal import Principal
from app.core.scopes import Scope
from app.core.tasks import is_cancelled, try_to_the_last
from app.crud import crud_api_key, crud_key_usage
from app.db.mongo import transactional
from app.schemas.key_usage import Bucket, KeyUsageQuery, KeyUsageRead

_FLUSH_EVERY_SECONDS: Final = 8  # what is promised is 10
_BATCH: Final = 500
_STEP: Final = {Bucket.HOUR: timedelta(hours=1), Bucket.DAY: timedelta(days=1)}
_LONGEST: Final = {Bucket.HOUR: timedelta(days=31), Bucket.DAY: timedelta(days=400)}
_USUAL: Final = {Bucket.HOUR: timedelta(days=1), Bucket.DAY: timedelta(days=30)}

_log = get_logger(__name__)


class _Batch(NamedTuple):
    """Counts under an id by which the database knows whether they were added."""

    id: ObjectId
    counts: Counts


class _State:
    """The batch that is being written. It stays, with its id, until the database has it for certain."""

    batch: _Batch | None = None


async def flush_forever() -> None:
    """Write what was counted every few seconds, until cancelled."""
    while not is_cancelled():
        await asyncio.sleep(_FLUSH_EVERY_SECONDS)
        await flush()


async def flush_last() -> None:
    """Write what was counted before this process ends, as often as it takes, or as there is time for."""
    if not await try_to_the_last(flush):
        _log.error("key_usage_lost", requests=_give_up())


async def flush() -> bool:
    """Write what was counted: whether all of it is written. What can't be now is kept for the next time."""
    if lost := gathered.take_lost():
        _log.warning("key_usage_lost", requests=lost)
    try:
        while not is_cancelled() and (batch := _State.batch or _next_batch()) is not None:
            _State.batch = batch
            await crud_key_usage.open_hours(batch.counts)
            await _add_once(batch)
            await crud_key_usage.note_last_uses(batch.counts)
            _State.batch = None
    except Exception as error:  # noqa: BLE001 - the database is away, say: the next time may find it
        _log.warning("key_usage_not_written", error=type(error).__name__)
        return False
    return not is_cancelled()


def pending() -> int:
    """How many hours of keys are counted and not known to be written."""
    return len(gathered) + (len(_State.batch.counts) if _State.batch else 0)


async def usage_of(api_key_id: ObjectId, query: KeyUsageQuery, *, by: Principal) -> list[KeyUsageRead]:
    """What was asked with a key in each hour or day of a time, the idle ones included."""
    key = await crud_api_key.require(api_key_id, owner_id=by.owner_filter(Scope.ADMIN))
    try:
        begin, end = _span(query)
    except OverflowError as error:
        raise _bad("to", "is beyond the calendar") from error
    counts = await crud_key_usage.by_bucket(key.id, begin=begin, end=end, unit=query.bucket)
    idle = {"requests": 0, "denied": 0}
    return [KeyUsageRead(start=start, **counts.get(start, idle)) for start in _starts(begin, end, _STEP[query.bucket])]


@transactional
async def _add(batch: _Batch) -> None:
    await crud_key_usage.add(batch.id, batch.counts)


async def _add_once(batch: _Batch) -> None:
    """Add the counts, unless they were: whoever tries again may not have heard that it went well."""
    try:
        await _add(batch)
    except ConflictError:
        _log.info("key_usage_written_before", batch=str(batch.id))


def _next_batch() -> _Batch | None:
    counts = gathered.take(_BATCH)
    return _Batch(ObjectId(), counts) if counts else None


def _give_up() -> int:
    """Forget what is not known to be written. How many requests those are, at most."""
    batches = [_State.batch.counts if _State.batch else {}, gathered.take(MAX_COUNTS)]
    _State.batch = None
    return gathered.take_lost() + sum(count.requests for counts in batches for count in counts.values())


def _span(query: KeyUsageQuery) -> tuple[datetime, datetime]:
    """Whole buckets that hold the time that was asked for, or the latest ones."""
    step = _STEP[query.bucket]
    end = query.end or utc_now()
    begin = query.begin or end - _USUAL[query.bucket]
    if begin >= end:
        raise _bad("from", "must be before `to`")
    if end - begin > _LONGEST[query.bucket]:
        raise _bad("from", f"must be at most {_LONGEST[query.bucket].days} days before `to`")
    floor = _floor(end, query.bucket)
    return _floor(begin, query.bucket), floor if floor == end else floor + step


def _floor(moment: datetime, bucket: Bucket) -> datetime:
    hour = moment.replace(minute=0, second=0, microsecond=0)
    return hour if bucket is Bucket.HOUR else hour.replace(hour=0)


def _starts(begin: datetime, end: datetime, step: timedelta) -> Iterator[datetime]:
    while begin < end:
        yield begin
        begin += step


def _bad(parameter: str, message: str) -> InvalidContentError:
    return InvalidContentError(errors=[{"loc": ("query", parameter), "msg": message, "type": "value_error"}])
