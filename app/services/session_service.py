"""Staying signed in, and signing out."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from bson import ObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import (
    EmailNotVerifiedError,
    InvalidTokenError,
    NotFoundError,
    TokenRevokedError,
)
from app.core.principal import Principal
from app.core.tokens import RefreshToken, new_access_token, refresh_life, session_life
from app.crud import crud_session
from app.db.mongo import transactional
from app.models.enums import AuditAction, AuditOutcome
from app.models.session import Session
from app.services import audit_service

# A client that lost the answer may ask once more within this time.
_REPEAT_WITHIN: Final = timedelta(seconds=10)
_MOST: Final = 50  # sessions of one user
# Who refreshes every half an hour gets there in a hundred days. A forged token costs its reader the whole walk: 25 ms.
_LONGEST_WALK: Final = 5_000


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Both tokens, in the words of RFC 6749. Times are in seconds."""

    access_token: str
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    scope: str
    token_type: str = "bearer"  # noqa: S105 - not a password


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
        life=refresh_life(),
        longest=session_life(),
    )
    if session is None:
        return None
    _require_verified(session)
    await audit_service.record(AuditAction.SESSION_REFRESHED, by=principal_of(session), target=("session", session.id))
    return tokens_of(session, successor, at=now)


async def _repeat_or_end(token: RefreshToken) -> SignedIn:
    session, now = await crud_session.find(token.session_id), utc_now()
    if session is None or now >= session.created_at + session_life():
        raise TokenRevokedError
    # Also by a clock that was put back: a time to come must not make the grace an hour longer.
    if session.rotated_at is not None and abs(now - session.rotated_at) <= _REPEAT_WITHIN:
        for successor in token.successors():
            if successor.digest == session.refresh_digest:
                _require_verified(session)
                return tokens_of(session, successor, at=now)
    walk = min(session.generation, _LONGEST_WALK)
    if await asyncio.to_thread(token.precedes, session.refresh_digest, within=walk):
        await _end_stolen(session)
        raise TokenRevokedError
    raise InvalidTokenError("The refresh token is not valid.")


def _require_verified(session: Session) -> None:
    """As when signing in. The refresh token stays good, so that the session goes on once the address is verified."""
    if get_settings().require_verified_email and not session.is_verified:
        raise EmailNotVerifiedError


@transactional
async def _end_stolen(session: Session) -> None:
    if await crud_session.end(session.id, user_id=session.user_id):
        await audit_service.record(
            AuditAction.SESSION_REUSE_DETECTED,
            by=principal_of(session),
            target=("session", session.id),
            outcome=AuditOutcome.FAILURE,
        )


async def make_way(begun: Session, *, replaced: RefreshToken | None) -> None:
    """End what a session that begins takes the place of. Call it inside the transaction that begins it.

    That is the one whose refresh token the browser had, whoever's it was (OWASP ASVS 5.0, 7.2.4), and beyond the number
    that a user may have, those that were used longest ago.
    """
    ended = await crud_session.end_by_token(replaced.session_id, replaced.digest) if replaced else None
    if ended is not None:
        await audit_service.record(
            AuditAction.SESSION_ENDED, by=principal_of(ended), target=("session", ended.id), reason="replaced"
        )
    count = await crud_session.end_longest_unused(begun.user_id, but=begun.id, keep=_MOST - 1)
    if count:
        target = ("user", begun.user_id)
        await audit_service.record(
            AuditAction.SESSIONS_ENDED, by=principal_of(begun), target=target, count=count, reason="too many"
        )


@transactional
async def end(session_id: ObjectId, *, by: Principal) -> None:
    """End one session of the user's own. Others' do not exist for it."""
    if not await crud_session.end(session_id, user_id=by.signed_in_id):
        raise NotFoundError("There is no such session.")
    await audit_service.record(AuditAction.SESSION_ENDED, by=by, target=("session", session_id))


@transactional
async def log_out(*, by: Principal) -> None:
    """End the session in use."""
    if await crud_session.end(by.session_id, user_id=by.signed_in_id):
        await audit_service.record(AuditAction.SESSION_ENDED, by=by, target=("session", by.session_id))


@transactional
async def log_out_everywhere(*, by: Principal) -> None:
    """End every session of the user, the one in use included. Keys have no session and end none."""
    user_id = by.signed_in_id
    count = await crud_session.end_all(user_id)
    await audit_service.record(AuditAction.SESSIONS_ENDED, by=by, target=("user", user_id), count=count)


def tokens_of(session: Session, refresh_token: RefreshToken, *, at: datetime) -> SignedIn:
    principal = principal_of(session)
    access_token, life = new_access_token(principal, session_ends_at=session.expires_at)
    return SignedIn(
        access_token=access_token,
        expires_in=life,
        refresh_token=str(refresh_token),
        refresh_expires_in=int((session.expires_at - at).total_seconds()),
        scope=principal.scope,
    )


def principal_of(session: Session) -> Principal:
    return Principal.of_user(
        session.user_id,
        name=session.username,
        role=session.role,
        session_id=session.id,
        staff_level=session.staff_level,
        has_mfa=session.has_mfa,
        rate_limit=session.rate_limit,
    )
