from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.api.deps import Id, IfMatch, ItemList, ItemsReader, ItemsWriter
from app.api.responses import NO_CONTENT, UNCHANGED, listed, tagged
from app.core.scopes import Scope
from app.crud import crud_item
from app.models.item import Item
from app.schemas.item import ItemCreate, ItemRead, ItemUpdate
from app.services import item_service

router = APIRouter(prefix="/api/v1/items", tags=["items"])


def _shown(request: Request, item: Item, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return tagged(request, ItemRead.model_validate(item), version=item.version, status=status)


@router.post("", status_code=HTTPStatus.CREATED, response_model=ItemRead)
async def create_item(request: Request, body: ItemCreate, writer: ItemsWriter) -> Response:
    """Make an item of your own."""
    return _shown(request, await item_service.create(body, by=writer), HTTPStatus.CREATED)


@router.get("", response_model=list[ItemRead])
async def list_items(request: Request, reader: ItemsReader, query: ItemList) -> Response:
    """Items, newest first: a user's own, or for an administrator or a service all of them."""
    rows, next_cursor = await crud_item.page(
        owner_id=reader.owner_filter(Scope.ITEMS_READ),
        is_completed=query.is_completed,
        limit=query.limit,
        cursor=query.cursor,
    )
    return listed(request, [ItemRead.model_validate(item) for item in rows], next_cursor)


@router.get("/{item_id}", response_model=ItemRead, responses=UNCHANGED)
async def get_item(request: Request, item_id: Id, reader: ItemsReader) -> Response:
    """One item."""
    return _shown(request, await crud_item.require(item_id, owner_id=reader.owner_filter(Scope.ITEMS_READ)))


@router.put("/{item_id}", response_model=ItemRead, name="put_item")
@router.patch("/{item_id}", response_model=ItemRead)
async def update_item(
    request: Request, item_id: Id, body: ItemUpdate, writer: ItemsWriter, versions: IfMatch
) -> Response:
    """Change the title or the description, or complete it."""
    return _shown(request, await item_service.update(item_id, body, versions=versions, by=writer))


@router.delete("/{item_id}", **NO_CONTENT)
async def delete_item(item_id: Id, writer: ItemsWriter, versions: IfMatch) -> None:
    """Delete an item for good."""
    await item_service.delete(item_id, versions=versions, by=writer)
