"""Accounts as administrators make and change them."""

from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import InvalidContentError
from app.core.principal import Principal
from app.core.scopes import LOWEST_STAFF_LEVEL, Role
from app.crud import crud_user
from app.models.user import User
from app.schemas.admin import AdminUserCreate, AdminUserUpdate
from app.services import user_service


async def create_user(body: AdminUserCreate, *, by: Principal) -> User:
    """Make an account of any role below an administrator's; of the others only superusers make some."""
    user_service.require_right_to_assign(body.role, by=by)
    is_support = body.role is Role.SUPPORT
    return await user_service.register(
        body,
        by=by,
        role=body.role,
        staff_level=body.staff_level or LOWEST_STAFF_LEVEL if is_support else None,
        plan=body.plan,
        is_verified=body.is_verified,
        first_verified_at=utc_now() if body.is_verified else None,
    )


async def update_user(
    user_id: ObjectId, body: AdminUserUpdate, *, versions: frozenset[int] | None, by: Principal
) -> User:
    """Change rights, plan and balance of an account of lower rank. Its live sessions have them from then on."""
    user = await crud_user.require(user_id)
    changes = body.model_dump(exclude_unset=True)
    user_service.require_rank_above(user, by=by)
    user_service.require_right_to_change(user, changes, by=by)
    if "staff_level" in changes and changes.get("role", user.role) is not Role.SUPPORT:
        fault = {"loc": ["body", "staff_level"], "msg": "is only for the role support", "type": "not_support"}
        raise InvalidContentError("Only support staff has a staff level.", errors=[fault])
    return await user_service.change(user, changes, expected={"role": user.role}, versions=versions, by=by)
