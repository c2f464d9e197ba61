from typing import Annotated

from fastapi import APIRouter, Depends

from app.api.deps import ApiKeysReader, Id, QueryOf
from app.schemas.key_usage import KeyUsageQuery, KeyUsageRead
from app.services import key_usage_service

router = APIRouter(prefix="/api/v1/api-keys", tags=["api keys"])


@router.get("/{api_key_id}/usage")
async def get_usage_of_api_key(
    api_key_id: Id, reader: ApiKeysReader, query: Annotated[KeyUsageQuery, Depends(QueryOf(KeyUsageQuery))]
) -> list[KeyUsageRead]:
    """What was asked with a key, by hour or by day, oldest first. The last seconds may be missing still."""
    return await key_usage_service.usage_of(api_key_id, query, by=reader)
