"""Accounts: made, seen, changed and deleted, by their owners and by those who may."""

from datetime import timedelta
from typing import Any, Final

from bson import ObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import (
    ForbiddenError,
    InsufficientScopeError,
    RegistrationClosedError,
)
from app.core.normalise import name_key
from app.core.passwords import hash_password, personal_words, require_strong
from app.core.principal import Principal, PrincipalKind
from app.core.scopes import LOWEST_STAFF_LEVEL, Role, Scope
from app.crud import crud_api_key, crud_one_time_token, crud_session, crud_user
from app.db.mongo import transactional
from app.models.deleted_user import DeletedUser
from app.models.enums import AuditAction, MailKind, TokenPurpose
from app.models.user import User
from app.schemas.user import OwnUserUpdate, UserCreate, UserUpdate
from app.services import audit_service, mail_service, throttle_service
from app.services.credential_service import require_password_and_code
from app.services.throttle_service import REAUTHENTICATION, SIGN_IN

# What proves who one is. Nobody changes it for somebody of the same or a higher rank.
_CREDENTIALS: Final = frozenset({"email", "password"})
_REPEATED_IN_SESSIONS: Final = frozenset({"username", "role", "staff_level", "plan", "limits", "is_verified"})
_RECORDED: Final[tuple[str, ...]] = ("role", "staff_level", "is_active", "plan", "limits", "credits")
# What goes with another change, and is not named beside it in the audit trail.
_UNNAMED: Final = frozenset({"hashed_password", "password_changed_at", "first_verified_at"})
_KEY_OF: Final = {"email": "email_key", "username": "username_key", "full_name": "full_name_key"}


async def register(body: UserCreate, *, by: Principal, role: Role = Role.USER, **more: Any) -> User:
    """Make an account. Without an administrator's credential only while `REGISTRATION=open`, and as a plain user.

    `more` are properties that only administrators give.
    """
    if get_settings().registration == "closed" and not by.reaches_all(Scope.ADMIN):
        raise RegistrationClosedError
    personal = personal_words(body.email, body.username)
    await require_strong(body.password, personal=personal, full_name=body.full_name)
    names = {name: getattr(body, name) for name in _KEY_OF}
    user = User(**_with_keys(names), hashed_password=await hash_password(body.password), role=role, **more)
    await _add(user, by=by)
    return user


@transactional
async def _add(user: User, *, by: Principal) -> None:
    await crud_user.add(user)
    await audit_service.record(AuditAction.USER_CREATED, by=by, target=("user", user.id), role=user.role)
    await mail_service.enqueue(MailKind.EMAIL_VERIFICATION, user_id=user.id)


async def view(user_id: ObjectId, *, by: Principal) -> User:
    """A user's profile: one's own, or anybody's with the right to. Another's is forbidden, not hidden."""
    user = await crud_user.require(user_id)
    if user_id != by.user_id and not by.reaches_all(Scope.USERS_READ):
        raise ForbiddenError("This is another user's profile.")
    return user


async def update(
    user_id: ObjectId, body: UserUpdate | OwnUserUpdate, *, versions: frozenset[int] | None, by: Principal
) -> User:
    """Change what the body names.

    One's own e-mail address and password need the current password and the second factor; a new address is unverified;
    a new password ends the other sessions. Role and activity of others need an administrator of higher rank.
    """
    user = await crud_user.require(user_id)
    asked = body.model_dump(exclude_unset=True)
    current_password, otp = asked.pop("current_password", None), asked.pop("otp", None)
    require_right_to_change(user, asked, by=by)
    expected: dict[str, Any] = {"role": user.role}
    if user_id == by.user_id and asked.keys() & _CREDENTIALS:
        changes = await _changes(user, asked)  # first: a password that is too weak uses no code up
        await require_password_and_code(user, current_password, otp)
        expected |= _as_proven(user)
    else:
        changes = await _changes(user, asked)
    return await change(user, changes, expected=expected, versions=versions, by=by)


async def _changes(user: User, asked: dict[str, Any]) -> dict[str, Any]:
    changes = _with_keys({name: value for name, value in asked.items() if name != "password"})
    if changes.get("email", user.email) != user.email:
        changes["is_verified"] = False
        if user.is_verified and user.first_verified_at is None:  # verified before that was kept
            changes["first_verified_at"] = utc_now()
    if "password" in asked:
        personal = personal_words(changes.get("email", user.email), changes.get("username", user.username))
        full_name = changes.get("full_name", user.full_name)
        await require_strong(asked["password"], personal=personal, full_name=full_name)
        changes["hashed_password"] = await hash_password(asked["password"])
        changes["password_changed_at"] = utc_now()
    return changes


@transactional
async def change(
    user: User,
    changes: dict[str, Any],
    *,
    expected: dict[str, Any],
    versions: frozenset[int] | None,
    by: Principal,
    reason: str | None = None,
) -> User:
    """Change a user that is still as expected, with everything that hangs on it. Who may is decided before."""
    loses_power = changes.get("is_active") is False or changes.get("role", user.role) is not Role.SUPERUSER
    if user.is_superuser and loses_power:
        await crud_user.require_other_superuser(user.id)
    changed = await crud_user.change(user.id, _with_level(user, changes), expected=expected, versions=versions)
    if changes.get("is_active") is False:
        await crud_session.end_all(user.id)
    elif "hashed_password" in changes:
        await crud_session.end_all(user.id, but=by.credential_id if user.id == by.id else None)
    if changes.keys() & _REPEATED_IN_SESSIONS:
        await crud_session.update_identity(changed)
    await _follow_up(user, changes)
    fields = sorted(changes.keys() - {*_UNNAMED, *_KEY_OF.values()})
    if "hashed_password" in changes:
        fields.append("password")
    details = {name: changes[name] for name in _RECORDED if name in changes}
    if reason is not None:
        details["reason"] = reason
    await audit_service.record(AuditAction.USER_UPDATED, by=by, target=("user", user.id), fields=fields, **details)
    return changed


async def _follow_up(user: User, changes: dict[str, Any]) -> None:
    """Void what rests on the old credentials, and mail the owner what has become of them, to the address it knows.

    An address that was not verified may be a stranger's: it is told nothing once it is the account's no more.
    """
    values = mail_service.circumstances()
    known = user.email if user.is_verified else None
    if "hashed_password" in changes:
        await throttle_service.clear(user.id, SIGN_IN, REAUTHENTICATION)  # what was guessed at is gone
        await crud_one_time_token.void_all(user.id, TokenPurpose.PASSWORD_RESET)
        told = {**values, "keys": await crud_api_key.count_usable(user.id)}
        await mail_service.enqueue(MailKind.PASSWORD_CHANGED, user_id=user.id, to=known, values=told)
    if changes.get("email", user.email) != user.email:
        await crud_one_time_token.void_all(user.id, TokenPurpose.PASSWORD_RESET)
        if known is not None:
            values = {**values, "new_email": changes["email"]}
            await mail_service.enqueue(MailKind.EMAIL_CHANGED, user_id=user.id, to=known, values=values)
        await mail_service.enqueue(MailKind.EMAIL_VERIFICATION, user_id=user.id)


async def delete(
    user_id: ObjectId,
    *,
    current_password: str | None,
    otp: str | None = None,
    reason: str | None,
    versions: frozenset[int] | None,
    by: Principal,
) -> None:
    """Move an account to the deleted users. Its sessions and keys end at once, its names are free again.

    Deleting oneself needs the current password and the second factor; deleting others a higher rank.
    """
    user = await crud_user.require(user_id)
    expected: dict[str, Any] = {"role": user.role}
    if user_id == by.user_id:
        _require_person(user, by=by)
        await require_password_and_code(user, current_password, otp)
        expected |= _as_proven(user)
    else:
        _require_reach(user, by=by)
    await _delete(user, expected=expected, reason=reason, versions=versions, by=by)


@transactional
async def _delete(
    user: User,
    *,
    expected: dict[str, Any],
    reason: str | None,
    versions: frozenset[int] | None,
    by: Principal,
) -> None:
    if user.is_superuser:
        await crud_user.require_other_superuser(user.id)
    as_it_was = await crud_user.remove(user.id, expected=expected, versions=versions)
    now = utc_now()
    await DeletedUser(
        id=user.id,
        user=as_it_was,
        email_key=user.email_key,
        deleted_at=now,
        deleted_by=by.id,
        reason=reason,
        purge_at=now + timedelta(days=get_settings().deleted_retention_days),
    ).insert()
    await crud_session.end_all(user.id)
    await crud_api_key.deactivate_all(user.id)
    await audit_service.record(AuditAction.USER_DELETED, by=by, target=("user", user.id), reason=reason)


def require_right_to_change(user: User, asked: dict[str, Any], *, by: Principal) -> None:
    """Refuse a change of somebody of the same or a higher rank, and of roles and activity but by administrators."""
    if user.id != by.user_id:
        _require_reach(user, by=by)
    elif asked.keys() & _CREDENTIALS:
        _require_person(user, by=by)
    if asked.keys() & {"role", "is_active"} and not by.reaches_all(Scope.ADMIN):
        raise InsufficientScopeError("Only administrators change the role or the activity of an account.")
    if "role" in asked and asked["role"] is not user.role:
        require_right_to_assign(asked["role"], user.role, by=by)


def _require_person(user: User, *, by: Principal) -> None:
    if user.is_superuser and by.kind is PrincipalKind.API_KEY:
        raise ForbiddenError("No key changes the credentials of a superuser, not even its own.")


def _require_reach(user: User, *, by: Principal) -> None:
    """Refuse to act on somebody else's account without the right to, or when its rank is not below the caller's."""
    if not by.reaches_all(Scope.USERS_WRITE):
        raise ForbiddenError("This is another user's account.")
    require_rank_above(user, by=by)


def require_rank_above(user: User, *, by: Principal) -> None:
    if not by.is_superuser and user.role.rank >= by.rank:
        raise ForbiddenError(f"Acting on an account with the role {user.role} takes a higher rank.")


def require_right_to_assign(*roles: Role, by: Principal) -> None:
    """Refuse to let an account have one of the roles, or lose it."""
    if not by.is_superuser and any(role.rank >= Role.ADMIN.rank for role in roles):
        raise ForbiddenError("Only a superuser makes or demotes administrators and superusers.")


def _as_proven(user: User) -> dict[str, Any]:
    """What the user must still be like after proving who it is: of the same password, and of no second factor since."""
    return {"hashed_password": user.hashed_password} | ({} if user.mfa_enabled else {"mfa": None})


def _with_level(user: User, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes, with the staff level that a change of role brings: the lowest for support, none for others."""
    if "role" not in changes:
        return changes
    level = changes.get("staff_level") or user.staff_level or LOWEST_STAFF_LEVEL
    return changes | {"staff_level": level if changes["role"] is Role.SUPPORT else None}


def _with_keys(names: dict[str, Any]) -> dict[str, Any]:
    """The values, with the form under which each name is unique or found beside it."""
    keys = {
        _KEY_OF[name]: None if value is None else name_key(value) for name, value in names.items() if name in _KEY_OF
    }
    return names | keys
