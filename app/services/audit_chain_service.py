"""The chain: sealing events into it, and removing its beginning after the retention.

Events are inserted without a place, so that nobody waits for another. Places are given in batches, each one
transaction that moves the head of the chain from where the sealer saw it: of two sealers at once one gets it, and
whoever dies leaves a whole chain. The order of the chain is the order of sealing.
"""

import asyncio
import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import ConflictError
from app.core.hash_chain import START, Link, sealed
from app.core.logging_config import get_logger
from app.core.principal import Principal
from app.core.tasks import is_cancelled
from app.crud import crud_audit_event, crud_installation
from app.db.mongo import Raw, transactional
from app.models.enums import AuditAction
from app.schemas.audit_event import event_of
from app.services import audit_service

_BATCH: Final = 500
_ATTEMPTS: Final = 3
_PRUNED_AT_ONCE: Final = 2000
_PRUNER: Final = Principal.system("audit retention")

_log = get_logger(__name__)


class Sealed(NamedTuple):
    sealed: int


class Pruned(NamedTuple):
    pruned: int


class ChainBrokenError(ConflictError):
    message = "The audit chain does not fit what is stored. GET /api/v1/admin/audit-events/verify says where."


async def seal(*, rounds: int | None = None) -> Sealed:
    """Seal all there is, or in so many rounds what can be: how many.

    The head is in the log afterwards, as an anchor outside of the database.
    """
    count, failed = 0, 0
    last = await _end()
    for _ in itertools.count() if rounds is None else range(rounds):
        if is_cancelled() or not (rows := await crud_audit_event.unsealed(limit=_BATCH)):
            break
        events = await asyncio.to_thread(_chained, rows, last)
        if await _append(last, events):
            count, failed, last = count + len(events), 0, _place(events[-1][1])
            continue
        present = await _end()
        failed = failed + 1 if present == last else 0  # else another sealer was faster
        if failed == _ATTEMPTS:
            raise ChainBrokenError
        last = present
    if count:
        _log.info("audit_sealed", count=count, seq=last.seq, head=last.hash)
    return Sealed(count)


def _chained(rows: Sequence[Raw], after: Link) -> list[tuple[Any, Raw]]:
    """The events as they are sealed, each with the id that it is stored under, of whatever kind that is."""
    ids = [row["_id"] for row in rows]
    return list(zip(ids, sealed((event_of(row) for row in rows), after), strict=True))


def _place(event: Raw) -> Link:
    return Link(event["seq"], event["hash"])


async def _end() -> Link:
    """The last event, or the place before the first. A chain that has lost its head is not begun anew."""
    head = await crud_audit_event.find_head()
    if head is not None:
        return head.last
    if await crud_installation.find_sealed() or await crud_audit_event.from_seq(0, limit=1, fields={"_id": 1}):
        raise ChainBrokenError
    await crud_audit_event.ensure_head(START)
    return START


async def _append(last: Link, events: Sequence[tuple[Any, Raw]]) -> bool:
    """False when the chain does not end there any more, or an event can't have its place."""
    try:
        await _move(last, events)
    except ConflictError:
        return False
    return True


@transactional
async def _move(last: Link, events: Sequence[tuple[Any, Raw]]) -> None:
    """The head, the events and the mark of how far was ever sealed, or nothing of it."""
    end = _place(events[-1][1])
    if not await crud_audit_event.move_head(last, end) or not await crud_audit_event.seal(events):
        raise ConflictError
    await crud_installation.note_sealed(end)


async def prune() -> Pruned:
    """Remove the events at the beginning of the chain that are past the retention: how many."""
    days, count = get_settings().audit_retention_days, 0
    while days and not is_cancelled() and (removed := await _prune_some(utc_now() - timedelta(days=days))):
        count += removed
    return Pruned(count)


@transactional
async def _prune_some(before: datetime) -> int:
    """One batch. Where the chain begins from then on is part of the head, and of the event that tells of it."""
    head = await crud_audit_event.find_head()
    if head is None:
        return 0
    old = head.beginning
    fields = {"seq": 1, "hash": 1, "time": 1}
    rows = await crud_audit_event.from_seq(old.seq + 1, limit=_PRUNED_AT_ONCE, fields=fields)
    due = _leading(rows, before.replace(tzinfo=None))
    if not due:
        return 0
    if not _is_whole(due, old, head.seq):
        raise ChainBrokenError
    new = _place(due[-1])
    if not await crud_audit_event.move_beginning(old, new):
        raise ChainBrokenError
    if await crud_audit_event.remove(old.seq + 1, new.seq) != len(due):
        raise ChainBrokenError
    await audit_service.record(
        AuditAction.AUDIT_PRUNED, by=_PRUNER, target=("audit", None), count=len(due), seq=new.seq, last=new.hash
    )
    return len(due)


def _leading(rows: Sequence[Raw], before: datetime) -> list[Raw]:
    """The rows up to the first that is too young. Times are naive; what has none is as old as the rest."""
    leading = []
    for row in rows:
        if isinstance(time := row.get("time"), datetime) and time >= before:
            break
        leading.append(row)
    return leading


def _is_whole(due: Sequence[Raw], old: Link, end: int) -> bool:
    """Whether those are the next events of the chain, none missing and none besides."""
    last = old.seq + len(due)
    places = [row["seq"] for row in due]
    return places == list(range(old.seq + 1, last + 1)) and last <= end and isinstance(due[-1].get("hash"), str)
