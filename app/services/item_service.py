"""Items: made by a user for itself; whoever may not see one does not find it."""

from bson import ObjectId

from app.core.principal import Principal
from app.core.scopes import Scope
from app.crud import crud_item
from app.db.mongo import transactional
from app.models.enums import AuditAction
from app.models.item import Item
from app.schemas.item import ItemCreate, ItemUpdate
from app.services import audit_service


@transactional
async def create(body: ItemCreate, *, by: Principal) -> Item:
    """Make an item of the caller's own. A service key acts for nobody, so it makes none: `ForbiddenError`."""
    item = Item(owner_id=by.account_id, **body.model_dump())
    await item.insert()
    await audit_service.record(AuditAction.ITEM_CREATED, by=by, target=("item", item.id))
    return item


@transactional
async def update(item_id: ObjectId, body: ItemUpdate, *, versions: frozenset[int] | None, by: Principal) -> Item:
    changes = body.model_dump(exclude_unset=True)
    owner_id = by.owner_filter(Scope.ITEMS_WRITE)
    item = await crud_item.change(item_id, changes, owner_id=owner_id, versions=versions)
    await audit_service.record(AuditAction.ITEM_UPDATED, by=by, target=("item", item_id), fields=sorted(changes))
    return item


@transactional
async def delete(item_id: ObjectId, *, versions: frozenset[int] | None, by: Principal) -> None:
    await crud_item.remove(item_id, owner_id=by.owner_filter(Scope.ITEMS_WRITE), versions=versions)
    await audit_service.record(AuditAction.ITEM_DELETED, by=by, target=("item", item_id))
