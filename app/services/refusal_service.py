"""Refusals in the audit trail: one event each of who is known; many in one of who is not, or of who asks too often.

What is counted is in memory for at most ten seconds, and what is in memory is bounded: a flood fills neither it nor
the database.
"""

import asyncio
from collections import Counter
from datetime import datetime
from typing import Final, NamedTuple

from app.core.clock import utc_now
from app.core.context import RequestContext, current_context
from app.core.exceptions import (
    AppError,
    ForbiddenError,
    KeyQuotaExceededError,
    RateLimitedError,
    UnauthenticatedError,
)
from app.core.logging_config import get_logger
from app.core.principal import ANONYMOUS, Principal
from app.db.mongo import transactional
from app.models.enums import AuditAction, AuditOutcome
from app.services import audit_service

FLUSH_EVERY: Final = 10.0  # seconds
# So many callers are told apart between two flushes; the others count without their address.
_TOLD_APART: Final = 64
_TOO_OFTEN: Final = (RateLimitedError, KeyQuotaExceededError)

_log = get_logger(__name__)


class _Kind(NamedTuple):
    """What is counted together."""

    code: str
    ip: str | None
    minute: datetime
    by: Principal


_counts: Counter[_Kind] = Counter()


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
        kind = kind._replace(ip=None, by=ANONYMOUS)
    _counts[kind] += 1


async def keep_flushing() -> None:
    """Write what was counted, every ten seconds. Until it is cancelled."""
    while True:
        await asyncio.sleep(FLUSH_EVERY)
        await flush()


async def flush() -> None:
    """Write what was counted since the last time. What can't be written is counted on."""
    counted = dict(_counts)
    _counts.clear()
    try:
        if counted:
            await _write(counted)
    except Exception as error:  # noqa: BLE001 - the next flush may do better
        _log.warning("refusals_put_off", count=sum(counted.values()), error=type(error).__name__)
        _counts.update(counted)


@transactional
async def _write(counted: dict[_Kind, int]) -> None:
    for kind, count in counted.items():
        await audit_service.record(
            AuditAction.REQUESTS_REFUSED,
            by=kind.by,
            target=("request", None),
            outcome=AuditOutcome.FAILURE,
            context=RequestContext(client_ip=kind.ip),
            code=kind.code,
            count=count,
            minute=kind.minute,
        )
