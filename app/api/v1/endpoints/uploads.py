from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.api.deps import Id, OptionalCaller, UploadList, UploadsReader, UploadsWriter
from app.api.responses import NO_CONTENT, JsonResponse, listed
from app.api.upload_form import UPLOAD_FORM, UploadForm
from app.core.scopes import Scope
from app.crud import crud_upload
from app.schemas.upload import UploadRead
from app.services import upload_content_service, upload_removal_service, upload_service

router = APIRouter(prefix="/api/v1/uploads", tags=["uploads"])


@router.post("", status_code=HTTPStatus.CREATED, response_model=UploadRead, openapi_extra=UPLOAD_FORM)
async def create_upload(request: Request, writer: UploadsWriter) -> Response:
    """Upload one file, which is read as it arrives.

    What it is, its bytes say, not its name. It counts against the plan of its owner; what a service uploads has none.
    """
    upload = await upload_service.receive(await UploadForm.begin(request), by=writer)
    return JsonResponse(UploadRead.model_validate(upload).model_dump_json().encode(), HTTPStatus.CREATED)


@router.get("", response_model=list[UploadRead])
async def list_uploads(request: Request, reader: UploadsReader, query: UploadList) -> Response:
    """Uploads, newest first: a user's own, or for an administrator or a service all of them."""
    rows, next_cursor = await crud_upload.page(owner_id=reader.owner_filter(Scope.UPLOADS_READ), **dict(query))
    return listed(request, [UploadRead.model_validate(upload) for upload in rows], next_cursor)


@router.get("/{upload_id}", response_model=UploadRead)
async def get_upload(upload_id: Id, reader: OptionalCaller) -> Response:
    """What is known of an upload: one's own, one of a conversation that one takes part in, or a public one.

    A public one needs no credentials. `owner_id` and `conversation_id` are null for who is not to know them.
    """
    known = await upload_content_service.known_of(upload_id, by=reader)
    return JsonResponse(known.model_dump_json().encode())


@router.delete("/{upload_id}", **NO_CONTENT)
async def delete_upload(upload_id: Id, writer: UploadsWriter) -> None:
    """Delete an upload for good."""
    await upload_removal_service.delete(upload_id, by=writer)
