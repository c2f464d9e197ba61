"""Handing the audit trail out."""

from contextlib import suppress

from app.core.principal import Principal
from app.crud import crud_audit_event
from app.crud.crud_audit_event import Batches
from app.models.enums import AuditAction
from app.schemas.audit_query import AuditExportQuery
from app.services import audit_chain_service, audit_service
from app.services.audit_chain_service import ChainBrokenError


async def export(query: AuditExportQuery, *, by: Principal) -> Batches:
    """Every event so far that matches, sealed, oldest first; the last one tells of this export itself.

    On the record before any of it is given. A broken chain is given as far as it is sealed: that is when it is wanted.
    """
    filters = query.model_dump(mode="json", by_alias=True, exclude_none=True)
    form = filters.pop("format")
    await audit_service.record(AuditAction.AUDIT_EXPORTED, by=by, target=("audit", None), format=form, filters=filters)
    with suppress(ChainBrokenError):
        await audit_chain_service.seal()
    head = await crud_audit_event.find_head()
    return crud_audit_event.sealed_batches(crud_audit_event.matching(**query.named), up_to=head.seq if head else 0)
