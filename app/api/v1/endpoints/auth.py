from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form

from app.api.deps import CREDENTIALS_RATE, Caller, OptionalCaller
from app.api.responses import NO_CONTENT
from app.core.principal import PrincipalKind
from app.models.user import User
from app.schemas.auth import Login, PrincipalRead, RefreshRequest, TokenForm, TokenPair
from app.schemas.user import UserCreate, UserRead
from app.services import session_service, user_service
from app.services.session_service import SignedIn

router = APIRouter(prefix="/api/v1/auth", tags=["auth"])


@router.post("/register", status_code=HTTPStatus.CREATED, response_model=UserRead)
async def register(body: UserCreate, caller: OptionalCaller) -> User:
    """Make an account. The same as `POST /api/v1/users`."""
    return await user_service.register(body, by=caller)


@router.post("/login", response_model=TokenPair, dependencies=[CREDENTIALS_RATE])
async def log_in(body: Login) -> SignedIn:
    """Sign in with an e-mail address or a username."""
    return await session_service.log_in(
        body.email or body.username or "", body.password, is_email=body.email is not None
    )


@router.post("/token", response_model=TokenPair, dependencies=[CREDENTIALS_RATE])
async def request_token(form: Annotated[TokenForm, Form()]) -> SignedIn:
    """Sign in, or refresh, with an OAuth 2 form (RFC 6749, sections 4.3 and 6).

    Its errors also carry `error` and `error_description` of section 5.2: `invalid_grant`, `invalid_request`,
    `unsupported_grant_type`; and `temporarily_unavailable` or `server_error` when it is not for what was sent.
    """
    if form.grant_type == "refresh_token":
        return await session_service.refresh(form.refresh_token or "")
    username = form.username or ""
    return await session_service.log_in(username, form.password or "", is_email="@" in username)


@router.post("/refresh", response_model=TokenPair, dependencies=[CREDENTIALS_RATE])
async def refresh(body: RefreshRequest) -> SignedIn:
    """Exchange a refresh token for a new pair. The old one is spent."""
    return await session_service.refresh(body.refresh_token)


@router.post("/logout", **NO_CONTENT)
async def log_out(caller: Caller) -> None:
    """End this session. Its tokens stop working at once."""
    await session_service.log_out(by=caller)


@router.post("/logout-all", **NO_CONTENT)
async def log_out_everywhere(caller: Caller) -> None:
    """End all sessions of the user, this one included."""
    await session_service.log_out_everywhere(by=caller)


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
