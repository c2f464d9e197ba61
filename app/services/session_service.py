"""Signing in, staying signed in, and signing out."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from beanie import PydanticObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.context import current_context
from app.core.exceptions import (
    AccountDisabledError,
    InvalidCredentialsError,
    InvalidTokenError,
    TokenRevokedError,
)
from app.core.normalise import name_key
from app.core.passwords import verify_password
from app.core.principal import ANONYMOUS, Principal
from app.core.tokens import RefreshToken, new_access_token, refresh_expiry
from app.crud import crud_session, crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction, AuditOutcome
from app.models.session import Session
from app.models.user import User
from app.services import audit_service

# A client that lost the answer may ask once more within this time.
_REPEAT_WITHIN: Final = timedelta(seconds=10)
_LONGEST_WALK: Final = 50_000
# Another login may renew the hash while this one checks against the old one: then it checks again.
_LOGIN_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Both tokens, in the words of RFC 6749. Times are in seconds."""

    access_token: str
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    scope: str
    token_type: str = "bearer"  # noqa: S105 - not a password


async def log_in(account: str, password: str, *, is_email: bool) -> SignedIn:
    """Start a session. It fails the same way, and takes the same time, whether the account exists or not."""
    find = crud_user.find_by_email_key if is_email else crud_user.find_by_username_key
    for _ in range(_LOGIN_ATTEMPTS):
        user = await _authenticated(await find(name_key(account)), password)
        if (signed_in := await _start(user)) is not None:
            return signed_in
    raise InvalidCredentialsError


async def _authenticated(user: User | None, password: str) -> User:
    verdict = await verify_password(password, user.hashed_password if user else None)
    if user is None or not verdict.is_right:
        await _record_refusal(user, "wrong password" if user else "no such account")
        raise InvalidCredentialsError
    if not user.is_active:  # told only to who knows the password
        await _record_refusal(user, "account is deactivated")
        raise AccountDisabledError
    if verdict.new_hash is not None and await crud_user.renew_hash(user, verdict.new_hash):
        user.hashed_password = verdict.new_hash
    return user


@transactional
async def _start(user: User) -> SignedIn | None:
    """None when the account was deactivated, or given another hash, since the password was checked."""
    now, context = utc_now(), current_context()
    # Written before the session, so that a change of role or a deactivation at this moment meets this transaction.
    present = await crud_user.mark_logged_in(user, at=now, ip=context.client_ip)
    if present is None:
        return None
    session_id = PydanticObjectId()
    refresh = RefreshToken.new(session_id)
    session = Session(
        id=session_id,
        user_id=present.id,
        **crud_session.identity_of(present),
        refresh_digest=refresh.digest,
        last_used_at=now,
        expires_at=refresh_expiry(now),
        ip=context.client_ip,
        user_agent=context.user_agent,
    )
    await session.insert()
    await audit_service.record(AuditAction.SESSION_CREATED, by=_principal_of(session), target=("session", session_id))
    return _tokens(session, refresh)


async def refresh(text: str) -> SignedIn:
    """Exchange a refresh token for the next pair.

    Repeating it within 10 s gives the same successor. A spent token that comes back later means that somebody has a
    copy: the whole session ends (RFC 9700, section 4.14.2).
    """
    token = RefreshToken.parse(text)
    if token is None:
        raise InvalidTokenError("The refresh token is not valid.")
    return await _rotate(token) or await _repeat_or_end(token)


@transactional
async def _rotate(token: RefreshToken) -> SignedIn | None:
    """None when the token is not the present one of its session."""
    now, successor = utc_now(), token.successors()[0]
    session = await crud_session.mark_rotated(
        token.session_id,
        spent=token.digest,
        successor=successor.digest,
        at=now,
        expires_at=refresh_expiry(now),
    )
    if session is None:
        return None
    await audit_service.record(AuditAction.SESSION_REFRESHED, by=_principal_of(session), target=("session", session.id))
    return _tokens(session, successor)


async def _repeat_or_end(token: RefreshToken) -> SignedIn:
    session = await crud_session.find(token.session_id)
    if session is None:
        raise TokenRevokedError
    if session.rotated_at is not None and utc_now() - session.rotated_at <= _REPEAT_WITHIN:
        for successor in token.successors():
            if successor.digest == session.refresh_digest:
                return _tokens(session, successor)
    if token.precedes(session.refresh_digest, within=min(session.generation, _LONGEST_WALK)):
        await _end_stolen(session)
        raise TokenRevokedError
    raise InvalidTokenError("The refresh token is not valid.")


@transactional
async def _end_stolen(session: Session) -> None:
    if await crud_session.end(session.id):
        await audit_service.record(
            AuditAction.SESSION_REUSE_DETECTED,
            by=_principal_of(session),
            target=("session", session.id),
            outcome=AuditOutcome.FAILURE,
        )


@transactional
async def log_out(*, by: Principal) -> None:
    """End the session in use."""
    if await crud_session.end(by.session_id):
        await audit_service.record(AuditAction.SESSION_ENDED, by=by, target=("session", by.session_id))


@transactional
async def log_out_everywhere(*, by: Principal) -> None:
    """End every session of the user, the one in use included. Keys have no session and end none."""
    user_id = by.signed_in_id
    count = await crud_session.end_all(user_id)
    await audit_service.record(AuditAction.SESSIONS_ENDED, by=by, target=("user", user_id), count=count)


def _tokens(session: Session, refresh_token: RefreshToken) -> SignedIn:
    principal = _principal_of(session)
    access_token, life = new_access_token(principal)
    return SignedIn(
        access_token=access_token,
        expires_in=life,
        refresh_token=str(refresh_token),
        refresh_expires_in=get_settings().refresh_token_expire_days * 24 * 3600,
        scope=principal.scope,
    )


def _principal_of(session: Session) -> Principal:
    return Principal.of_user(
        session.user_id,
        name=session.username,
        role=session.role,
        session_id=session.id,
        staff_level=session.staff_level,
        has_mfa=session.has_mfa,
        rate_limit=session.rate_limit,
    )


async def _record_refusal(user: User | None, reason: str) -> None:
    await audit_service.record(
        AuditAction.SESSION_REFUSED,
        by=ANONYMOUS,
        target=("user", user.id if user else None),
        outcome=AuditOutcome.FAILURE,
        reason=reason,
    )
