"""What happens to API keys as they come to their end: a warning, then they are deactivated."""

from datetime import timedelta
from functools import partial
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.core.logging_config import get_logger
from app.core.principal import Principal
from app.core.scopes import Role, Scope, grant_of
from app.core.tasks import is_cancelled
from app.crud import crud_key_expiry, crud_user
from app.crud.base import Page
from app.db.mongo import after_commit, transactional
from app.models.api_key import ApiKey
from app.models.enums import AuditAction, MailKind
from app.services import audit_service, mail_service

_WARNED_DAYS_BEFORE: Final = (1, 7, 14)  # the latest warning first: one that comes too late is not sent besides
_BATCH: Final = 100
_JANITOR: Final = Principal.system("expire_keys")
_WARNER: Final = Principal.system("warn_of_expiring_keys")
_MANAGING: Final = [role for role in Role if Scope.ADMIN in grant_of(role).others]  # service keys
_MOST_MANAGERS: Final = 10

_log = get_logger(__name__)


class Expired(NamedTuple):
    """How many keys were deactivated."""

    deactivated: int


class Warned(NamedTuple):
    """How many mails were sent."""

    mails: int


async def expiring(*, days: int, limit: int, cursor: str | None) -> Page[ApiKey]:
    """Active keys that expire within so many days."""
    now = utc_now()
    return await crud_key_expiry.page_expiring(after=now, until=now + timedelta(days=days), limit=limit, cursor=cursor)


async def deactivate_expired(*, by: Principal = _JANITOR) -> Expired:
    """Deactivate every key that has expired, batch by batch."""
    total = 0
    while not is_cancelled() and (count := await _deactivate_some(by)):
        total += count
    return Expired(total)


async def warn() -> Warned:
    """Tell those who see to keys that expire 14, 7 and 1 days before, each once."""
    mails = 0
    for days in _WARNED_DAYS_BEFORE:
        now = utc_now()
        until = now + timedelta(days=days)
        while not is_cancelled() and (
            keys := await crud_key_expiry.some_to_warn_of(after=now, until=until, days=days, limit=_BATCH)
        ):
            for key in keys:
                if is_cancelled():
                    break
                mails += await _warn_of(key, days)
    return Warned(mails)


@transactional
async def _deactivate_some(by: Principal) -> int:
    ids = await crud_key_expiry.deactivate_some(utc_now(), limit=_BATCH)
    for api_key_id in ids:
        target = ("api_key", api_key_id)
        await audit_service.record(AuditAction.API_KEY_DEACTIVATED, by=by, target=target, reason="expired")
    return len(ids)


@transactional
async def _warn_of(key: ApiKey, days: int) -> int:
    """How many mails are sent. The note and the mails stand or fall together."""
    if key.expires_at is None or not await crud_key_expiry.note_warning(key, days):
        return 0
    if key.created_at > key.expires_at - timedelta(days=days):  # as meant: whoever made it for so long knows
        return 0
    values = {
        "key": mail_service.harmless(key.name) or key.key_id,
        "until": f"{key.expires_at:%d %B %Y, %H:%M} UTC",
    }
    user_ids = await _who_sees_to(key)
    for user_id in user_ids:
        await mail_service.enqueue(MailKind.API_KEY_EXPIRING, user_id=user_id, values=values)
    if not user_ids and key.owner_id is None:
        await _note_unread(key, days)
    return len(user_ids)


async def _who_sees_to(key: ApiKey) -> list[ObjectId]:
    """The owner of a personal key, unless it is gone; for a service key whoever made it, while that is a manager.

    Else, as for a service key that another key has made, several who manage them.
    """
    if key.owner_id is not None:
        owner = await crud_user.find(key.owner_id)
        return [owner.id] if owner is not None else []
    maker = await crud_user.find(key.created_by) if key.created_by is not None else None
    if maker is not None and maker.is_active and maker.role in _MANAGING:
        return [maker.id]
    return await crud_user.oldest_active(_MANAGING, limit=_MOST_MANAGERS)


async def _note_unread(key: ApiKey, days: int) -> None:
    """Say it where operators look, as there is nobody to mail: what uses the key stops when it ends."""
    target = ("api_key", key.id)
    await audit_service.record(AuditAction.API_KEY_EXPIRY_NOTICED, by=_WARNER, target=target, days=days)
    tell = partial(_log.warning, "key_expires_unwarned", api_key_id=str(key.id), days=days)
    after_commit(tell)
