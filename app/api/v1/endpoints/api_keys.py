from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.api.deps import ApiKeyCreator, ApiKeyList, ApiKeysReader, ApiKeysWriter, Id
from app.api.responses import NO_CONTENT, listed
from app.core.scopes import Scope
from app.crud import crud_api_key
from app.schemas.api_key import ApiKeyCreate, ApiKeyCreated, ApiKeyRead, ApiKeyRotate, ApiKeyUpdate
from app.services import api_key_service, key_quota_service

router = APIRouter(prefix="/api/v1/api-keys", tags=["api keys"])


@router.post("", status_code=HTTPStatus.CREATED)
async def create_api_key(body: ApiKeyCreate, creator: ApiKeyCreator) -> ApiKeyCreated:
    """Create a key. The answer is the only place where it is ever shown."""
    stored, text = await api_key_service.create(body, by=creator)
    return ApiKeyCreated(**(await key_quota_service.shown_one(stored)).model_dump(), key=text)


@router.get("", response_model=list[ApiKeyRead])
async def list_api_keys(request: Request, reader: ApiKeysReader, query: ApiKeyList) -> Response:
    """Keys, newest first: an administrator sees all, a user its own."""
    rows, next_cursor = await crud_api_key.page(
        owner_id=reader.owner_filter(Scope.ADMIN),
        include_inactive=query.include_inactive,
        limit=query.limit,
        cursor=query.cursor,
    )
    return listed(request, await key_quota_service.shown(rows), next_cursor)


@router.get("/{api_key_id}")
async def get_api_key(api_key_id: Id, reader: ApiKeysReader) -> ApiKeyRead:
    """A key's properties, without the key."""
    return await key_quota_service.shown_one(
        await crud_api_key.require(api_key_id, owner_id=reader.owner_filter(Scope.ADMIN))
    )


@router.patch("/{api_key_id}")
async def update_api_key(api_key_id: Id, body: ApiKeyUpdate, writer: ApiKeysWriter) -> ApiKeyRead:
    """Change a key's properties."""
    return await key_quota_service.shown_one(await api_key_service.update(api_key_id, body, by=writer))


@router.delete("/{api_key_id}", **NO_CONTENT)
async def delete_api_key(api_key_id: Id, writer: ApiKeysWriter) -> None:
    """Remove a key for good."""
    await api_key_service.delete(api_key_id, by=writer)


@router.post("/{api_key_id}/deactivate")
async def deactivate_api_key(api_key_id: Id, writer: ApiKeysWriter) -> ApiKeyRead:
    """Make a key stop working, until it is activated again."""
    return await key_quota_service.shown_one(
        await api_key_service.update(api_key_id, ApiKeyUpdate(is_active=False), by=writer)
    )


@router.post("/{api_key_id}/activate")
async def activate_api_key(api_key_id: Id, writer: ApiKeysWriter) -> ApiKeyRead:
    """Make a deactivated key work again."""
    return await key_quota_service.shown_one(
        await api_key_service.update(api_key_id, ApiKeyUpdate(is_active=True), by=writer)
    )


@router.post("/{api_key_id}/rotate")
async def rotate_api_key(api_key_id: Id, creator: ApiKeyCreator, body: ApiKeyRotate | None = None) -> ApiKeyCreated:
    """Put a new key in the place of one, which works on for as long as you say.

    The new key has the same properties, expiry and quota, what is left of it included, and is shown this once. The
    old one can't be changed, activated or rotated any more; deactivate it to end its grace early.
    """
    stored, text = await api_key_service.rotate(api_key_id, body or ApiKeyRotate(), by=creator)
    return ApiKeyCreated(**(await key_quota_service.shown_one(stored)).model_dump(), key=text)
