"""What happens to API keys as they come to their end: a warning, then they are deactivated."""

from datetime import timedelta
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.core.principal import Principal
from app.crud import crud_key_expiry, crud_user
from app.crud.base import Page
from app.db.mongo import transactional
from app.models.api_key import ApiKey
from app.models.enums import AuditAction, MailKind
from app.services import audit_service, mail_service

_WARNED_DAYS_BEFORE: Final = (1, 7, 14)  # the latest warning first: one that comes too late is not sent besides
_BATCH: Final = 100
_JANITOR: Final = Principal.system("expire_keys")


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
    while count := await _deactivate_some(by):
        total += count
    return Expired(total)


async def warn() -> Warned:
    """Tell the holders of keys that expire 14, 7 and 1 days before, each once."""
    mails = 0
    for days in _WARNED_DAYS_BEFORE:
        now = utc_now()
        until = now + timedelta(days=days)
        while keys := await crud_key_expiry.some_to_warn_of(after=now, until=until, days=days, limit=_BATCH):
            for key in keys:
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
async def _warn_of(key: ApiKey, days: int) -> bool:
    """Whether a mail is sent. The note and the mail stand or fall together."""
    if key.expires_at is None or not await crud_key_expiry.note_warning(key, days):
        return False
    holder_id = await _holder_of(key)
    is_as_meant = key.created_at > key.expires_at - timedelta(days=days)  # whoever made it for so long knows
    if holder_id is None or is_as_meant:
        return False
    values = {
        "key": mail_service.harmless(key.name) or key.key_id,
        "until": f"{key.expires_at:%d %B %Y, %H:%M} UTC",
    }
    await mail_service.enqueue(MailKind.API_KEY_EXPIRING, user_id=holder_id, values=values)
    return True


async def _holder_of(key: ApiKey) -> ObjectId | None:
    """The owner of a personal key, or the user who made a service key; none when there is no such user any more."""
    user_id = key.owner_id or key.created_by
    return user_id if user_id is not None and await crud_user.find(user_id) is not None else None
