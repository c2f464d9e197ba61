"""The second factor: an authenticator that shows codes, and recovery codes for the day it is lost."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

from beanie import PydanticObjectId
from bson import ObjectId
from cryptography.fernet import InvalidToken

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import ConflictError, InvalidOtpError
from app.core.principal import Principal
from app.core.totp import matching_step, new_recovery_codes, new_secret, otpauth_uri, qr_svg, recovery_digests
from app.crud import crud_encrypted_secret, crud_session, crud_user
from app.crud.crud_encrypted_secret import Place
from app.db.mongo import transactional
from app.models.enums import AuditAction, MailKind
from app.models.user import Mfa, PendingMfa, User
from app.services import audit_service, mail_service, throttle_service
from app.services.credential_service import WRONG_CODE, require_password, require_password_and_code
from app.services.throttle_service import SECOND_FACTOR, Attempt

_SET_UP_WITHIN: Final = timedelta(hours=1)


class SetUp(NamedTuple):
    """What an authenticator needs to know, as text, as a link and as a picture."""

    secret: str
    otpauth_uri: str
    qr_svg: str


async def prepare(current_password: str, *, by: Principal) -> SetUp:
    """Make a secret for an authenticator. It counts once `confirm` was shown a code of it, in the same session."""
    user = await crud_user.require(by.signed_in_id)
    await require_password(user, current_password)
    secret = new_secret()
    await _prepare(user, secret, by=by)
    uri = otpauth_uri(secret, user.email)
    return SetUp(secret, uri, await asyncio.to_thread(qr_svg, uri))


@transactional
async def _prepare(user: User, secret: str, *, by: Principal) -> None:
    if user.mfa_enabled:
        raise ConflictError("Two-factor authentication is on already. Turn it off first.")
    sealed = get_settings().cipher.encrypt(secret.encode())
    pending = PendingMfa(encrypted_secret=sealed, created_at=utc_now(), session_id=PydanticObjectId(by.session_id))
    await crud_user.change(user.id, {"pending_mfa": pending.model_dump()}, expected={"mfa": None})
    await audit_service.record(AuditAction.MFA_PREPARED, by=by, target=("user", user.id))


async def confirm(code: str, *, by: Principal) -> list[str]:
    """Turn it on with a first code. The recovery codes leave with the result and are stored only as keyed hashes.

    The other sessions end: they were begun with a password alone.
    """
    user = await crud_user.require(by.signed_in_id)
    pending = user.pending_mfa
    is_ours = pending is not None and pending.session_id == by.session_id
    if pending is None or not is_ours or utc_now() - pending.created_at > _SET_UP_WITHIN:
        raise ConflictError("Set up an authenticator first, with POST /api/v1/auth/mfa/totp.")
    attempt = Attempt(SECOND_FACTOR, user)
    await attempt.begin()
    step = matching_step(get_settings().cipher.decrypt(pending.encrypted_secret).decode(), code.replace(" ", ""))
    if step is None:
        await attempt.fail(WRONG_CODE)
        raise InvalidOtpError
    codes = new_recovery_codes()
    mfa = Mfa(
        encrypted_secret=pending.encrypted_secret,
        last_step=step,
        confirmed_at=utc_now(),
        recovery_digests=_digests(user.id, codes),
    )
    try:
        await _turn_on(user, mfa, by=by)
    except ConflictError:
        await attempt.leave()
        raise
    await attempt.succeed()
    return codes


@transactional
async def _turn_on(user: User, mfa: Mfa, *, by: Principal) -> None:
    expected = {"mfa": None, "pending_mfa.encrypted_secret": mfa.encrypted_secret}
    await crud_user.change(user.id, {"mfa": mfa.model_dump(), "pending_mfa": None}, expected=expected)
    await crud_session.end_all(user.id, but=by.session_id)
    await crud_session.mark_second_factor(by.session_id)
    await audit_service.record(AuditAction.MFA_ENABLED, by=by, target=("user", user.id))
    await mail_service.enqueue(MailKind.MFA_ENABLED, user_id=user.id, values=mail_service.circumstances())


async def turn_off(current_password: str, code: str | None, *, by: Principal) -> None:
    """Go back to the password alone. It needs the password and a code, be it a recovery code."""
    user = await _with_second_factor(by)
    await require_password_and_code(user, current_password, code)
    await turn_off_for(user, by=by)


@transactional
async def turn_off_for(user: User, *, by: Principal) -> None:
    """Turn it off without a code: for the operator, when a user has lost everything."""
    await crud_user.change(user.id, {"mfa": None, "pending_mfa": None}, expected={})
    await crud_session.unmark_second_factor(user.id)
    await record_turned_off(user, by=by)


async def record_turned_off(user: User, *, by: Principal, **details: Any) -> None:
    """What follows from turning it off. Call it inside the transaction that does."""
    await throttle_service.clear(user.id, SECOND_FACTOR)  # what was guessed at is gone
    await audit_service.record(AuditAction.MFA_DISABLED, by=by, target=("user", user.id), **details)
    await mail_service.enqueue(MailKind.MFA_DISABLED, user_id=user.id, values=mail_service.circumstances())


async def renew_recovery_codes(current_password: str, code: str | None, *, by: Principal) -> list[str]:
    """Ten new codes in place of those that are left."""
    user = await _with_second_factor(by)
    await require_password_and_code(user, current_password, code)
    codes = new_recovery_codes()
    await _renew(user, {"mfa.recovery_digests": _digests(user.id, codes)}, by=by)
    return codes


@transactional
async def _renew(user: User, changes: dict[str, Any], *, by: Principal) -> None:
    await crud_user.change(user.id, changes, expected={"mfa": {"$ne": None}})
    await audit_service.record(AuditAction.RECOVERY_CODES_RENEWED, by=by, target=("user", user.id))
    values = mail_service.circumstances()
    await mail_service.enqueue(MailKind.RECOVERY_CODES_RENEWED, user_id=user.id, values=values)


async def encrypt_again() -> int:
    """Put every secret under the first of `ENCRYPTION_KEYS`. How many there were; one that changes meanwhile is new.

    `ConflictError` when none of the keys opens one.
    """
    # Who is deleted meanwhile is met in the archive, and who is restored from it, among the users at last.
    await _encrypt_again(crud_encrypted_secret.OF_USERS)
    count = await _encrypt_again(crud_encrypted_secret.OF_DELETED_USERS)
    return count + await _encrypt_again(crud_encrypted_secret.OF_USERS)


async def _encrypt_again(places: Sequence[Place]) -> int:
    count = 0
    for place in places:
        async for user_id, encrypted in crud_encrypted_secret.walk(place):
            try:
                sealed_again = get_settings().cipher.rotate(encrypted)
            except InvalidToken as error:
                raise ConflictError(f"No key of ENCRYPTION_KEYS opens the secret of user {user_id}.") from error
            await crud_encrypted_secret.replace(place, user_id, encrypted, sealed_again)
            count += 1
    return count


async def _with_second_factor(by: Principal) -> User:
    user = await crud_user.require(by.signed_in_id)
    if not user.mfa_enabled:
        raise ConflictError("Two-factor authentication is not on.")
    return user


def _digests(user_id: ObjectId, codes: list[str]) -> list[bytes]:
    return [recovery_digests(user_id, code)[0] for code in codes]
