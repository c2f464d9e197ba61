"""Links in mails that work once: for a new password, and to verify an address."""

from datetime import timedelta
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
from app.models.one_time_token import OneTimeToken
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


@transactional
async def make(purpose: TokenPurpose, user: User, *, mail_id: ObjectId) -> dict[str, Any] | None:
    """The `link` for a mail, and its life in `hours`; the same for the same mail.

    None when the user has no use for it: deactivated, verified already, just given another one, or done with this one
    while the mail was tried again.
    """
    now = utc_now()
    is_pointless = purpose is TokenPurpose.EMAIL_VERIFICATION and user.is_verified
    if not user.is_active or is_pointless:
        return None
    if not await crud_outgoing_mail.hold(mail_id):
        return None
    if await crud_one_time_token.was_made_since(
        now - _PAUSE, user_id=user.id, purpose=purpose, email_key=user.email_key, but=mail_id
    ):
        return None
    life = _LIFE[purpose]
    token = OneTimeToken(id=mail_id, purpose=purpose, user_id=user.id, email_key=user.email_key, expires_at=now + life)
    if await crud_one_time_token.add(token) and purpose is TokenPurpose.PASSWORD_RESET:
        sender = Principal.system("mailer")
        await audit_service.record(AuditAction.PASSWORD_RESET_REQUESTED, by=sender, target=("user", user.id))
    return {"link": _url(purpose, token_text(mail_id, purpose)), "hours": int(life.total_seconds() // 3600)}


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
