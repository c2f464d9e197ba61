"""How uploads are found and changed. `owner_id` limits to those of one user, `seen_by` to what one user may see."""

from typing import Any

from bson import ObjectId

from app.crud.base import Filter, Listing, Page
from app.models.enums import UploadStatus, Visibility
from app.models.upload import Upload


async def find(upload_id: ObjectId, *, seen_by: ObjectId | None) -> Upload | None:
    """None when there is no such upload, or it is neither the user's own nor one that others show it.

    Others show what is clean: to everybody by `public`, and to who takes part in its conversation.
    """
    if seen_by is None:
        return await Upload.find_one({"_id": upload_id})
    is_own = {"owner_id": seen_by}
    of_conversation = {"status": UploadStatus.CLEAN, "conversation_id": {"$ne": None}}
    found = await Upload.get_pymongo_collection().aggregate(
        [
            {"$match": {"_id": upload_id, "$or": [is_own, _PUBLIC, of_conversation]}},
            {
                "$lookup": {
                    "from": "conversations",
                    "localField": "conversation_id",
                    "foreignField": "_id",
                    "pipeline": [{"$match": {"participants.user_id": seen_by}}, {"$project": {"_id": 1}}],
                    "as": "shared",
                }
            },
            {"$match": {"$or": [is_own, _PUBLIC, {"shared": {"$ne": []}}]}},
            {"$unset": "shared"},
        ],
    )
    rows = await found.to_list()
    return Upload.model_validate(rows[0]) if rows else None


async def find_public(upload_id: ObjectId) -> Upload | None:
    """One that everybody may see."""
    return await Upload.find_one({"_id": upload_id, **_PUBLIC})


async def page(
    *,
    owner_id: ObjectId | None,
    status: UploadStatus | None,
    conversation_id: ObjectId | None,
    limit: int,
    cursor: str | None,
) -> Page[Upload]:
    """Newest first."""
    asked: dict[str, Any] = {"owner_id": owner_id, "status": status, "conversation_id": conversation_id}
    where = {name: value for name, value in asked.items() if value is not None}
    listing = Listing("uploads", where, ["created_at", "_id"])
    rows = await Upload.find(listing.after(cursor)).sort(listing.beanie_order).limit(limit + 1).to_list()
    return listing.page(rows, limit)


_PUBLIC: Filter = {"visibility": Visibility.PUBLIC, "status": UploadStatus.CLEAN}
