from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from app.api.cookies import refresh_cookie_of, refuse_cross_site, set_refresh_cookie, without_refresh_cookie
from app.api.deps import CREDENTIALS_RATE, Caller, Id, OptionalCaller, SessionList
from app.api.responses import NO_CONTENT, JsonResponse, listed
from app.core.exceptions import InvalidContentError
from app.core.principal import PrincipalKind
from app.crud import crud_session
from app.models.user import User
from app.schemas.auth import Login, PrincipalRead, RefreshRequest, TokenForm, TokenPair
from app.schemas.session import SessionRead
from app.schemas.user import UserCreate, UserRead
from app.services import login_service, session_service, user_service
from app.services.session_service import SignedIn

router = APIRouter(prefix="/api/v1/auth", tags=["auth"])


@router.post("/register", status_code=HTTPStatus.CREATED, response_model=UserRead)
async def register(body: UserCreate, caller: OptionalCaller) -> User:
    """Make an account. The same as `POST /api/v1/users`."""
    return await user_service.register(body, by=caller)


@router.post("/login", response_model=TokenPair, dependencies=[CREDENTIALS_RATE])
async def log_in(request: Request, body: Login) -> Response:
    """Sign in with an e-mail address or a username. `refresh_in_cookie` keeps the refresh token from scripts."""
    replaced = None
    if body.refresh_in_cookie:
        refuse_cross_site(request)
        replaced = refresh_cookie_of(request)
    account, is_email = body.email or body.username or "", body.email is not None
    signed_in = await login_service.log_in(account, body.password, is_email=is_email, otp=body.otp, replaced=replaced)
    return _answer(signed_in, in_cookie=body.refresh_in_cookie)


@router.post("/token", response_model=TokenPair, dependencies=[CREDENTIALS_RATE])
async def request_token(form: Annotated[TokenForm, Form()]) -> SignedIn:
    """Sign in, or refresh, with an OAuth 2 form (RFC 6749, sections 4.3 and 6).

    Its errors also carry `error` and `error_description` of section 5.2: `invalid_grant`, `invalid_request`,
    `unsupported_grant_type`; and `temporarily_unavailable` or `server_error` when it is not for what was sent.
    """
    if form.grant_type == "refresh_token":
        return await session_service.refresh(form.refresh_token or "")
    username = form.username or ""
    return await login_service.log_in(username, form.password or "", is_email="@" in username, otp=form.otp)


@router.post("/refresh", response_model=TokenPair, dependencies=[CREDENTIALS_RATE])
async def refresh(request: Request, body: RefreshRequest | None = None) -> Response:
    """Exchange a refresh token for a new pair. The old one is spent."""
    token = body.refresh_token if body else None
    if token is not None:
        return _answer(await session_service.refresh(token), in_cookie=False)
    refuse_cross_site(request)
    token = refresh_cookie_of(request)
    if token is None:
        missing = {"loc": ["body", "refresh_token"], "msg": "Field required", "type": "missing"}
        raise InvalidContentError("Give the refresh token, in the body or in the cookie.", errors=[missing])
    return _answer(await session_service.refresh(token), in_cookie=True)


def _answer(signed_in: SignedIn, *, in_cookie: bool) -> Response:
    response = JsonResponse({**asdict(signed_in), **({"refresh_token": None} if in_cookie else {})})
    if in_cookie:
        set_refresh_cookie(response, signed_in.refresh_token, max_age=signed_in.refresh_expires_in)
    return response


@router.post("/logout", **NO_CONTENT)
async def log_out(request: Request, caller: Caller) -> Response:
    """End this session. Its tokens stop working at once."""
    await session_service.log_out(by=caller)
    return without_refresh_cookie(request)


@router.post("/logout-all", **NO_CONTENT)
async def log_out_everywhere(request: Request, caller: Caller) -> Response:
    """End all sessions of the user, this one included."""
    await session_service.log_out_everywhere(by=caller)
    return without_refresh_cookie(request)


@router.get("/sessions", response_model=list[SessionRead])
async def list_sessions(request: Request, caller: Caller, query: SessionList) -> Response:
    """Where you are signed in, newest first."""
    rows, next_cursor = await crud_session.page(caller.signed_in_id, limit=query.limit, cursor=query.cursor)
    shown = [{**session.model_dump(), "is_current": session.id == caller.session_id} for session in rows]
    return listed(request, [SessionRead.model_validate(session) for session in shown], next_cursor)


@router.delete("/sessions/{session_id}", **NO_CONTENT)
async def end_session(session_id: Id, caller: Caller) -> None:
    """Sign a device out. Its tokens stop working at once."""
    await session_service.end(session_id, by=caller)


@router.get("/me")
async def get_caller(caller: Caller) -> PrincipalRead:
    """Who is calling, and what it may do."""
    is_user = caller.kind is PrincipalKind.USER
    return PrincipalRead(
        kind=caller.kind,
        id=caller.id,
        name=caller.name,
        user_id=caller.user_id,
        role=caller.role,
        scopes=sorted(caller.scopes),
        session_id=caller.credential_id if is_user else None,
        key_id=None if is_user else caller.credential_id,
    )
