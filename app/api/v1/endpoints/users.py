from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.api.deps import (
    ANONYMOUS_RATE,
    Id,
    IfMatch,
    OptionalCaller,
    UserList,
    UsersLister,
    UsersReader,
    UsersWriter,
)
from app.api.rate_limit import spend_if_presented
from app.api.responses import NO_CONTENT, UNCHANGED, listed, tagged
from app.core.normalise import name_key
from app.crud import crud_user
from app.models.user import User
from app.schemas.user import OwnUserUpdate, UserCard, UserCreate, UserDelete, UserRead, UserUpdate
from app.services import user_service

router = APIRouter(prefix="/api/v1/users", tags=["users"])


@router.get("/me", response_model=UserRead, responses=UNCHANGED)
async def get_own_profile(request: Request, me: UsersReader) -> Response:
    """Your own profile."""
    user = await crud_user.require(me.account_id)
    return tagged(request, UserRead.model_validate(user), version=user.version)


@router.put("/me", response_model=UserRead, name="put_own_profile")
@router.patch("/me", response_model=UserRead)
async def update_own_profile(request: Request, body: OwnUserUpdate, me: UsersWriter, versions: IfMatch) -> Response:
    """Change your own profile. A new e-mail address or password needs `current_password`, and `otp` if that is on."""
    await spend_if_presented(request, body.current_password)
    user = await user_service.update(me.account_id, body, versions=versions, by=me)
    return tagged(request, UserRead.model_validate(user), version=user.version)


@router.delete("/me", **NO_CONTENT)
async def delete_own_account(request: Request, body: UserDelete, me: UsersWriter, versions: IfMatch) -> None:
    """Delete your own account. It needs `current_password`, and `otp` where two-factor authentication is on."""
    await spend_if_presented(request, body.current_password)
    await user_service.delete(me.account_id, **dict(body), versions=versions, by=me)


@router.get("/username/{username}", response_model=UserCard, dependencies=[ANONYMOUS_RATE])
async def get_user_by_username(username: str) -> User:
    """What anyone may know of a user."""
    return await crud_user.require_by_username_key(name_key(username))


@router.get("/{user_id}", response_model=UserRead, responses=UNCHANGED)
async def get_user(request: Request, user_id: Id, reader: UsersReader) -> Response:
    """A user's full profile."""
    user = await user_service.view(user_id, by=reader)
    return tagged(request, UserRead.model_validate(user), version=user.version)


@router.put("/{user_id}", response_model=UserRead, name="put_user")
@router.patch("/{user_id}", response_model=UserRead)
async def update_user(
    request: Request, user_id: Id, body: UserUpdate, writer: UsersWriter, versions: IfMatch
) -> Response:
    """Change a user. `role` and `is_active` are for administrators."""
    await spend_if_presented(request, body.current_password)
    user = await user_service.update(user_id, body, versions=versions, by=writer)
    return tagged(request, UserRead.model_validate(user), version=user.version)


@router.delete("/{user_id}", **NO_CONTENT)
async def delete_user(
    request: Request, user_id: Id, writer: UsersWriter, versions: IfMatch, body: UserDelete | None = None
) -> None:
    """Delete a user. The account can be restored for some time; its names are free at once."""
    body = body or UserDelete()
    await spend_if_presented(request, body.current_password)
    await user_service.delete(user_id, **dict(body), versions=versions, by=writer)


@router.get("", response_model=list[UserRead])
async def list_users(request: Request, _: UsersLister, query: UserList) -> Response:
    """Users, newest first."""
    rows, next_cursor = await crud_user.page(**dict(query))
    return listed(request, [UserRead.model_validate(user) for user in rows], next_cursor)


@router.post("", status_code=HTTPStatus.CREATED, response_model=UserRead)
async def register_user(body: UserCreate, caller: OptionalCaller) -> User:
    """Make an account. Where registration is closed, only administrators may."""
    return await user_service.register(body, by=caller)
