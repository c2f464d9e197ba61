"""How items are found and changed. `owner_id` limits to those of one user; without it all are in reach."""

from typing import Any

from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import NotFoundError, PreconditionFailedError
from app.crud.base import Filter, Listing, Page, find_one_and_delete, find_one_and_update, matching
from app.models.item import Item


async def require(item_id: ObjectId, *, owner_id: ObjectId | None) -> Item:
    item = await Item.find_one(_reach(item_id, owner_id))
    if item is None:
        raise NotFoundError("There is no such item.")
    return item


async def page(*, owner_id: ObjectId | None, is_completed: bool | None, limit: int, cursor: str | None) -> Page[Item]:
    """Newest first."""
    asked = {"owner_id": owner_id, "is_completed": is_completed}
    where = {name: value for name, value in asked.items() if value is not None}
    listing = Listing("items", where, ["created_at", "_id"])
    rows = await Item.find(listing.after(cursor)).sort(listing.beanie_order).limit(limit + 1).to_list()
    return listing.page(rows, limit)


async def change(
    item_id: ObjectId, changes: dict[str, Any], *, owner_id: ObjectId | None, versions: frozenset[int] | None
) -> Item:
    """Change an item that is still of one of the versions, when any are named, else `PreconditionFailedError`."""
    where = matching(_reach(item_id, owner_id), versions)
    update = {"$set": {**changes, "updated_at": utc_now()}, "$inc": {"version": 1}}
    changed = await find_one_and_update(Item, where, update)
    if changed is None:
        raise await _why_unmatched(item_id, owner_id)
    return changed


async def remove(item_id: ObjectId, *, owner_id: ObjectId | None, versions: frozenset[int] | None) -> None:
    """Errors as in `change`."""
    if await find_one_and_delete(Item, matching(_reach(item_id, owner_id), versions)) is None:
        raise await _why_unmatched(item_id, owner_id)


def _reach(item_id: ObjectId, owner_id: ObjectId | None) -> Filter:
    return {"_id": item_id} if owner_id is None else {"_id": item_id, "owner_id": owner_id}


async def _why_unmatched(item_id: ObjectId, owner_id: ObjectId | None) -> PreconditionFailedError:
    """One that is there after all is of another version; one that is not is a `NotFoundError`."""
    await require(item_id, owner_id=owner_id)
    return PreconditionFailedError()
