from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.api.deps import Administrator, Id, IfMatch
from app.api.responses import tagged
from app.schemas.admin import AdminUserCreate, AdminUserRead, AdminUserUpdate
from app.services import admin_service

router = APIRouter(prefix="/api/v1/admin/users", tags=["admin"])


@router.post("", status_code=HTTPStatus.CREATED, response_model=AdminUserRead)
async def create_user_as_admin(request: Request, body: AdminUserCreate, admin: Administrator) -> Response:
    """Make an account of any role, also where registration is closed. Only superusers make administrators."""
    user = await admin_service.create_user(body, by=admin)
    return tagged(request, AdminUserRead.model_validate(user), version=user.version, status=HTTPStatus.CREATED)


@router.patch("/{user_id}", response_model=AdminUserRead)
async def update_user_as_admin(
    request: Request, user_id: Id, body: AdminUserUpdate, admin: Administrator, versions: IfMatch
) -> Response:
    """Change the role, staff level, plan, limits, credits or activity of an account of lower rank."""
    user = await admin_service.update_user(user_id, body, versions=versions, by=admin)
    return tagged(request, AdminUserRead.model_validate(user), version=user.version)
