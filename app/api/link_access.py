"""Who may read or put the bytes of an upload: a principal, or whoever has a signed link to just that."""

from typing import Annotated, Final

from fastapi import Depends, Request

from app.api import rate_limit
from app.api.deps import QueryOf, optional_principal
from app.core.exceptions import LinkRefusedError
from app.core.principal import Principal
from app.core.signed_link import Permission, require_signed
from app.schemas.upload_link import FileQuery, PutQuery, ThumbnailQuery
from app.services.upload_content_service import LINK_HOLDER


async def file_reader(request: Request) -> Principal:
    """With a signature nothing but the link counts; else it may be anybody, for what is public."""
    if "signature" not in request.query_params:
        return await optional_principal(request)
    await _require_link(request)
    return LINK_HOLDER


async def bytes_putter(request: Request) -> None:
    """Only a link allows that."""
    if "signature" not in request.query_params:
        raise LinkRefusedError("This address is only for whoever was given it whole.")
    await _require_link(request)


async def _require_link(request: Request) -> None:
    query = request.query_params
    part = request.scope["path"].rpartition("/")[2]
    permission = Permission(request.path_params["upload_id"], part, query.get("size"), query.get("download"))
    require_signed(permission, expires=query.get("expires", ""), signature=query["signature"])
    await rate_limit.spend_link(request)


FileReader = Annotated[Principal, Depends(file_reader)]
Content = Annotated[FileQuery, Depends(QueryOf(FileQuery))]
ThumbnailChoice = Annotated[ThumbnailQuery, Depends(QueryOf(ThumbnailQuery))]
LINK_ONLY: Final = (Depends(bytes_putter), Depends(QueryOf(PutQuery)))
