"""Links in mails that work once: for a new password, and to verify an address."""

from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from bson import ObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import InvalidTokenError
from app.core.one_time_token import read_token, token_text
from app.core.principal import Principal
from app.crud import crud_one_time_token, crud_outgoing_mail
from app.db.mongo import transactional
from app.models.enums import AuditAction, MailKind, TokenPurpose
from app.models.one_time_token import LINK_REMEMBERED, OneTimeToken
from app.models.outgoing_mail import OutgoingMail
from app.models.user import User
from app.services import audit_service

PURPOSE_OF_MAIL: Final = {
    MailKind.EMAIL_VERIFICATION: TokenPurpose.EMAIL_VERIFICATION,
    MailKind.PASSWORD_RESET: TokenPurpose.PASSWORD_RESET,
}
_LIFE: Final = {
    TokenPurpose.EMAIL_VERIFICATION: timedelta(hours=24),
    TokenPurpose.PASSWORD_RESET: timedelta(hours=1),
}
_PAGE: Final = {
    TokenPurpose.EMAIL_VERIFICATION: "/api/v1/auth/email/verify",
    TokenPurpose.PASSWORD_RESET: "/api/v1/auth/password/reset",
}
# Whoever knows an address can have mails sent there, but not a stream of them.
_PAUSE: Final = timedelta(minutes=1)
_A_DAY: Final = 5  # where it is not known whose the address is
# And nobody can use up what its owner needs: from then on one is mailed when the one before has had its time.
_IN_A_ROW: Final = 3


@transactional
async def make(mail: OutgoingMail, user: User) -> dict[str, Any] | None:
    """The `link` for a mail, and `until` when it is good; the same for a mail that is sent again.

    None when the mail is not to be sent: the user has no use for it, it has waited for as long as a link lives, what it
    was sent with before is over, or there were others enough.
    """
    now, purpose = utc_now(), PURPOSE_OF_MAIL[mail.kind]
    is_pointless = purpose is TokenPurpose.EMAIL_VERIFICATION and user.is_verified
    is_late = now >= mail.created_at + _LIFE[purpose]
    if not user.is_active or is_pointless or is_late or not await crud_outgoing_mail.hold(mail.id):
        return None
    token = await crud_one_time_token.find_of_mail(mail.id)
    if token is not None:
        return _shown(token) if _is_good(token, user, now) else None
    if await _were_enough(purpose, user, now):
        return None
    token = OneTimeToken(
        id=mail.id,
        purpose=purpose,
        user_id=user.id,
        email_key=user.email_key,
        created_at=now,
        expires_at=now + _LIFE[purpose],
    )
    await token.insert()
    if purpose is TokenPurpose.PASSWORD_RESET:
        sender = Principal.system("mailer")
        await audit_service.record(AuditAction.PASSWORD_RESET_REQUESTED, by=sender, target=("user", user.id))
    return _shown(token)


def _is_good(token: OneTimeToken, user: User, now: datetime) -> bool:
    """Whether it may be sent once more: never to another address than the one that it proves to be the user's."""
    return token.ended_at is None and token.expires_at > now and token.email_key == user.email_key


async def _were_enough(purpose: TokenPurpose, user: User, now: datetime) -> bool:
    count = await crud_one_time_token.count_since(now - LINK_REMEMBERED, user=user, purpose=purpose)
    if count >= _A_DAY and not user.is_verified:
        return True
    pause = _LIFE[purpose] if count >= _IN_A_ROW and user.is_verified else _PAUSE
    return await crud_one_time_token.was_made_since(now - pause, user=user, purpose=purpose)


def _shown(token: OneTimeToken) -> dict[str, Any]:
    link = _url(token.purpose, token_text(token.id, token.purpose))
    return {"link": link, "until": f"{token.expires_at:%d %B %Y, %H:%M} UTC"}


def read(text: str, purpose: TokenPurpose) -> ObjectId:
    """The id of a token of ours; else `InvalidTokenError`."""
    token_id = read_token(text, purpose)
    if token_id is None:
        raise unusable()
    return token_id


def unusable() -> InvalidTokenError:
    return InvalidTokenError("The link is not valid, was used before, or has expired. Ask for another one.")


def _url(purpose: TokenPurpose, token: str) -> str:
    settings = get_settings()
    own_pages = {
        TokenPurpose.EMAIL_VERIFICATION: settings.email_verify_url,
        TokenPurpose.PASSWORD_RESET: settings.password_reset_url,
    }
    page = own_pages[purpose] or f"{settings.public_url.rstrip('/')}{_PAGE[purpose]}"
    return f"{page}{'&' if '?' in page else '?'}token={quote(token)}"
