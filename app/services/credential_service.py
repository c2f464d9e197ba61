"""Proving who one is: password and second factor, with a bound on the tries.

Every try is counted before the password is looked at and taken back when it succeeds, so that neither a crowd of
tries at the same time nor several processes get more of them (OWASP ASVS 5.0, 6.3.1).
"""

import asyncio
import math
from datetime import timedelta
from typing import Final

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import (
    AccountLockedError,
    InvalidCredentialsError,
    InvalidOtpError,
    MfaRequiredError,
)
from app.core.passwords import Verdict, verify_password
from app.core.principal import ANONYMOUS
from app.core.totp import matching_step, recovery_digests
from app.crud import crud_login_throttle, crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction, AuditOutcome, MailKind
from app.models.user import User
from app.services import audit_service, mail_service

# Tries that are under way fill the count for a moment; one more waits so long to see whether they succeed.
_UNDER_WAY: Final = timedelta(seconds=2)
_LOOK_EVERY_SECONDS: Final = 0.1


class Attempt:
    """One try to prove that one is the user, or whoever has that name. Nobody has it: `user` is none."""

    def __init__(self, user: User | None, account: dict[str, str]) -> None:
        self.user = user
        self.account = account
        name = str(user.id) if user else str(sorted(account.items()))
        self.throttle_id = throttle_id(name)
        self.tries = 0

    async def begin(self) -> None:
        """Count it in; `AccountLockedError` when there were too many."""
        while True:
            throttle = await crud_login_throttle.take_try(self.throttle_id)
            if throttle is not None:
                self.tries = throttle.tries
                return
            present = await crud_login_throttle.find(self.throttle_id)
            if present is None or present.locked_until is None:
                continue
            if present.has_failed or utc_now() - present.tried_at > _UNDER_WAY:
                await self._refuse("account is locked")
                raise AccountLockedError(max(1, math.ceil((present.locked_until - utc_now()).total_seconds())))
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    async def check_password(self, password: str) -> Verdict:
        """`InvalidCredentialsError` when it is wrong. It takes the same time when there is no such account."""
        verdict = await verify_password(password, self.user.hashed_password if self.user else None)
        if not verdict.is_right:
            await self.fail("wrong password" if self.user else "no such account")
            raise InvalidCredentialsError
        return verdict

    async def succeed(self) -> None:
        await crud_login_throttle.clear(self.throttle_id)

    @transactional
    async def refuse(self, reason: str) -> None:
        """Record that who knows the password may not sign in all the same. It counts as no failure."""
        await self._refuse(reason)
        await self.leave()

    async def leave(self) -> None:
        """It was no failure, and no success either."""
        await crud_login_throttle.give_back(self.throttle_id)

    @transactional
    async def fail(self, reason: str) -> None:
        """Record the failure. The one that locks the account is told to its owner."""
        await self._refuse(reason)
        if self.tries >= get_settings().lockout_attempts:
            await crud_login_throttle.mark_failed(self.throttle_id)
        if self.tries == get_settings().lockout_attempts:
            await self._tell_of_lock()

    async def _tell_of_lock(self) -> None:
        """The same work whether there is such an account or not; the sender finds out."""
        target = ("user", self.user.id if self.user else None)
        await audit_service.record(
            AuditAction.USER_LOCKED, by=ANONYMOUS, target=target, outcome=AuditOutcome.FAILURE, tries=self.tries
        )
        values = {"tries": self.tries, **mail_service.circumstances()}
        await mail_service.enqueue(MailKind.ACCOUNT_LOCKED, account=self.account, values=values)

    async def _refuse(self, reason: str) -> None:
        await audit_service.record(
            AuditAction.SESSION_REFUSED,
            by=ANONYMOUS,
            target=("user", self.user.id if self.user else None),
            outcome=AuditOutcome.FAILURE,
            reason=reason,
        )


def throttle_id(name: str) -> bytes:
    return get_settings().keyring.mac("login throttle", name.encode())[:16]


async def require_password(user: User, password: str | None) -> None:
    """Let a signed-in user go on who knows its password.

    A stolen session is no way to guess it: these tries count as those of signing in do. Where there is a second
    factor, it is no way to clear the count of wrong codes either.
    """
    attempt = await _with_password(user, password)
    await (attempt.leave() if user.mfa_enabled else attempt.succeed())


async def require_password_and_code(user: User, password: str | None, otp: str | None) -> None:
    """Let a signed-in user go on who knows its password and shows its second factor."""
    attempt = await _with_password(user, password)
    if otp is None:
        await attempt.leave()
        raise MfaRequiredError
    if not await _take_code(user, otp):
        await attempt.fail("wrong code")
        raise InvalidOtpError
    await attempt.succeed()


async def _with_password(user: User, password: str | None) -> Attempt:
    wrong = InvalidCredentialsError("Give your current password in `current_password`.")
    if password is None:  # nothing was guessed
        raise wrong
    attempt = Attempt(user, {"email_key": user.email_key})
    await attempt.begin()
    try:
        await attempt.check_password(password)
    except InvalidCredentialsError:
        raise wrong from None
    return attempt


async def take_code(user: User, code: str) -> bool:
    """Use up a code of the user's authenticator or one of its recovery codes; False when it is neither, or was used.

    Call it inside the transaction that it allows: when that fails, the code is good again.
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
