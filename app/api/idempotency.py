"""`Idempotency-Key` on every POST that shows who is calling, in one place."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import FastAPI, Request, Response
from pymongo.errors import PyMongoError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.streamed import is_streamed
from app.core import background
from app.core.context import current_context
from app.core.exceptions import DatabaseUnavailableError, InvalidRequestError
from app.core.logging_config import get_logger
from app.core.principal import Principal, PrincipalKind
from app.core.tasks import is_cancelled
from app.services import idempotency_service
from app.services.idempotency_service import MAX_ANSWER_BYTES, Answer, Attempt

HEADER: Final = "idempotency-key"
REPLAYED: Final = "Idempotent-Replayed"
PARAMETER: Final[Mapping[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Makes it safe to send this request again: under the same key it is carried out once, and gets "
    "its first answer again for 24 hours",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_KEY: Final = re.compile(r"[!-~]{1,255}")
_FORM: Final = "application/x-www-form-urlencoded"
_ATTEMPT: Final = "octopus.idempotency"
_KEEPER: Final = "octopus.idempotency.keeper"

_log = get_logger(__name__)


class _Replayed(Exception):  # noqa: N818 - not an error: the answer that was given before
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


async def begin(request: Request, caller: Principal) -> None:
    """Claim the request for its key, or end it with the answer that it got before. Without a key, nothing."""
    keys = request.headers.getlist(HEADER) if request.method == "POST" else []
    if not keys:
        return
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidRequestError("Idempotency-Key must be one header of 1 to 255 visible ASCII characters.")
    place = f"{request.method} {request.scope['path']}?{request.url.query}\n"
    begun = await idempotency_service.begin(_name(caller), keys[0], place.encode() + await _content(request))
    if isinstance(begun, Answer):
        raise _Replayed(begun)
    request.scope[_ATTEMPT] = begun
    current_context().in_transaction = begun.mark
    request.scope[_KEEPER] = asyncio.create_task(_keep_hold(begun), name="hold_idempotency_key")


def register_replays(app: FastAPI) -> None:
    app.add_exception_handler(_Replayed, _replay)


class IdempotencyMiddleware:
    """Keeps the answer of a request that was begun, before the last of it goes out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _has_key(scope):
            await self.app(scope, receive, send)
            return
        status, headers, body = 0, [], bytearray()
        is_answered = False

        async def send_kept(message: Message) -> None:
            nonlocal status, headers, is_answered
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message.get("headers", []))
            elif message["type"] == "http.response.body":
                if len(body) <= MAX_ANSWER_BYTES:
                    body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    is_answered = True
                    await _finish(scope, Answer(status, headers, bytes(body)))
            await send(message)

        try:
            await self.app(scope, receive, send_kept)
        finally:
            attempt: Attempt | None = scope.get(_ATTEMPT)
            if attempt is not None:
                scope[_KEEPER].cancel()
            if attempt is not None and not is_answered:  # the caller is gone, or half an answer is out
                _end_at_last(attempt, None)


async def _content(request: Request) -> bytes:
    """The body; of a form its fields, since it has been read as such already.

    Of a body that is not kept it is as much as is known before it is read. A boundary is new each time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if is_streamed(request.scope):
        return f"{request.headers.get('content-length')} {kind}".encode()
    try:
        if kind == _FORM:
            return urlencode([(name, str(value)) for name, value in (await request.form()).multi_items()]).encode()
        return await request.body()
    except ClientDisconnect as error:
        raise InvalidRequestError("The body did not come whole.") from error


async def _keep_hold(attempt: Attempt) -> None:
    """Until this is cancelled: some requests take minutes."""
    while not is_cancelled():
        try:
            await idempotency_service.prolong(attempt)
        except PyMongoError as error:  # should another take its place for that, this one commits nothing more
            _log.warning("idempotency_key_not_prolonged", error=type(error).__name__)


async def _finish(scope: Scope, answer: Answer) -> None:
    attempt: Attempt | None = scope.get(_ATTEMPT)
    if attempt is None:
        return
    context = current_context()
    if context.log.get("code") == DatabaseUnavailableError.code:
        _end_at_last(attempt, None)  # the caller does not wait for what can't be done now
        return
    kept = None if context.has_broken_off else answer
    try:
        if kept is None:
            await idempotency_service.release(attempt)
        else:
            await idempotency_service.finish(attempt, kept)
    except PyMongoError as error:
        # What is done is done, and the caller is told. Until it is kept, a repetition is refused.
        _log.warning("idempotent_answer_not_kept", error=type(error).__name__)
        _end_at_last(attempt, kept)


def _end_at_last(attempt: Attempt, answer: Answer | None) -> None:
    background.start(idempotency_service.end_at_last(attempt, answer), name="end_of_idempotent_request")


async def _replay(_: Request, replayed: Exception) -> Response:
    assert isinstance(replayed, _Replayed)  # noqa: S101 - registered for it
    answer = replayed.answer
    response = Response(answer.body, answer.status)
    response.raw_headers = [*answer.headers, (REPLAYED.lower().encode(), b"true")]
    return response


def _name(caller: Principal) -> str:
    """Whose key it is: everybody counts their own. Nobody in particular is known by the address."""
    if caller.kind is PrincipalKind.ANONYMOUS:
        return f"anonymous:{current_context().client_ip}"
    return caller.rate_key


def _has_key(scope: Scope) -> bool:
    return any(name == b"idempotency-key" for name, _ in scope["headers"])
