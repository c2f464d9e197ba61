"""How answers are written: orjson for what is read often, entity tags, links to the next page."""

import hashlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from fastapi import Request, Response
from pydantic import BaseModel

# Documents of the hot paths carry times without a zone: they are UTC.
_OPTIONS: Final = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_SUBCLASS


# For routes that answer with nothing: the framework's own 204 says that its body is JSON.
NO_CONTENT: Final[dict[str, Any]] = {"status_code": HTTPStatus.NO_CONTENT, "response_class": Response}
# For the OpenAPI document: what `tagged` answers besides the resource.
UNCHANGED: Final[dict[int | str, dict[str, Any]]] = {304: {"description": "It is what If-None-Match names"}}


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content, str, _OPTIONS)


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
    if request.method == "GET" and is_among(tag, request.headers.get("if-none-match")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return JsonResponse(body, status, headers=headers)


def listed(request: Request, rows: Sequence[dict[str, Any] | BaseModel], next_cursor: str | None) -> Response:
    """A page as an array, with a link to the next one when there is one (RFC 8288)."""
    content = [row.model_dump(mode="json") if isinstance(row, BaseModel) else row for row in rows]
    if next_cursor is None:
        return JsonResponse(content)
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    link = f'<{request.scope["path"]}?{urlencode([*query, ("cursor", next_cursor)])}>; rel="next"'
    return JsonResponse(content, headers={"Link": link})


def is_among(tag: str, header: str | None) -> bool:
    """Weak comparison, as `If-None-Match` asks for."""
    return header is not None and any(
        known in {tag, "*"} for known in (part.strip().removeprefix("W/") for part in header.split(","))
    )
