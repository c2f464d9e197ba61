from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from app.api.audit_stream import FILES, MEDIA_TYPES, events_as
from app.api.deps import (
    Administrator,
    Anchor,
    AuditExport,
    AuditList,
    AuditReader,
    Id,
    KeyAuditList,
    KeysAuditList,
)
from app.api.responses import listed
from app.core.clock import utc_now
from app.core.hash_chain import Link
from app.crud import crud_audit_event
from app.schemas.audit_event import AuditEventRead, ChainReport, event_of
from app.services import audit_export_service, audit_verify_service

router = APIRouter(prefix="/api/v1", tags=["audit"])


@router.get("/admin/audit-events", response_model=list[AuditEventRead])
async def list_audit_events(request: Request, _: AuditReader, query: AuditList) -> Response:
    """What has happened, newest first: every filter that is given must match."""
    where = crud_audit_event.matching(**query.named)
    rows, next_cursor = await crud_audit_event.page(where, limit=query.limit, cursor=query.cursor)
    return listed(request, [event_of(row) for row in rows], next_cursor)


@router.get("/admin/audit-events/export", response_class=StreamingResponse, responses=FILES)
async def export_audit_events(reader: AuditReader, query: AuditExport) -> Response:
    """All events that match as a file, oldest first, sealed; `scripts/verify_audit.py` checks it without the service.

    `format=jsonl` has an event a line, `format=csv` a row. The export is an event itself, and the last of the file.
    """
    batches = await audit_export_service.export(query, by=reader)
    name = f"octopus-audit-{utc_now():%Y%m%dT%H%M%SZ}.{query.format}"
    return StreamingResponse(
        events_as(query.format, batches),
        media_type=MEDIA_TYPES[query.format],
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


@router.get("/admin/audit-events/verify")
async def verify_audit_events(_: AuditReader, anchor: Anchor) -> ChainReport:
    """Check every event against the chain, and name the first that was altered, removed, inserted or moved.

    With `seq` and `hash` of a head that was written down earlier it also shows a chain that was written anew.
    """
    known = Link(anchor.seq, anchor.hash) if anchor.seq is not None and anchor.hash is not None else None
    return await audit_verify_service.verify(known)


@router.get("/api-keys/audit-logs", response_model=list[AuditEventRead])
async def list_events_about_api_keys(request: Request, _: Administrator, query: KeysAuditList) -> Response:
    """What has happened to API keys, newest first. For administrators."""
    where = crud_audit_event.about_keys(api_key_id=query.api_key_id, action=query.action)
    rows, next_cursor = await crud_audit_event.page(where, limit=query.limit, cursor=query.cursor)
    return listed(request, [event_of(row) for row in rows], next_cursor)


@router.get("/api-keys/{api_key_id}/audit-logs", response_model=list[AuditEventRead])
async def list_events_about_api_key(
    api_key_id: Id, request: Request, _: Administrator, query: KeyAuditList
) -> Response:
    """What has happened to one API key, newest first, also when it is gone. For administrators."""
    where = crud_audit_event.about_keys(api_key_id=api_key_id, action=query.action)
    rows, next_cursor = await crud_audit_event.page(where, limit=query.limit, cursor=query.cursor)
    return listed(request, [event_of(row) for row in rows], next_cursor)
