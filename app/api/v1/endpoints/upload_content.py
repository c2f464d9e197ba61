from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from app.api.deps import Id, UploadsReader, UploadsWriter
from app.api.file_response import FILE, file_response
from app.api.link_access import LINK_ONLY, Content, FileReader, ThumbnailChoice
from app.api.raw_body import raw_body
from app.api.responses import NO_CONTENT, JsonResponse
from app.schemas.direct_upload import DirectUploadCreate, DirectUploadRead
from app.schemas.upload import UploadRead
from app.schemas.upload_link import SignedUrl, SignedUrlCreate
from app.services import (
    direct_upload_service,
    upload_check_service,
    upload_content_service,
    upload_link_service,
    upload_variant_service,
)

router = APIRouter(prefix="/api/v1/uploads", tags=["uploads"])

# For the OpenAPI document: the endpoint reads the body itself.
_BYTES: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.head("/{upload_id}/content", include_in_schema=False)
@router.get("/{upload_id}/content", response_class=Response, responses=FILE)
async def read_upload_content(upload_id: Id, request: Request, query: Content, reader: FileReader) -> Response:
    """The file, or a range of it. What a browser might run is only ever to be saved."""
    file = await upload_content_service.original(upload_id, download=query.download, by=reader)
    return await file_response(request, file)


@router.head("/{upload_id}/thumbnail", include_in_schema=False)
@router.get("/{upload_id}/thumbnail", response_class=Response, responses=FILE)
async def read_upload_thumbnail(
    upload_id: Id, request: Request, query: ThumbnailChoice, reader: FileReader
) -> Response:
    """A small picture of a picture, in WebP, upright and without metadata. Made when it is first asked for."""
    file = await upload_variant_service.thumbnail(upload_id, query.size, download=query.download, by=reader)
    return await file_response(request, file)


@router.head("/{upload_id}/text", include_in_schema=False)
@router.get("/{upload_id}/text", response_class=Response, responses=FILE)
async def read_upload_text(upload_id: Id, request: Request, reader: FileReader) -> Response:
    """The text of a PDF, DOCX, TXT, Markdown or CSV, at most five million characters of it, in UTF-8."""
    return await file_response(request, await upload_variant_service.text(upload_id, by=reader))


@router.post("/{upload_id}/url")
async def make_upload_url(upload_id: Id, body: SignedUrlCreate, reader: UploadsReader) -> SignedUrl:
    """A link to the file, or to a thumbnail of it, that works without credentials for at most seven days."""
    return await upload_link_service.make(upload_id, body, by=reader)


@router.post("/direct", status_code=HTTPStatus.CREATED)
async def announce_upload(body: DirectUploadCreate, writer: UploadsWriter) -> DirectUploadRead:
    """Reserve room for a file, and learn where to put it within an hour. Then complete it."""
    return await direct_upload_service.announce(body, by=writer)


@router.put("/{upload_id}/bytes", dependencies=LINK_ONLY, openapi_extra=_BYTES, **NO_CONTENT)
async def put_upload_bytes(upload_id: Id, request: Request) -> None:
    """The bytes of a file that was announced, once, to the link that came back."""
    await direct_upload_service.put(upload_id, raw_body(request))


@router.post("/{upload_id}/complete", response_model=UploadRead)
async def complete_upload(upload_id: Id, writer: UploadsWriter) -> Response:
    """Have the bytes checked that were put: size, hash, type, viruses. Safe to repeat."""
    upload = await upload_check_service.complete(upload_id, by=writer)
    return JsonResponse(UploadRead.model_validate(upload).model_dump_json().encode())
