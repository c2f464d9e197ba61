from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.api.deps import ApiKeyCreator, ApiKeyList, ApiKeysReader, ApiKeysWriter, Id
from app.api.responses import NO_CONTENT, listed
from app.core.scopes import Scope
from app.crud import crud_api_key
from app.models.api_key import ApiKey
from app.schemas.api_key import ApiKeyCreate, ApiKeyCreated, ApiKeyRead, ApiKeyUpdate
from app.services import api_key_service

router = APIRouter(prefix="/api/v1/api-keys", tags=["api keys"])


@router.post("", status_code=HTTPStatus.CREATED)
async def create_api_key(body: ApiKeyCreate, creator: ApiKeyCreator) -> ApiKeyCreated:
    """Create a key. The answer is the only place where it is ever shown."""
    stored, text = await api_key_service.create(body, by=creator)
    return ApiKeyCreated(**ApiKeyRead.model_validate(stored).model_dump(), key=text)


@router.get("", response_model=list[ApiKeyRead])
async def list_api_keys(request: Request, reader: ApiKeysReader, query: ApiKeyList) -> Response:
    """Keys, newest first: an administrator sees all, a user its own."""
    rows, next_cursor = await crud_api_key.page(
        owner_id=reader.owner_filter(Scope.ADMIN),
        include_inactive=query.include_inactive,
        limit=query.limit,
        cursor=query.cursor,
    )
    return listed(request, [ApiKeyRead.model_validate(key) for key in rows], next_cursor)


@router.get("/{api_key_id}", response_model=ApiKeyRead)
async def get_api_key(api_key_id: Id, reader: ApiKeysReader) -> ApiKey:
    """A key's properties, without the key."""
    return await crud_api_key.require(api_key_id, owner_id=reader.owner_filter(Scope.ADMIN))


@router.patch("/{api_key_id}", response_model=ApiKeyRead)
async def update_api_key(api_key_id: Id, body: ApiKeyUpdate, writer: ApiKeysWriter) -> ApiKey:
    """Change a key's properties."""
    return await api_key_service.update(api_key_id, body, by=writer)


@router.delete("/{api_key_id}", **NO_CONTENT)
async def delete_api_key(api_key_id: Id, writer: ApiKeysWriter) -> None:
    """Remove a key for good."""
    await api_key_service.delete(api_key_id, by=writer)


@router.post("/{api_key_id}/deactivate", response_model=ApiKeyRead)
async def deactivate_api_key(api_key_id: Id, writer: ApiKeysWriter) -> ApiKey:
    """Make a key stop working, until it is activated again."""
    return await api_key_service.update(api_key_id, ApiKeyUpdate(is_active=False), by=writer)


@router.post("/{api_key_id}/activate", response_model=ApiKeyRead)
async def activate_api_key(api_key_id: Id, writer: ApiKeysWriter) -> ApiKey:
    """Make a deactivated key work again."""
    return await api_key_service.update(api_key_id, ApiKeyUpdate(is_active=True), by=writer)
