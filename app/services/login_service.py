"""Signing in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from beanie import PydanticObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.context import current_context
from app.core.exceptions import (
    AccountDisabledError,
    EmailNotVerifiedError,
    InvalidCredentialsError,
    InvalidOtpError,
    MfaRequiredError,
)
from app.core.normalise import name_key
from app.core.tokens import RefreshToken, refresh_life, session_life
from app.core.user_agents import device_of
from app.crud import crud_session, crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction
from app.models.session import Session
from app.models.user import User
from app.services import audit_service
from app.services.credential_service import WRONG_CODE, check_password, take_code
from app.services.session_service import SignedIn, make_way, principal_of, tokens_of
from app.services.throttle_service import SECOND_FACTOR, SIGN_IN, Attempt

# Another login may renew the hash while this one checks against the old one: then it checks again.
_ATTEMPTS: Final = 3


async def log_in(
    account: str, password: str, *, is_email: bool, otp: str | None = None, replaced: str | None = None
) -> SignedIn:
    """Start a session. `replaced` is the refresh token of the one that the browser has now, if it has one.

    It fails the same way, and takes the same time, whether the account exists or not. What is wrong with the account
    itself is told only to who knows the password.
    """
    key = name_key(account)
    for _ in range(_ATTEMPTS):
        user = await (crud_user.find_by_email_key(key) if is_email else crud_user.find_by_username_key(key))
        attempt = Attempt(SIGN_IN, user, {"email_key" if is_email else "username_key": key})
        await attempt.begin()
        present = await _authenticated(attempt, password)
        await _require_ready(attempt, present, otp)
        device = await asyncio.to_thread(device_of, current_context().user_agent)
        old = RefreshToken.parse(replaced or "")
        if (signed_in := await _start_with_code(attempt, present, otp, device, old)) is not None:
            await attempt.succeed()
            return signed_in
        await attempt.leave()
    raise InvalidCredentialsError


async def _authenticated(attempt: Attempt, password: str) -> User:
    """The user, whose password it is; the hash renewed when it was made with other settings."""
    verdict = await check_password(attempt, password)
    user = attempt.user
    if user is None:  # pragma: no cover - no password is right for nobody
        raise InvalidCredentialsError
    if verdict.new_hash is not None and await crud_user.renew_hash(user, verdict.new_hash):
        user.hashed_password = verdict.new_hash
    return user


async def _require_ready(attempt: Attempt, user: User, otp: str | None) -> None:
    if not user.is_active:
        await attempt.refuse("account is deactivated")
        raise AccountDisabledError
    if get_settings().require_verified_email and not user.is_verified:
        await attempt.refuse("address is not verified")
        raise EmailNotVerifiedError
    if user.mfa_enabled and otp is None:
        await attempt.leave()
        raise MfaRequiredError


async def _start_with_code(
    attempt: Attempt, user: User, otp: str | None, device: str | None, replaced: RefreshToken | None
) -> SignedIn | None:
    """Count the code, where one is needed, and start. A wrong one does not count as a wrong password."""
    if not user.mfa_enabled:
        async with _left_on_error(attempt):
            return await _start(user, None, device, replaced)
    codes = Attempt(SECOND_FACTOR, user)
    async with _left_on_error(attempt):
        await codes.begin()
        try:
            async with _left_on_error(codes, but=InvalidOtpError):
                signed_in = await _start(user, otp, device, replaced)
        except InvalidOtpError:
            await codes.fail(WRONG_CODE)
            raise
    await (codes.leave() if signed_in is None else codes.succeed())
    return signed_in


@asynccontextmanager
async def _left_on_error(attempt: Attempt, *, but: type[Exception] | None = None) -> AsyncIterator[None]:
    """A fault of ours, or a failure of something else, is no failed try."""
    try:
        yield
    except Exception as error:
        if but is None or not isinstance(error, but):
            with suppress(Exception):  # the database may be what has failed
                await attempt.leave()
        raise


@transactional
async def _start(user: User, otp: str | None, device: str | None, replaced: RefreshToken | None) -> SignedIn | None:
    """None when the account was deactivated, or given another hash or a second factor, since it was read."""
    now, context = utc_now(), current_context()
    # Written before the session, so that a change of role or a deactivation at this moment meets this transaction.
    present = await crud_user.mark_logged_in(user, at=now, ip=context.client_ip)
    if present is None:
        return None
    if present.mfa_enabled and not await take_code(present, otp or ""):
        raise InvalidOtpError
    session_id = PydanticObjectId()
    refresh = RefreshToken.new(session_id)
    session = Session(
        id=session_id,
        user_id=present.id,
        **crud_session.identity_of(present),
        has_mfa=present.mfa_enabled,
        refresh_digest=refresh.digest,
        created_at=now,
        last_used_at=now,
        expires_at=now + min(refresh_life(), session_life()),
        ip=context.client_ip,
        user_agent=context.user_agent,
        device=device,
    )
    await session.insert()
    await make_way(session, replaced=replaced)
    await audit_service.record(AuditAction.SESSION_CREATED, by=principal_of(session), target=("session", session_id))
    return tokens_of(session, refresh, at=now)
