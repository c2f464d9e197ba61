"""How answers are written: orjson for what is read often, entity tags, links to the next page."""

import hashlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
from fastapi import Request, Response
from pydantic import BaseModel

# Documents of the hot paths carry times without a zone: they are UTC.
_OPTIONS: Final = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_SUBCLASS


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content, _plain, _OPTIONS)


def tagged(
    request: Request, content: dict[str, Any] | BaseModel, *, version: int, status: HTTPStatus = HTTPStatus.OK
) -> Response:
    """One resource with its entity tag; 304 when a GET names that tag in `If-None-Match` (RFC 9110, 13.1.2).

    The tag is the version, which `If-Match` compares, and a digest of the content, which also holds what
    lives elsewhere, such as the names of participants.
    """
    body = content.model_dump_json().encode() if isinstance(content, BaseModel) else JsonResponse().render(content)
    tag = f'"{version}-{hashlib.blake2b(body, digest_size=8).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.method == "GET" and _is_among(tag, request.headers.get("if-none-match")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return JsonResponse(body, status, headers=headers)


def listed(request: Request, rows: Sequence[Any], next_cursor: str | None) -> Response:
    """A page as an array, with a link to the next one when there is one (RFC 8288)."""
    if next_cursor is None:
        return JsonResponse(rows)
    url = request.url.include_query_params(cursor=next_cursor)
    return JsonResponse(rows, headers={"Link": f'<{url.path}?{url.query}>; rel="next"'})


def _is_among(tag: str, header: str | None) -> bool:
    """Weak comparison, as `If-None-Match` asks for."""
    return header is not None and any(
        known in {tag, "*"} for known in (part.strip().removeprefix("W/") for part in header.split(","))
    )


def _plain(value: Any) -> Any:
    """ObjectIds and enumerations as their text, models as their fields."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)
