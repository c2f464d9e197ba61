from fastapi import APIRouter

from app.api.deps import Id, UsersReader
from app.crud import crud_user
from app.schemas.usage import UsageRead
from app.services import usage_service, user_service

router = APIRouter(prefix="/api/v1", tags=["usage"])


@router.get("/usage/me")
async def get_own_usage(me: UsersReader) -> UsageRead:
    """Your plan, its limits, and what is used and left of them."""
    return await usage_service.usage_of(await crud_user.require(me.account_id))


@router.get("/users/{user_id}/usage")
async def get_usage_of_user(user_id: Id, reader: UsersReader) -> UsageRead:
    """A user's plan, its limits, and what is used and left of them."""
    return await usage_service.usage_of(await user_service.view(user_id, by=reader))
