"""The pages that links in mails open, for services without a front end of their own: forms, without a script.

A mail scanner that opens every link uses nothing up: only sending the form does.
"""

from collections.abc import Awaitable
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Form, Response

from app.api.deps import ANONYMOUS_RATE, CREDENTIALS_RATE
from app.api.errors import status_of
from app.core.exceptions import AppError
from app.core.mail_templates import render_page
from app.services import password_service, verification_service

router = APIRouter(prefix="/api/v1/auth", include_in_schema=False)
# Styles stand in the page; nothing is loaded, no script runs, and the form goes nowhere else.
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_Text = Annotated[str, Form(max_length=4096)]


@router.get("/password/reset", dependencies=[ANONYMOUS_RATE])
async def password_page(token: str = "") -> Response:
    return _page("password_reset", token=token)


@router.post("/password/reset/form", dependencies=[CREDENTIALS_RATE])
async def submit_password(token: _Text, password: _Text) -> Response:
    done = "Your password is changed. You can sign in with it now."
    return await _result("password_reset", token, password_service.reset(token, password), done=done)


@router.get("/email/verify", dependencies=[ANONYMOUS_RATE])
async def verification_page(token: str = "") -> Response:
    return _page("email_verification", token=token)


@router.post("/email/verify/form", dependencies=[CREDENTIALS_RATE])
async def submit_verification(token: _Text) -> Response:
    done = "Thank you. Your address is verified."
    return await _result("email_verification", token, verification_service.verify(token), done=done)


async def _result(name: str, token: str, work: Awaitable[None], *, done: str) -> Response:
    try:
        await work
    except AppError as error:
        return _page(name, status_of(error), token=token, error=str(error))
    return _page(name, done=done)


def _page(name: str, status: HTTPStatus = HTTPStatus.OK, **values: str) -> Response:
    content = render_page(name, **{"token": "", "error": "", "done": "", **values})
    return Response(content, status, {"Content-Security-Policy": _POLICY}, media_type="text/html")
