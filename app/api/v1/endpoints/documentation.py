from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html

from app.api.deps import ANONYMOUS_RATE
from app.api.responses import JsonResponse

router = APIRouter(include_in_schema=False, dependencies=[ANONYMOUS_RATE])
_TITLE = "Octopus"
_DOCUMENT = "/openapi.json"


@router.get(_DOCUMENT)
async def openapi_document(request: Request) -> Response:
    """The reference, for programs."""
    return JsonResponse(request.app.openapi())


@router.get("/docs")
async def swagger_ui() -> Response:
    """The reference, to try."""
    return get_swagger_ui_html(openapi_url=_DOCUMENT, title=_TITLE)


@router.get("/redoc")
async def redoc() -> Response:
    """The reference, to read."""
    return get_redoc_html(openapi_url=_DOCUMENT, title=_TITLE)
