"""Proving who one is: password and second factor, with a bound on the tries of each."""

from typing import Final

from app.core.config import get_settings
from app.core.exceptions import InvalidCredentialsError, InvalidOtpError, MfaRequiredError
from app.core.passwords import Verdict, verify_password
from app.core.principal import ANONYMOUS
from app.core.totp import matching_step, recovery_digests
from app.crud import crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction, MailKind
from app.models.user import User
from app.services import audit_service, mail_service
from app.services.throttle_service import REAUTHENTICATION, SECOND_FACTOR, Attempt

WRONG_CODE: Final = "wrong code"


async def check_password(attempt: Attempt, password: str) -> Verdict:
    """`InvalidCredentialsError` when it is wrong. It takes the same time when there is no such account."""
    user = attempt.user
    verdict = await verify_password(password, user.hashed_password if user else None)
    if not verdict.is_right:
        await attempt.fail("wrong password" if user else "no such account")
        raise InvalidCredentialsError
    return verdict


async def require_password(user: User, password: str | None) -> None:
    """Let a signed-in user go on who knows its password.

    A stolen session is no way to guess it: these tries are counted as those of signing in are, and apart from them.
    """
    wrong = InvalidCredentialsError("Give your current password in `current_password`.")
    if password is None:  # nothing was guessed
        raise wrong
    attempt = Attempt(REAUTHENTICATION, user)
    await attempt.begin()
    try:
        await check_password(attempt, password)
    except InvalidCredentialsError:
        raise wrong from None
    await attempt.succeed()


async def require_password_and_code(user: User, password: str | None, otp: str | None) -> None:
    """Let a signed-in user go on who knows its password and shows its second factor, if it has one."""
    await require_password(user, password)
    if not user.mfa_enabled:
        return
    if otp is None:
        raise MfaRequiredError
    attempt = Attempt(SECOND_FACTOR, user)
    await attempt.begin()
    if not await _take_code(user, otp):
        await attempt.fail(WRONG_CODE)
        raise InvalidOtpError
    await attempt.succeed()


async def take_code(user: User, code: str) -> bool:
    """Use up a code of the user's authenticator or one of its recovery codes; False when it is neither, or was used.

    Count the try first. Call it inside the transaction that it allows: when that fails, the code is good again.
    """
    if user.mfa is None:
        return False
    secret = get_settings().cipher.decrypt(user.mfa.encrypted_secret).decode()
    step = matching_step(secret, code.replace(" ", ""))
    if step is not None:
        return await crud_user.spend_step(user.id, step)
    left = await crud_user.spend_recovery_code(user.id, recovery_digests(user.id, code))
    if left is None:
        return False
    await audit_service.record(AuditAction.RECOVERY_CODE_USED, by=ANONYMOUS, target=("user", user.id), left=left)
    values = {"left": left, **mail_service.circumstances()}
    await mail_service.enqueue(MailKind.RECOVERY_CODE_USED, user_id=user.id, values=values)
    return True


_take_code = transactional(take_code)
