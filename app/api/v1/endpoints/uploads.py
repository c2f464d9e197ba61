from fastapi import APIRouter, Request, Response

from app.api.deps import Id, UploadList, UploadsReader
from app.api.responses import JsonResponse, listed
from app.core.exceptions import NotFoundError
from app.core.scopes import Scope
from app.crud import crud_upload
from app.schemas.upload import UploadRead

router = APIRouter(prefix="/api/v1/uploads", tags=["uploads"])


@router.get("", response_model=list[UploadRead])
async def list_uploads(request: Request, reader: UploadsReader, query: UploadList) -> Response:
    """Uploads, newest first: a user's own, or for an administrator or a service all of them."""
    rows, next_cursor = await crud_upload.page(owner_id=reader.owner_filter(Scope.UPLOADS_READ), **dict(query))
    return listed(request, [UploadRead.model_validate(upload) for upload in rows], next_cursor)


@router.get("/{upload_id}", response_model=UploadRead)
async def get_upload(upload_id: Id, reader: UploadsReader) -> Response:
    """What is known of an upload: one's own, one of a conversation that one takes part in, or a public one."""
    upload = await crud_upload.find(upload_id, seen_by=reader.owner_filter(Scope.UPLOADS_READ))
    if upload is None:
        raise NotFoundError("There is no such upload.")
    return JsonResponse(UploadRead.model_validate(upload).model_dump_json().encode())
