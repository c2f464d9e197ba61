"""A new password for who has lost it and can read the account's mail."""

from typing import Any

from bson import ObjectId

from app.core.clock import utc_now
from app.core.passwords import hash_password, personal_words, require_strong
from app.core.principal import ANONYMOUS
from app.core.scopes import Role
from app.crud import crud_api_key, crud_one_time_token, crud_session, crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction, MailKind, TokenPurpose
from app.services import audit_service, link_service, mail_service, mfa_service, throttle_service
from app.services.throttle_service import REAUTHENTICATION, SIGN_IN


async def reset(token: str, password: str) -> None:
    """Set a password by the link of a mail, which works once.

    It ends every session, switches off every key of the user's own, unlocks the account, and proves that the address
    is the user's. Where that is the first proof, the second factor of a plain user is dropped: it may be that of a
    stranger who registered the address. A password that is too weak does not use up the link.
    `InvalidTokenError` when the link is none of ours, was used, or has expired.
    """
    token_id = link_service.read(token, TokenPurpose.PASSWORD_RESET)
    found = await crud_one_time_token.find(token_id, TokenPurpose.PASSWORD_RESET)
    user = await crud_user.find(found.user_id) if found else None
    if user is None or not user.is_active:
        raise link_service.unusable()
    await require_strong(password, personal=personal_words(user.email, user.username), full_name=user.full_name)
    await _reset(token_id, await hash_password(password))


@transactional
async def _reset(token_id: ObjectId, hashed_password: str) -> None:
    token = await crud_one_time_token.spend(token_id, TokenPurpose.PASSWORD_RESET)
    if token is None:
        raise link_service.unusable()
    before = await crud_user.require(token.user_id)
    now = utc_now()
    changes: dict[str, Any] = {
        "hashed_password": hashed_password,
        "password_changed_at": now,
        "is_verified": True,
        "first_verified_at": before.first_verified_at or now,
    }
    if not before.was_ever_verified and before.role.rank <= Role.USER.rank:
        changes |= {"mfa": None, "pending_mfa": None}
    expected = {"email_key": token.email_key, "is_active": True, "first_verified_at": before.first_verified_at}
    user = await crud_user.change(token.user_id, changes, expected=expected)
    await crud_session.end_all(user.id)
    await crud_one_time_token.void_all(user.id, TokenPurpose.PASSWORD_RESET)
    await throttle_service.clear(user.id, SIGN_IN, REAUTHENTICATION)
    keys = await crud_api_key.deactivate_all(user.id)  # one of them may be a stranger's who knew the old password
    if keys:
        await audit_service.record(AuditAction.API_KEYS_DEACTIVATED, by=ANONYMOUS, target=("user", user.id), count=keys)
    await audit_service.record(AuditAction.USER_PASSWORD_RESET, by=ANONYMOUS, target=("user", user.id))
    values = {"keys": keys, **mail_service.circumstances()}
    await mail_service.enqueue(MailKind.PASSWORD_RESET_DONE, user_id=user.id, values=values)
    if before.mfa_enabled and not user.mfa_enabled:
        await mfa_service.record_turned_off(user, by=ANONYMOUS, reason="no address was ever verified")
