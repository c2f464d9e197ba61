"""What is noted of an upload when parts are made of it. Only of one that is clean: any other has no parts."""

from collections.abc import Iterable
from typing import Any

from bson import ObjectId

from app.core.clock import utc_now
from app.crud.base import find_one_and_update
from app.models.enums import UploadStatus
from app.models.upload import Upload


async def mark_thumbnails(upload_id: ObjectId, sizes: Iterable[int]) -> bool:
    """False when the upload is gone."""
    return await _mark(upload_id, {"variants": sorted(sizes), "thumbnail_fault": None, "thumbnail_timeouts": 0})


async def mark_text(upload_id: ObjectId) -> bool:
    """False when the upload is gone."""
    return await _mark(upload_id, {"has_text": True, "text_fault": None, "text_timeouts": 0})


async def mark_fault(upload_id: ObjectId, field: str, sentence: str) -> bool:
    """Note why there is no such part, so that nobody tries again. False when the upload is gone."""
    return await _mark(upload_id, {field: sentence})


async def count_timeout(upload_id: ObjectId, counter: str, field: str, sentence: str, *, most: int) -> bool:
    """Count that making such a part took too long: whether that was the last try, and is noted as its fault."""
    clean = {"_id": upload_id, "status": UploadStatus.CLEAN}
    counted = await find_one_and_update(Upload, clean, {"$inc": {counter: 1}, "$set": {"updated_at": utc_now()}})
    is_last = counted is not None and getattr(counted, counter) >= most
    return is_last and await mark_fault(upload_id, field, sentence)


async def _mark(upload_id: ObjectId, changes: dict[str, Any]) -> bool:
    result = await Upload.get_pymongo_collection().update_one(
        {"_id": upload_id, "status": UploadStatus.CLEAN}, {"$set": {**changes, "updated_at": utc_now()}}
    )
    return result.matched_count == 1
