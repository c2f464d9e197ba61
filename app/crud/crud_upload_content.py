"""What is noted of an upload when parts are made of it. Only of one that is clean: any other has no parts."""

from collections.abc import Iterable
from typing import Any

from bson import ObjectId

from app.core.clock import utc_now
from app.models.enums import UploadStatus
from app.models.upload import Upload


async def mark_thumbnails(upload_id: ObjectId, sizes: Iterable[int]) -> bool:
    """False when the upload is gone."""
    return await _mark(upload_id, {"variants": sorted(sizes), "thumbnail_fault": None})


async def mark_text(upload_id: ObjectId) -> bool:
    """False when the upload is gone."""
    return await _mark(upload_id, {"has_text": True, "text_fault": None})


async def mark_fault(upload_id: ObjectId, field: str, sentence: str) -> bool:
    """Note why there is no such part, so that nobody tries again. False when the upload is gone."""
    return await _mark(upload_id, {field: sentence})


async def _mark(upload_id: ObjectId, changes: dict[str, Any]) -> bool:
    result = await Upload.get_pymongo_collection().update_one(
        {"_id": upload_id, "status": UploadStatus.CLEAN}, {"$set": {**changes, "updated_at": utc_now()}}
    )
    return result.matched_count == 1
