"""Uploads past this service, or in one piece without a form: announced, put by the client, then checked here.

The object can't be put twice, so what was checked is what will be read.
"""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from bson import ObjectId

from app.core import background
from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import (
    ConflictError,
    FileInfectedError,
    FileRejectedError,
    NotFoundError,
    ObjectExistsError,
    PayloadTooLargeError,
)
from app.core.file_name import clean_name
from app.core.file_signature import OCTETS
from app.core.meanwhile import meanwhile
from app.core.principal import Principal
from app.core.signed_link import Permission, link_to
from app.core.stored_object import DirectUpload, key_of, new_stem
from app.crud import crud_direct_upload, crud_usage
from app.models.enums import UploadStatus
from app.models.upload import Upload
from app.schemas.direct_upload import DirectUploadCreate, DirectUploadRead
from app.schemas.upload import UploadCreate, UploadRead
from app.services import upload_service, usage_service
from app.services.storage import get_storage

LINK_LIFE: Final = timedelta(hours=1)
_SPARE: Final = timedelta(hours=1)  # after the end of the link, to complete what has been put
_AZURE_MOST: Final = 5000 * 1024 * 1024  # in one request
_CLAIM: Final = timedelta(seconds=60)
_HELD_FOR: Final = timedelta(minutes=5)
_HELD_EVERY_SECONDS: Final = 15.0


async def announce(body: DirectUploadCreate, *, by: Principal) -> DirectUploadRead:
    """Reserve room for a file, and say where to put it. What is never completed is given up."""
    said = UploadCreate(visibility=body.visibility, conversation_id=body.conversation_id)
    _require_acceptable(body)
    await upload_service.require_conversation(said, by=by)
    expires_at = (utc_now() + LINK_LIFE).replace(microsecond=0)
    upload = Upload(
        owner_id=by.user_id,
        filename=clean_name(body.filename),
        content_type=body.content_type or OCTETS,
        size=body.size,
        sha256=body.sha256,
        stem=new_stem(),
        visibility=body.visibility,
        conversation_id=body.conversation_id,
        due_at=expires_at + _SPARE,
        link_ends_at=expires_at,
        is_direct=True,
    )
    way = await _way_for(upload, expires_at)
    limit = None
    if by.user_id is not None:
        limit = (await usage_service.limits_of_user(by.user_id)).storage_bytes
        await crud_usage.open_totals(by.user_id)
    await upload_service.open_pending(upload, body.size, limit=limit)
    shown = UploadRead.model_validate(upload)
    return DirectUploadRead(upload=shown, url=way.url, headers=way.headers, expires_at=expires_at)


def _require_acceptable(body: DirectUploadCreate) -> None:
    """Refuse what would be refused when it is all there."""
    settings = get_settings()
    if body.size > settings.max_upload_bytes:
        raise PayloadTooLargeError(f"A file has at most {settings.max_upload_bytes} bytes here.")
    declared = (body.content_type or "").partition(";")[0].strip().lower()
    if declared and declared not in {*settings.upload_allowed_types, OCTETS}:
        raise FileRejectedError("Files of this type are not accepted.")


async def _way_for(upload: Upload, expires_at: datetime) -> DirectUpload:
    way = await get_storage().direct_upload(key_of(upload.stem), expires_at=expires_at)
    if way is None:
        return DirectUpload(link_to(Permission(str(upload.id), "bytes"), expires_at=expires_at), {})
    if upload.size > _AZURE_MOST:
        raise PayloadTooLargeError(f"The storage takes at most {_AZURE_MOST} bytes at once. Use POST /api/v1/uploads.")
    return way


async def put(upload_id: ObjectId, chunks: AsyncIterator[bytes]) -> None:
    """Store the bytes of an upload that was announced: just as many as were, and only once."""
    upload = await crud_direct_upload.find_own(upload_id, owner_id=None)
    if upload is None or upload.status in {UploadStatus.FAILED, UploadStatus.INFECTED}:
        raise NotFoundError("There is no such upload.")
    now = utc_now()
    if not await crud_direct_upload.claim_check(upload_id, until=now + _CLAIM, kept_until=now + _HELD_FOR):
        raise ConflictError("This upload waits for no bytes, or they are on their way.")
    try:
        await _store(upload, chunks)
    finally:
        await background.to_the_end(crud_direct_upload.release_check(upload_id), name="release_upload_put")


async def _store(upload: Upload, chunks: AsyncIterator[bytes]) -> None:
    """One at a time: many would fill the disk with many times what the upload counts for."""
    key, hold = key_of(upload.stem), partial(_hold, upload.id)
    if await get_storage().stat(key) is not None:
        raise ConflictError("The bytes are there already.")
    try:
        async with meanwhile(hold, every_seconds=_HELD_EVERY_SECONDS):
            await get_storage().write(key, _just(upload.size, chunks))
    except ObjectExistsError as error:
        raise ConflictError("The bytes are there already.") from error
    if not await hold():
        await get_storage().delete_all(upload.stem)  # deleted meanwhile, perhaps before the bytes were there
        raise NotFoundError("There is no such upload.")


async def _just(size: int, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        if received > size:
            break
        yield chunk
    if received != size:
        more = "more" if received > size else "fewer"
        raise FileRejectedError(f"{size} bytes were announced, and {more} were sent.")


async def _hold(upload_id: ObjectId) -> bool:
    """Let nobody give it up while its bytes come. False when it is gone."""
    now = utc_now()
    return await crud_direct_upload.prolong_check(upload_id, until=now + _CLAIM, kept_until=now + _HELD_FOR)


def as_error(upload: Upload) -> FileRejectedError | FileInfectedError:
    """Why one that was refused was."""
    return FileInfectedError() if upload.status is UploadStatus.INFECTED else FileRejectedError(upload.reason)
