"""Bounds on the tries to prove who one is.

Every try is counted before anything is looked at and taken back when it succeeds, so that neither a crowd of tries at
the same time nor several processes get more of them (OWASP ASVS 5.0, 6.3.1). An account has a count for each way to
guess, so that what locks one does not lock the others, and what clears one does not clear the others.
"""

import asyncio
import math
from datetime import timedelta
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import AccountLockedError
from app.core.principal import ANONYMOUS
from app.crud import crud_login_throttle
from app.db.mongo import transactional
from app.models.enums import AuditAction, AuditOutcome, MailKind
from app.models.user import User
from app.services import audit_service, mail_service

# Tries that are under way fill the count for a moment; one more waits so long to see whether they succeed.
_UNDER_WAY: Final = timedelta(seconds=2)
_LOOK_EVERY_SECONDS: Final = 0.1
# Whoever locks an account again and again has its owner mailed no more often than this.
_TOLD_EVERY: Final = timedelta(days=1)


class Count(NamedTuple):
    """What is counted. The failure that locks is told to the owner; `window` is that of the settings when none."""

    name: str
    prefix: str
    refusal: str
    excess: str
    mail: MailKind
    window: timedelta | None = None


SIGN_IN: Final = Count(
    "sign-in", "", "account is locked", "Too many failed sign-ins. A new password unlocks.", MailKind.ACCOUNT_LOCKED
)
# Tries inside a session: what a stolen one guesses does not lock its owner out, nor strangers the owner in.
REAUTHENTICATION: Final = Count(
    "re-authentication",
    "reauth ",
    "passwords in sessions are locked",
    "Too many wrong passwords. A new password by mail unlocks.",
    MailKind.REAUTHENTICATION_LOCKED,
)
# Only who knows the password can guess here, so neither that nor a new password takes anything away.
SECOND_FACTOR: Final = Count(
    "second factor",
    "otp ",
    "codes are locked",
    "Too many wrong codes.",
    MailKind.SECOND_FACTOR_LOCKED,
    timedelta(hours=24),
)


class Attempt:
    """One try to prove that one is the user, or whoever has the name of `account`. Nobody has it: `user` is none."""

    def __init__(self, count: Count, user: User | None, account: dict[str, str] | None = None) -> None:
        self.count = count
        self.user = user
        self.account = account
        self.name = count.prefix + (str(user.id) if user else str(sorted((account or {}).items())))
        self.throttle_id = throttle_id(self.name)
        self.tries = 0

    async def begin(self) -> None:
        """Count it in; `AccountLockedError` when there were too many."""
        settings = get_settings()
        window = self.count.window or timedelta(minutes=settings.lockout_window_minutes)
        while True:
            throttle = await crud_login_throttle.take_try(
                self.throttle_id, attempts=settings.lockout_attempts, window=window
            )
            if throttle is not None:
                self.tries = throttle.tries
                return
            present = await crud_login_throttle.find(self.throttle_id)
            if present is None or present.locked_until is None:
                continue
            if present.has_failed or utc_now() - present.tried_at > _UNDER_WAY:
                await self._refuse(self.count.refusal)
                wait = max(1, math.ceil((present.locked_until - utc_now()).total_seconds()))
                raise AccountLockedError(wait, excess=self.count.excess)
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

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
        """Record the failure. One that locks is told to the owner, once a day."""
        await self._refuse(reason)
        if self.tries < get_settings().lockout_attempts:
            return
        await crud_login_throttle.mark_failed(self.throttle_id)
        if self.tries == get_settings().lockout_attempts:
            await self._record_lock()
        if await crud_login_throttle.take_notice(throttle_id(f"told {self.name}"), window=_TOLD_EVERY):
            await self._tell_of_lock()

    async def _record_lock(self) -> None:
        target = ("user", self.user.id if self.user else None)
        await audit_service.record(
            AuditAction.USER_LOCKED,
            by=ANONYMOUS,
            target=target,
            outcome=AuditOutcome.FAILURE,
            count=self.count.name,
            tries=self.tries,
        )

    async def _tell_of_lock(self) -> None:
        """The same work whether there is such an account or not; the sender finds out."""
        values = {"tries": self.tries, **mail_service.circumstances()}
        user_id = self.user.id if self.user and self.account is None else None
        await mail_service.enqueue(self.count.mail, user_id=user_id, account=self.account, values=values)

    async def _refuse(self, reason: str) -> None:
        await audit_service.record(
            AuditAction.SESSION_REFUSED,
            by=ANONYMOUS,
            target=("user", self.user.id if self.user else None),
            outcome=AuditOutcome.FAILURE,
            reason=reason,
        )


async def clear(user_id: ObjectId, *counts: Count) -> None:
    """Forget the failures of a user, and unlock what they have locked."""
    for count in counts:
        await crud_login_throttle.clear(throttle_id(f"{count.prefix}{user_id}"))


def throttle_id(name: str) -> bytes:
    return get_settings().keyring.mac("login throttle", name.encode())[:16]
