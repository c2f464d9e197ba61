from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from app.api.deps import UsersReader
from app.api.json_stream import json_object
from app.api.rate_limit import spend_export
from app.schemas.export import UserExport
from app.services import export_service

router = APIRouter(prefix="/api/v1/users", tags=["users"])


@router.get("/me/export", response_model=UserExport)
async def export_own_data(request: Request, me: UsersReader) -> Response:
    """Everything held about you, as one JSON file. A key is given what its scopes cover; the rest is null."""
    await spend_export(request, me.account_id)
    export = await export_service.export_all(by=me)
    name = f"octopus-export-{export.head['exported_at']:%Y%m%dT%H%M%SZ}.json"
    return StreamingResponse(
        json_object(export.head, export.sections),
        media_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
