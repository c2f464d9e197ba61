from fastapi import APIRouter, Request, Response

from app.api.deps import Id, UploadsReader
from app.api.file_response import FILE, file_response
from app.api.link_access import Content, FileReader, ThumbnailChoice
from app.schemas.upload_link import SignedUrl, SignedUrlCreate
from app.services import upload_content_service, upload_link_service, upload_variant_service

router = APIRouter(prefix="/api/v1/uploads", tags=["uploads"])


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
