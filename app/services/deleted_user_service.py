"""Deleted accounts: given back, or purged before their time."""

from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import ForbiddenError
from app.core.principal import Principal
from app.core.scopes import Role
from app.crud import crud_deleted_user, crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction
from app.models.user import User
from app.services import audit_service, job_service, purge_service


@transactional
async def restore(user_id: ObjectId, *, by: Principal) -> User:
    """Give an account back as it was. What ended with it, its sessions and keys, stays ended.

    `EmailTakenError` or `UsernameTakenError` when somebody else has the name by now: nothing changes then.
    """
    user = (await crud_deleted_user.take(user_id)).as_user()
    _require_higher_rank(user.role, by=by)
    user.version += 1
    user.updated_at = utc_now()
    restored = await crud_user.add(user)
    await audit_service.record(AuditAction.USER_RESTORED, by=by, target=("user", user_id))
    return restored


@transactional
async def purge(user_id: ObjectId, *, by: Principal) -> None:
    """Give an account up for good. It is out of reach at once; what it owned is removed in the background."""
    archived = await crud_deleted_user.mark_purge_started(user_id, at=utc_now())
    _require_higher_rank(archived.as_user().role, by=by)
    await audit_service.record(AuditAction.USER_PURGE_REQUESTED, by=by, target=("user", user_id))
    await job_service.request(purge_service.JOB)


def _require_higher_rank(role: Role, *, by: Principal) -> None:
    if not by.is_superuser and role.rank >= by.rank:
        raise ForbiddenError(f"Only a superuser restores or purges an account with the role {role}.")
