"""A file from the storage as an answer: conditions and ranges (RFC 9110, 13 and 14), and what browsers heed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from app.api.responses import is_among
from app.core.byte_range import ByteRange, wanted_range
from app.core.exceptions import NotFoundError, ObjectNotFoundError, PreconditionFailedError
from app.core.logging_config import get_logger
from app.core.stored_file import StoredFile
from app.services import upload_link_service
from app.services.storage import get_storage

_PUBLIC: Final = "public, max-age=300"
_PRIVATE: Final = "private, no-cache"
# Whatever is in the file, and however a browser opens it, it runs nothing and loads nothing.
_POLICY: Final = "sandbox; default-src 'none'"
_OF_UNCHANGED: Final = ("ETag", "Last-Modified", "Cache-Control")
_ANYTHING: Final = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
# For the OpenAPI document.
FILE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The file", "content": _ANYTHING},
    206: {"description": "The range of it", "content": _ANYTHING},
    302: {"description": "It is at this address of the storage, for five minutes"},
    304: {"description": "It is what If-None-Match names, or not newer than If-Modified-Since"},
    409: {"description": "It is still being received or checked", "content": _PROBLEM},
    412: {"description": "It is not what If-Match names, or newer than If-Unmodified-Since", "content": _PROBLEM},
    416: {"description": "It ends before the range", "content": _PROBLEM},
    422: {"description": "A parameter is not acceptable, or there is no such part of the file", "content": _PROBLEM},
}

_log = get_logger(__name__)

Source = AsyncGenerator[bytes, None]


class _StreamedFile(StreamingResponse):
    """Reads on when the client has taken what was read. When it hangs up, or an error comes, the file is closed."""

    def __init__(self, source: Source, first: bytes, status: HTTPStatus, headers: dict[str, str]) -> None:
        super().__init__(_after(first, source), status, headers)
        self.source = source

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.source):
            await super().stream_response(send)


async def file_response(request: Request, file: StoredFile) -> Response:
    """All of the file, a range of it, or the word that the client has it; on Azure perhaps where it is."""
    headers = _headers_of(file)
    _require_preconditions(request, file)
    if _is_unchanged(request, file):
        return Response(None, HTTPStatus.NOT_MODIFIED, {name: headers[name] for name in _OF_UNCHANGED})
    if (url := await upload_link_service.redirect_to(file)) is not None:
        return Response(None, HTTPStatus.FOUND, {"Location": url, "Cache-Control": "no-store"})
    wanted = _wanted_of(request, file)
    headers["Content-Length"] = str(file.size if wanted is None else wanted.size)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {wanted.first}-{wanted.last}/{file.size}"
    status = HTTPStatus.OK if wanted is None else HTTPStatus.PARTIAL_CONTENT
    if request.method == "HEAD":
        if await get_storage().stat(file.key) is None:
            raise _lost(file)
        return Response(None, status, headers)
    first, last = (0, None) if wanted is None else wanted
    # With a first chunk in hand the answer can still be another one.
    source = cast("Source", get_storage().read(file.key, first=first, last=last))
    try:
        return _StreamedFile(source, await anext(source, b""), status, headers)
    except ObjectNotFoundError as error:
        raise _lost(file) from error


def _headers_of(file: StoredFile) -> dict[str, str]:
    return {
        "Content-Type": file.content_type,
        "Content-Disposition": file.disposition,
        "Accept-Ranges": "bytes",
        "ETag": file.tag,
        "Last-Modified": format_datetime(file.modified_at.astimezone(UTC), usegmt=True),
        "Cache-Control": _PUBLIC if file.is_public else _PRIVATE,
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
    }


def _require_preconditions(request: Request, file: StoredFile) -> None:
    tags = request.headers.get("if-match")
    if tags is not None:
        if not {"*", file.tag} & {tag.strip() for tag in tags.split(",")}:
            raise PreconditionFailedError
        return
    since = _date_in(request.headers.get("if-unmodified-since"))
    if since is not None and _second_of(file) > since:
        raise PreconditionFailedError


def _is_unchanged(request: Request, file: StoredFile) -> bool:
    tags = request.headers.get("if-none-match")
    if tags is not None:
        return is_among(file.tag, tags)
    since = _date_in(request.headers.get("if-modified-since"))
    return since is not None and _second_of(file) <= since


def _wanted_of(request: Request, file: StoredFile) -> ByteRange | None:
    """The range, if there is one, and if it is of the file that the client has the rest of."""
    condition = request.headers.get("if-range")
    if request.method != "GET":
        return None
    if condition is not None and condition != file.tag and _date_in(condition) != _second_of(file):
        return None
    return wanted_range(request.headers.get("range"), file.size)


def _second_of(file: StoredFile) -> datetime:
    return file.modified_at.replace(microsecond=0)


def _date_in(header: str | None) -> datetime | None:
    """None for what is no date: as if it was not there."""
    try:
        date = parsedate_to_datetime(header or "")
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


async def _after(first: bytes, source: Source) -> Source:
    yield first
    async for chunk in source:
        yield chunk


def _lost(file: StoredFile) -> NotFoundError:
    _log.error("stored_object_missing", stored=file.key)
    return NotFoundError("The file is no longer there.")
