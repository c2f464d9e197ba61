from fastapi import APIRouter, Request, Response

from app.api.deps import Id, StaffAssistant, StaffManager, StaffViewer, UserList
from app.api.responses import UNCHANGED, listed, tagged
from app.crud import crud_user
from app.models.user import User
from app.schemas.admin import AdminUserRead
from app.schemas.staff import CreditsAdd, PlanChange, SessionsRevoked, StaffAction
from app.schemas.usage import UsageRead
from app.services import staff_service, usage_service

router = APIRouter(prefix="/api/v1/staff/users", tags=["staff"])
_NO_REASON = StaffAction()


def _shown(request: Request, user: User) -> Response:
    return tagged(request, AdminUserRead.model_validate(user), version=user.version)


@router.get("", response_model=list[AdminUserRead])
async def list_users_for_staff(request: Request, _: StaffViewer, query: UserList) -> Response:
    """Users, newest first, with their limits and credits. From level 1."""
    rows, next_cursor = await crud_user.page(**dict(query))
    return listed(request, [AdminUserRead.model_validate(user) for user in rows], next_cursor)


@router.get("/{user_id}", response_model=AdminUserRead, responses=UNCHANGED)
async def get_user_for_staff(request: Request, user_id: Id, _: StaffViewer) -> Response:
    """A user with its limits and credits. From level 1."""
    return _shown(request, await crud_user.require(user_id))


@router.get("/{user_id}/usage")
async def get_usage_for_staff(user_id: Id, _: StaffViewer) -> UsageRead:
    """A user's plan, its limits, and what is used and left of them. From level 1."""
    return await usage_service.usage_of(await crud_user.require(user_id))


@router.post("/{user_id}/reset-limits")
async def reset_limits(user_id: Id, staff: StaffAssistant, body: StaffAction = _NO_REASON) -> UsageRead:
    """Begin the count of today's messages anew. From level 2."""
    user = await staff_service.reset_limits(user_id, reason=body.reason, by=staff)
    return await usage_service.usage_of(user)


@router.post("/{user_id}/activate", response_model=AdminUserRead)
async def activate_user(
    request: Request, user_id: Id, staff: StaffAssistant, body: StaffAction = _NO_REASON
) -> Response:
    """Let a deactivated account sign in again. From level 2."""
    user = await staff_service.set_active(user_id, is_active=True, reason=body.reason, by=staff)
    return _shown(request, user)


@router.post("/{user_id}/deactivate", response_model=AdminUserRead)
async def deactivate_user(
    request: Request, user_id: Id, staff: StaffAssistant, body: StaffAction = _NO_REASON
) -> Response:
    """Close an account and end its sessions, until it is activated again. From level 2."""
    user = await staff_service.set_active(user_id, is_active=False, reason=body.reason, by=staff)
    return _shown(request, user)


@router.post("/{user_id}/revoke-sessions")
async def revoke_sessions(user_id: Id, staff: StaffAssistant, body: StaffAction = _NO_REASON) -> SessionsRevoked:
    """End every session of a user. From level 2."""
    count = await staff_service.revoke_sessions(user_id, reason=body.reason, by=staff)
    return SessionsRevoked(revoked_count=count)


@router.post("/{user_id}/credits", response_model=AdminUserRead)
async def add_credits(request: Request, user_id: Id, body: CreditsAdd, staff: StaffManager) -> Response:
    """Add credits to an account, or take some away. Level 3."""
    return _shown(request, await staff_service.add_credits(user_id, body, by=staff))


@router.post("/{user_id}/plan", response_model=AdminUserRead)
async def change_plan(request: Request, user_id: Id, body: PlanChange, staff: StaffManager) -> Response:
    """Put an account on another plan, at once. Level 3."""
    return _shown(request, await staff_service.change_plan(user_id, body, by=staff))
