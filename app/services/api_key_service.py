"""API keys: made by a principal, never stronger than that principal."""

from datetime import timedelta
from typing import Any, Final, NamedTuple

from bson import ObjectId

from app.core import key_format, key_limits
from app.core.clock import utc_now
from app.core.exceptions import (
    ConflictError,
    ForbiddenError,
    InsufficientScopeError,
    InvalidRequestError,
)
from app.core.key_format import ParsedKey
from app.core.key_limits import LIMITS
from app.core.principal import Principal, PrincipalKind
from app.core.scopes import Scope, expand
from app.crud import crud_api_key, crud_user
from app.db.mongo import transactional
from app.models.api_key import ApiKey
from app.models.enums import AuditAction, MailKind
from app.schemas.api_key import ApiKeyCreate, ApiKeyRotate, ApiKeyUpdate
from app.services import audit_service, auth_service, mail_service
from app.services.auth_service import hash_key
from app.services.user_service import require_rank_above

_ACTION_OF_ACTIVITY: Final[dict[bool | None, AuditAction]] = {
    None: AuditAction.API_KEY_UPDATED,
    False: AuditAction.API_KEY_DEACTIVATED,
    True: AuditAction.API_KEY_ACTIVATED,
}
# What a key has of the one that it takes the place of.
_HANDED_ON: Final = {
    *("name", "description", "scopes", "allowed_ips", "rate_limit", "quota", "owner_id"),
    "expires_at",
}


class CreatedKey(NamedTuple):
    stored: ApiKey
    text: str


@transactional
async def create(body: ApiKeyCreate, *, by: Principal) -> CreatedKey:
    """Create a service key as an administrator, a personal key as anybody else.

    The text leaves with the result and is stored nowhere. The owner is mailed: a key outlives what it was made with.
    """
    await auth_service.hold(by)
    owner_id = by.owner_filter(Scope.ADMIN)
    _require_held(body.scopes, by=by)
    properties = body.model_dump() | key_limits.inherited(by, given=body.model_fields_set)
    key_limits.require_within(properties, by=by)
    parsed = key_format.new_key()
    key = new_document(parsed, owner_id=owner_id, created_by=by.id, **properties)
    await key.insert()
    if owner_id is not None:
        values = {"key": mail_service.harmless(key.name) or key.key_id, **mail_service.circumstances()}
        await mail_service.enqueue(MailKind.API_KEY_CREATED, user_id=owner_id, values=values)
    await audit_service.record(
        AuditAction.API_KEY_CREATED, by=by, target=("api_key", key.id), name=key.name, scopes=key.scopes
    )
    return CreatedKey(key, parsed.text)


def new_document(parsed: ParsedKey, **properties: Any) -> ApiKey:
    return ApiKey(key_id=parsed.key_id, key_hash=hash_key(parsed.text), **properties)


@transactional
async def update(api_key_id: ObjectId, body: ApiKeyUpdate, *, by: Principal) -> ApiKey:
    """Change a key's properties.

    With itself a key can't be deactivated, narrowed or limited. It does not touch a key that is stronger, and gives
    none wider limits, nor scopes or activity within wider limits, than its own.
    """
    changes = body.model_dump(exclude_unset=True)
    owner_id = by.owner_filter(Scope.ADMIN)
    if "scopes" in changes:
        _require_held(changes["scopes"], by=by)
    present = await crud_api_key.require(api_key_id, owner_id=owner_id)
    await _require_reach(present, changes, by=by)
    if present.grace_until is not None and changes != {"is_active": False}:
        raise ConflictError("This key was rotated. It can be deactivated or deleted; change the one in its place.")
    is_empowered = "scopes" in changes or changes.get("is_active")
    if is_empowered or changes.keys() & LIMITS:
        await auth_service.hold(by)
    limits = present.model_dump(include=set(LIMITS)) if is_empowered else {}
    key_limits.require_within(limits | changes, by=by)
    key = await crud_api_key.change(api_key_id, changes, owner_id=owner_id)
    action = _ACTION_OF_ACTIVITY[changes.get("is_active")]
    await audit_service.record(action, by=by, target=("api_key", key.id), fields=sorted(changes))
    return key


@transactional
async def rotate(api_key_id: ObjectId, body: ApiKeyRotate, *, by: Principal) -> CreatedKey:
    """Put a new key with the same properties in the place of one, which works on until its grace ends.

    They share one quota. Whoever rotates a key gets to know the new one, so no key rotates one that is stronger or
    less limited. The owner is mailed.
    """
    if _is_in_use(api_key_id, by):
        raise _in_use("rotate")
    await auth_service.hold(by)
    present = await crud_api_key.require(api_key_id, owner_id=by.owner_filter(Scope.ADMIN))
    await _require_reach(present, {}, by=by)
    await _require_rank_to_know(present, by=by)
    key_limits.require_within(present.model_dump(include=set(LIMITS)), by=by)
    await _retire(present, timedelta(seconds=body.grace_seconds))
    parsed = key_format.new_key()
    handed_on = present.model_dump(include=_HANDED_ON)
    key = new_document(parsed, **handed_on, created_by=by.id, rotated_from=present.id, lineage_id=present.lineage)
    await key.insert()
    await _tell_of_rotation(key, body.grace_seconds)
    await audit_service.record(
        AuditAction.API_KEY_ROTATED,
        by=by,
        target=("api_key", present.id),
        successor_id=key.id,
        grace_seconds=body.grace_seconds,
    )
    await audit_service.record(
        AuditAction.API_KEY_CREATED, by=by, target=("api_key", key.id), name=key.name, scopes=key.scopes
    )
    return CreatedKey(key, parsed.text)


async def _retire(key: ApiKey, grace: timedelta) -> None:
    now = utc_now()
    if key.expires_at is not None and key.expires_at <= now:
        raise ConflictError("This key has expired. Make a new one.")
    until = now + grace
    expires_at = min(key.expires_at or until, until)
    if not await crud_api_key.retire(key.id, until=until, is_active=bool(grace), expires_at=expires_at):
        raise ConflictError("This key was rotated before, or is not active.")


async def _tell_of_rotation(key: ApiKey, grace_seconds: int) -> None:
    if key.owner_id is None:
        return
    end = "The old one works for a while still." if grace_seconds else "The old one does not work any more."
    values = {"key": mail_service.harmless(key.name) or key.key_id, "end": end, **mail_service.circumstances()}
    await mail_service.enqueue(MailKind.API_KEY_ROTATED, user_id=key.owner_id, values=values)


@transactional
async def delete(api_key_id: ObjectId, *, by: Principal) -> None:
    """Remove a key for good."""
    if _is_in_use(api_key_id, by):
        raise _in_use("delete")
    owner_id = by.owner_filter(Scope.ADMIN)
    await _require_reach(await crud_api_key.require(api_key_id, owner_id=owner_id), {}, by=by)
    key = await crud_api_key.remove(api_key_id, owner_id=owner_id)
    await audit_service.record(AuditAction.API_KEY_DELETED, by=by, target=("api_key", key.id), name=key.name)


def _require_held(names: list[str], *, by: Principal) -> None:
    """A user gives a key what its own role holds, a key gives what it holds itself."""
    if not expand(names) <= by.scopes:
        raise InsufficientScopeError("A key can't be given scopes that its maker does not hold.")


def _is_in_use(api_key_id: ObjectId, by: Principal) -> bool:
    return by.kind is PrincipalKind.API_KEY and by.credential_id == api_key_id


async def _require_reach(key: ApiKey, changes: dict[str, Any], *, by: Principal) -> None:
    """A key does not touch a stronger one, and nobody but superusers the keys of a superuser."""
    if key.owner_id is not None and key.owner_id != by.user_id and not by.is_superuser:
        owner = await crud_user.find(key.owner_id)
        if owner is not None and owner.is_superuser:
            raise ForbiddenError("This is a superuser's key.")
    if by.kind is not PrincipalKind.API_KEY:
        return
    if not _is_in_use(key.id, by):
        _require_held(key.scopes, by=by)
        return
    if changes.get("is_active") is False:
        raise _in_use("deactivate")
    if "scopes" in changes and not expand(key.scopes) <= expand(changes["scopes"]):
        raise _in_use("narrow")
    if changes.keys() & {"expires_at", "allowed_ips", "rate_limit", "quota"}:
        raise _in_use("limit")


async def _require_rank_to_know(key: ApiKey, *, by: Principal) -> None:
    """Who knows a personal key acts through its account, as who sets the password does: that takes a higher rank."""
    if key.owner_id is None or key.owner_id == by.user_id:
        return
    owner = await crud_user.find(key.owner_id)
    if owner is not None:
        require_rank_above(owner, by=by)


def _in_use(verb: str) -> InvalidRequestError:
    return InvalidRequestError(f"You are currently using this key, so you can't {verb} it with itself.")
