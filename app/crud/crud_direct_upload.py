"""Uploads whose bytes are put by the client: how one of those who check them is chosen, and how they are refused."""

from datetime import datetime

from bson import ObjectId

from app.core.clock import utc_now
from app.crud.base import Filter
from app.db.mongo import Raw
from app.models.enums import UploadStatus
from app.models.upload import DeletedUpload, Upload


async def find_own(upload_id: ObjectId, *, owner_id: ObjectId | None) -> Upload | None:
    """None when there is none, or it is not the owner's; of any owner when none is named."""
    return await Upload.find_one({"_id": upload_id} if owner_id is None else {"_id": upload_id, "owner_id": owner_id})


async def claim_check(upload_id: ObjectId, *, until: datetime, kept_until: datetime) -> bool:
    """Be the one who puts or checks its bytes. False when it does not wait for that, or somebody else does."""
    is_free = {"$or": [{"checked_until": None}, {"checked_until": {"$lte": utc_now()}}]}
    update = {"$set": {"checked_until": until}, "$max": {"due_at": kept_until}}
    result = await Upload.get_pymongo_collection().update_one({**_waiting(upload_id), **is_free}, update)
    return result.matched_count == 1


async def prolong_check(upload_id: ObjectId, *, until: datetime, kept_until: datetime) -> bool:
    """False when it waits no longer."""
    update = {"$set": {"checked_until": until}, "$max": {"due_at": kept_until}}
    return (await Upload.get_pymongo_collection().update_one(_waiting(upload_id), update)).matched_count == 1


async def release_check(upload_id: ObjectId) -> None:
    """Let another one check it, or the same once more."""
    await Upload.get_pymongo_collection().update_one(_waiting(upload_id), {"$set": {"checked_until": None}})


async def refuse(upload_id: ObjectId, status: UploadStatus, *, reason: str) -> tuple[Raw, ObjectId] | None:
    """Let one that waits have failed: as it was before, and a note that its bytes are to go; none when there is none.

    From then on it counts for nothing.
    """
    changes = {"status": status, "reason": reason, "size": 0, "due_at": None, "updated_at": utc_now()}
    before: Raw | None = await Upload.get_pymongo_collection().find_one_and_update(
        _waiting(upload_id), {"$set": {**changes, "checked_until": None}}
    )
    if before is None:
        return None
    # By an id of its own: that of the upload is for when it is deleted.
    note = DeletedUpload(stem=before["stem"], link_ends_at=before.get("link_ends_at"))
    await note.insert()
    return before, note.id


def _waiting(upload_id: ObjectId) -> Filter:
    return {"_id": upload_id, "status": UploadStatus.PENDING, "is_direct": True}
