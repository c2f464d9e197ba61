from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.api.deps import Administrator, QueryOf
from app.api.responses import listed
from app.schemas.api_key import ApiKeyRead
from app.schemas.key_expiry import ExpiringQuery, KeysDeactivated
from app.services import key_expiry_service, key_quota_service

router = APIRouter(prefix="/api/v1/api-keys", tags=["api keys"])


@router.get("/expiring", response_model=list[ApiKeyRead])
async def list_expiring_api_keys(
    request: Request, _: Administrator, query: Annotated[ExpiringQuery, Depends(QueryOf(ExpiringQuery))]
) -> Response:
    """Active keys that expire within so many days, the first to do so first. Keys that were rotated are left out."""
    rows, next_cursor = await key_expiry_service.expiring(days=query.days, limit=query.limit, cursor=query.cursor)
    return listed(request, await key_quota_service.shown(rows), next_cursor)


@router.post("/cleanup-expired")
async def clean_up_expired_api_keys(administrator: Administrator) -> KeysDeactivated:
    """Deactivate the keys that have expired now. The service does so by itself every ten minutes."""
    count = (await key_expiry_service.deactivate_expired(by=administrator)).deactivated
    noun = "key was" if count == 1 else "keys were"
    return KeysDeactivated(deactivated_count=count, message=f"{count} expired {noun} deactivated.")
