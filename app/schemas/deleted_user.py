from datetime import datetime

from beanie import PydanticObjectId

from app.core.plans import Plan
from app.core.scopes import Role
from app.models.deleted_user import DeletedUser
from app.schemas.base import ResourceRead


class DeletedUserRead(ResourceRead):
    """`purge_at`: when the account, and everything it owned, is removed for good."""

    email: str
    username: str | None
    full_name: str | None
    role: Role
    plan: Plan
    deleted_at: datetime
    deleted_by: PydanticObjectId | None
    reason: str | None
    purge_at: datetime


def deleted_user_of(archived: DeletedUser) -> DeletedUserRead:
    user = archived.as_user()
    return DeletedUserRead(
        id=archived.id,
        email=user.email,
        username=user.username,
        full_name=user.full_name,
        role=user.role,
        plan=user.plan,
        deleted_at=archived.deleted_at,
        deleted_by=archived.deleted_by,
        reason=archived.reason,
        purge_at=archived.purge_at,
    )
