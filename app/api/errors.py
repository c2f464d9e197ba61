"""The one place where an error becomes an HTTP response (RFC 9457)."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.routing import APIRoute
from pymongo.errors import (
    ConnectionFailure,
    ExecutionTimeout,
    PyMongoError,
    WaitQueueTimeoutError,
    WTimeoutError,
)
from starlette.exceptions import HTTPException
from starlette.routing import Route

from app.api.oauth import error_members
from app.api.rate_limit import spend_on_refusal
from app.api.request_log import route_of
from app.core import exceptions
from app.core.context import current_context
from app.core.exceptions import AppError
from app.core.key_format import masked
from app.core.logging_config import get_logger
from app.services import refusal_service

STATUS_OF_KIND: Final[dict[type[AppError], HTTPStatus]] = {
    exceptions.InvalidRequestError: HTTPStatus.BAD_REQUEST,
    exceptions.RangeNotSatisfiableError: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    exceptions.UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    exceptions.ForbiddenError: HTTPStatus.FORBIDDEN,
    exceptions.NotFoundError: HTTPStatus.NOT_FOUND,
    exceptions.ConflictError: HTTPStatus.CONFLICT,
    exceptions.PreconditionFailedError: HTTPStatus.PRECONDITION_FAILED,
    exceptions.PayloadTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    exceptions.UnsupportedMediaTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    exceptions.InvalidContentError: HTTPStatus.UNPROCESSABLE_ENTITY,
    exceptions.LimitReachedError: HTTPStatus.TOO_MANY_REQUESTS,
    exceptions.DatabaseUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    exceptions.ProviderUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    exceptions.StorageUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    exceptions.ScannerUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    exceptions.BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
}
_CODE_OF_STATUS: Final = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "payload_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
}
_PASSING: Final = ("RetryableWriteError", "TransientTransactionError")
_MOST_TOLD: Final = 100  # mistakes in one answer
_RETRY_AFTER_SECONDS: Final = 2
_CLOSE: Final = {"Connection": "close"}  # what is still to come of the body is not read
_FORM_TYPES: Final = ("application/x-www-form-urlencoded", "multipart/form-data")
_FORM_WANTED: Final = f"The body must be a form, with Content-Type: {_FORM_TYPES[0]}."

Handler = Callable[[Request, Exception], Awaitable[Response]]

_log = get_logger(__name__)


def problem(
    path: str,
    status: int,
    *,
    code: str,
    detail: str,
    errors: Sequence[Mapping[str, object]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body: dict[str, Any] = {
        "type": f"urn:octopus:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "instance": masked(path),
        "code": code,
        "request_id": current_context().request_id,
        **error_members(path, status, detail=detail, errors=errors),
    }
    if errors is not None:
        body["errors"] = errors
    return Response(orjson.dumps(body), status, headers, media_type="application/problem+json")


def render_error(path: str, error: AppError) -> Response:
    """The answer for an error of the domain; its context goes to the log only."""
    return problem(
        path,
        status_of(error),
        code=error.code,
        detail=str(error),
        errors=error.errors if isinstance(error, exceptions.InvalidContentError) else None,
        headers=_headers_of(error),
    )


def register_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(AppError, _counted(_on_app_error))
    app.add_exception_handler(RequestValidationError, _counted(_on_invalid_request))
    app.add_exception_handler(HTTPException, _counted(_on_http_exception))
    app.add_exception_handler(PyMongoError, _on_database_error)


def _counted(handler: Handler) -> Handler:
    """Let a refusal spend its budget, and refuse the request for that when there is none left. Both are recorded."""

    async def handle(request: Request, error: Exception) -> Response:
        try:
            await spend_on_refusal(request, error)
        except AppError as too_many:
            await _record(request, too_many)
            return await _on_app_error(request, too_many)
        await _record(request, error)
        return await handler(request, error)

    return handle


async def refuse(request: Request, error: AppError) -> Response:
    """The answer to a request that no route has seen: it counts as any other that is refused."""
    return await _counted(_on_app_error)(request, error)


async def _record(request: Request, error: Exception) -> None:
    if isinstance(error, AppError) and refusal_service.is_refusal(error):
        route = route_of(request.scope) or ""
        await refusal_service.record(error, method=request.method, route=route)


def render_unexpected(path: str, error: Exception) -> Response:
    """Anything that nobody foresaw: logged with its trace, answered without a word of it."""
    _log.error("unexpected_error", path=masked(path), exc_info=error)
    return problem(
        path,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        code="internal_error",
        detail="Something went wrong on our side.",
    )


def render_any(path: str, error: Exception) -> Response:
    """The same answer for an error that no handler gets to see: half of the real answer is out."""
    current_context().has_broken_off = True
    if isinstance(error, AppError):
        current_context().log |= {"code": error.code, **error.context}
        return render_error(path, error)
    return _render_database_error(path, error)


def status_of(error: AppError) -> HTTPStatus:
    """The status of the nearest ancestor that has one."""
    return next(STATUS_OF_KIND[kind] for kind in type(error).__mro__ if kind in STATUS_OF_KIND)


def _headers_of(error: AppError) -> dict[str, str]:
    """What RFC 6750 and RFC 9110 want beside the status."""
    if isinstance(error, exceptions.UnauthenticatedError):
        is_token = isinstance(error, exceptions.RejectedCredentialError) and "token" in error.code
        return {"WWW-Authenticate": 'Bearer error="invalid_token"' if is_token else "Bearer"}
    if isinstance(error, exceptions.InsufficientScopeError) and "needed" in error.context:
        return {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{error.context["needed"]}"'}
    if isinstance(error, exceptions.PayloadTooLargeError):
        return _CLOSE
    if isinstance(error, exceptions.RangeNotSatisfiableError):
        return {"Content-Range": f"bytes */{error.size}"}
    seconds = _seconds_to_wait(error)
    return {} if seconds is None else {"Retry-After": str(seconds)}


def _seconds_to_wait(error: AppError) -> int | None:
    if isinstance(error, exceptions.LimitReachedError | exceptions.ProviderUnavailableError):
        return error.retry_after
    return _RETRY_AFTER_SECONDS if status_of(error) == HTTPStatus.SERVICE_UNAVAILABLE else None


async def _on_app_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)  # noqa: S101 - registered for it
    current_context().log |= {"code": error.code, **error.context}
    return render_error(request.url.path, error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    """Say what is wrong and where, without echoing the input: it may hold a secret."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    path, issues = request.url.path, error.errors()
    if any(issue["loc"][0] == "path" for issue in issues):
        return render_error(path, exceptions.NotFoundError())
    if any(issue["type"] == "json_invalid" for issue in issues):
        return render_error(path, exceptions.InvalidRequestError("The body is not valid JSON."))
    if not _has_known_type(request) and any(issue["loc"][0] == "body" for issue in issues):
        return render_error(path, exceptions.UnsupportedMediaTypeError(_FORM_WANTED if _reads_form(request) else None))
    known = [{"loc": issue["loc"], "msg": issue["msg"], "type": issue["type"]} for issue in issues[:_MOST_TOLD]]
    return render_error(path, exceptions.InvalidContentError(errors=known))


def _has_known_type(request: Request) -> bool:
    """Whether the body's type is one that this endpoint reads. No body has no type."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if not has_body:
        return True
    if _reads_form(request):
        return declared in _FORM_TYPES
    return declared == "application/json" or (declared.startswith("application/") and declared.endswith("+json"))


def _reads_form(request: Request) -> bool:
    route = request.scope.get("route")
    return (
        isinstance(route, APIRoute) and route.body_field is not None and isinstance(route.body_field.field_info, Form)
    )


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses, such as an unknown path or method."""
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == HTTPStatus.NOT_FOUND:
        return render_error(request.url.path, exceptions.NotFoundError("There is nothing at this path."))
    code = _CODE_OF_STATUS.get(HTTPStatus(error.status_code), "invalid_request")
    detail = HTTPStatus(error.status_code).description or "The request could not be understood."
    headers = error.headers
    if code == "payload_too_large":
        headers = _CLOSE
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": ", ".join(sorted(_methods_at(request)))}
    return problem(request.url.path, error.status_code, code=code, detail=detail, headers=headers)


def _methods_at(request: Request) -> set[str]:
    """All methods of a path. The framework names only those of the first route there."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    return {
        method for route in routes if route.path_regex.match(request.scope["path"]) for method in route.methods or ()
    }


async def _on_database_error(request: Request, error: Exception) -> Response:
    return _render_database_error(request.url.path, error)


def _render_database_error(path: str, error: Exception) -> Response:
    is_away = isinstance(error, ConnectionFailure | WaitQueueTimeoutError | ExecutionTimeout | WTimeoutError)
    # A server that hands over to another says so as an error of the operation, when that waits for the others.
    if is_away or (isinstance(error, PyMongoError) and any(map(error.has_error_label, _PASSING))):
        _log.warning("database_unavailable", error=type(error).__name__)
        current_context().log["code"] = exceptions.DatabaseUnavailableError.code
        return render_error(path, exceptions.DatabaseUnavailableError())
    return render_unexpected(path, error)
