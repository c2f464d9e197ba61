"""Handing the audit trail out."""

from contextlib import suppress
from typing import Final

from bson import ObjectId

from app.core.principal import Principal
from app.crud import crud_audit_event
from app.crud.base import Filter
from app.crud.crud_audit_event import Batches
from app.models.enums import AuditAction
from app.schemas.audit_query import AuditExportQuery
from app.services import audit_chain_service, audit_service
from app.services.audit_chain_service import ChainBrokenError

# How much is sealed at once, a round being a batch: more than that waits only when the sealer has not come for minutes.
_ROUNDS: Final = 4


async def export(query: AuditExportQuery, *, by: Principal) -> Batches:
    """Every event so far that matches, sealed, oldest first; the last one tells of this export itself.

    On the record before any of it is given. A broken chain is given as far as it is sealed: that is when it is wanted.
    """
    filters = query.model_dump(mode="json", by_alias=True, exclude_none=True)
    form = filters.pop("format")
    target = ("audit", None)
    event_id = await audit_service.record(
        AuditAction.AUDIT_EXPORTED, by=by, target=target, format=form, filters=filters
    )
    await _seal_some()
    return _batches(crud_audit_event.matching(**query.named), event_id)


async def _batches(where: Filter, last: ObjectId) -> Batches:
    """Up to the event with that id. What still waits is sealed on the way, so that nobody waits for the first line."""
    given = 0
    while True:
        end, is_all = await _reach(last)
        async for batch in crud_audit_event.sealed_batches(where, after=given, up_to=end):
            yield batch
        if is_all:
            return
        given = end
        await _seal_some()
        if (await _reach(last))[0] <= given:
            return


async def _reach(last: ObjectId) -> tuple[int, bool]:
    """How far the chain can be given by now, and whether that is all."""
    event = await crud_audit_event.find_place(last)  # read before the head, which covers its place then
    head = await crud_audit_event.find_head()
    end = head.seq if head else 0
    if event is None:
        return end, True  # somebody has removed it
    place = event.get("seq")
    return (min(place, end), True) if isinstance(place, int) else (end, False)


async def _seal_some() -> None:
    with suppress(ChainBrokenError):
        await audit_chain_service.seal(rounds=_ROUNDS)
