from fastapi import APIRouter, Request, Response

from app.api.deps import Administrator, DeletedUserList, Id, StaffManager
from app.api.responses import NO_CONTENT, listed
from app.crud import crud_deleted_user
from app.models.user import User
from app.schemas.deleted_user import DeletedUserRead, deleted_user_of
from app.schemas.user import UserRead
from app.services import deleted_user_service

router = APIRouter(prefix="/api/v1", tags=["deleted users"])


@router.get("/admin/deleted-users", response_model=list[DeletedUserRead])
async def list_deleted_users(request: Request, _: Administrator, query: DeletedUserList) -> Response:
    """Deleted accounts that can be restored, the latest deletion first."""
    rows, next_cursor = await crud_deleted_user.page(**dict(query))
    return listed(request, [deleted_user_of(row) for row in rows], next_cursor)


@router.post("/admin/deleted-users/{user_id}/restore", response_model=UserRead)
async def restore_deleted_user(user_id: Id, administrator: Administrator) -> User:
    """Give a deleted account of lower rank back. Its sessions and keys stay ended."""
    return await deleted_user_service.restore(user_id, by=administrator)


@router.delete("/admin/deleted-users/{user_id}", **NO_CONTENT)
async def purge_deleted_user(user_id: Id, administrator: Administrator) -> None:
    """Remove a deleted account of lower rank for good, with everything it owned. Nothing brings it back."""
    await deleted_user_service.purge(user_id, by=administrator)


@router.post("/staff/users/{user_id}/restore", response_model=UserRead)
async def restore_user(user_id: Id, staff: StaffManager) -> User:
    """Give a deleted account back. For staff of level 3; its sessions and keys stay ended."""
    return await deleted_user_service.restore(user_id, by=staff)
