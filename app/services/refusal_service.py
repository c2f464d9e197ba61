"""Refusals in the audit trail: one event each of who is known; many in one of who is not, or of who asks too often.

What is counted is in memory for at most ten seconds, unless the database is away, and what is in memory is bounded: a
flood fills neither it nor the database. It is written in slices. The events of a slice have their ids before they are
written, so one that is written again because nobody knows how that went is there once.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Final, NamedTuple

from app.core.clock import utc_now
from app.core.context import RequestContext, current_context
from app.core.exceptions import (
    AppError,
    ConflictError,
    ForbiddenError,
    KeyQuotaExceededError,
    RateLimitedError,
    UnauthenticatedError,
)
from app.core.logging_config import get_logger
from app.core.principal import ANONYMOUS, Principal
from app.core.tasks import is_cancelled, try_to_the_last
from app.db.mongo import transactional
from app.models.audit_event import AuditEvent
from app.models.enums import AuditAction, AuditOutcome
from app.services import audit_service

FLUSH_EVERY: Final = 10.0  # seconds
# So many are told apart between two flushes that went well; the others count by their code alone.
_TOLD_APART: Final = 64
_SLICE: Final = 50  # events in one transaction
_TOO_OFTEN: Final = (RateLimitedError, KeyQuotaExceededError)

_log = get_logger(__name__)


class _Kind(NamedTuple):
    """What is counted together."""

    code: str
    ip: str | None
    minute: datetime
    by: Principal


_counts: Counter[_Kind] = Counter()


class _State:
    """The slice that is being written. It stays until the database has it for certain."""

    slice: Sequence[AuditEvent] = ()


def is_refusal(error: AppError) -> bool:
    """Whether the caller was turned away for who it is, or for asking too often."""
    return isinstance(error, (UnauthenticatedError, ForbiddenError, *_TOO_OFTEN))


async def record(error: AppError, *, method: str, route: str) -> None:
    """Record the refusal of the request under way, unless what refused it has done so.

    Who asks too often is counted rather than recorded, or each further request would write. So is what can't be written
    now: the answer does not wait for it.
    """
    context = current_context()
    if context.has_recorded_failure:
        return
    by = context.principal
    if by is None or isinstance(error, _TOO_OFTEN):
        _count(error.code, by or ANONYMOUS)
        return
    try:
        await audit_service.record(
            AuditAction.REQUEST_REFUSED,
            by=by,
            target=("request", None),
            outcome=AuditOutcome.FAILURE,
            code=error.code,
            method=method,
            route=route,
        )
    except Exception as fault:  # noqa: BLE001 - whatever it was, the refusal is not lost with it
        _log.warning("refusal_put_off", error=type(fault).__name__)
        _count(error.code, by)


def _count(code: str, by: Principal) -> None:
    kind = _Kind(code, current_context().client_ip, utc_now().replace(second=0, microsecond=0), by)
    if kind not in _counts and len(_counts) >= _TOLD_APART:
        # The minute of the oldest, or those of a database that stays away would be ever more.
        kind = _Kind(code, None, next(iter(_counts)).minute, ANONYMOUS)
    _counts[kind] += 1


async def keep_flushing() -> None:
    """Write what was counted, every ten seconds. Until it is cancelled."""
    while not is_cancelled():
        await asyncio.sleep(FLUSH_EVERY)
        await flush()


async def flush_last() -> None:
    """Write what was counted before this process ends, as often as it takes, or as there is time for."""
    if not await try_to_the_last(flush):
        _log.error("refusals_lost", count=waiting())
        _counts.clear()
        _State.slice = ()


async def flush() -> bool:
    """Write what was counted since the last time: whether all of it is written. What can't be now is kept."""
    try:
        while not is_cancelled() and (events := _State.slice or _next_slice()):
            _State.slice = events
            await _write_once(events)
            _State.slice = ()
    except Exception as error:  # noqa: BLE001 - the next flush may do better
        _log.warning("refusals_put_off", count=waiting(), error=type(error).__name__)
        return False
    return not is_cancelled()


def _next_slice() -> Sequence[AuditEvent]:
    taken = dict(islice(_counts.items(), _SLICE))
    events = [_event_of(kind, count) for kind, count in taken.items()]
    for kind in taken:
        del _counts[kind]
    return events


def _event_of(kind: _Kind, count: int) -> AuditEvent:
    return audit_service.new_event(
        AuditAction.REQUESTS_REFUSED,
        by=kind.by,
        target=("request", None),
        outcome=AuditOutcome.FAILURE,
        context=RequestContext(client_ip=kind.ip),
        code=kind.code,
        count=count,
        minute=kind.minute,
    )


async def _write_once(events: Sequence[AuditEvent]) -> None:
    """Write them, unless they are there: whoever tries again may not have heard that it went well."""
    try:
        await _write(events)
    except ConflictError:
        audit_service.tell_all(events)


@transactional
async def _write(events: Sequence[AuditEvent]) -> None:
    await audit_service.record_all(events)


def waiting() -> int:
    """How many refusals are counted and not known to be written."""
    in_slice: int = sum(event.details["count"] for event in _State.slice)
    return in_slice + sum(_counts.values())
