"""The check of a file that a client has put into the storage by itself. It is read once, and clean or gone then."""

import asyncio
import hashlib
from datetime import timedelta
from functools import partial
from typing import Any, Final

from bson import ObjectId

from app.core import background
from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.context import provisionally
from app.core.exceptions import (
    ConflictError,
    FileInfectedError,
    FileRejectedError,
    NotFoundError,
)
from app.core.file_name import clean_name
from app.core.file_type import FileProbe
from app.core.meanwhile import meanwhile
from app.core.principal import Principal
from app.core.scopes import Scope
from app.core.stored_object import key_of
from app.crud import crud_direct_upload, crud_usage
from app.db.mongo import transactional
from app.models.enums import AuditAction, AuditOutcome, UploadStatus
from app.models.upload import Upload
from app.schemas.upload import UploadCreate
from app.services import audit_service, direct_upload_service, upload_removal_service, upload_service
from app.services.scanner import Finding, Verdict, scanner_of
from app.services.storage import get_storage

_CLAIM: Final = timedelta(seconds=60)
_KEPT: Final = timedelta(minutes=5)
_PROLONGED_EVERY_SECONDS: Final = 15.0


async def complete(upload_id: ObjectId, *, by: Principal) -> Upload:
    """Accept what was put, or remove it. Of several at once one does that; asked again, the answer is the same."""
    upload = await crud_direct_upload.find_own(upload_id, owner_id=by.owner_filter(Scope.UPLOADS_WRITE))
    if upload is None:
        raise NotFoundError("There is no such upload.")
    if upload.status is UploadStatus.CLEAN:
        return upload
    if upload.status is not UploadStatus.PENDING:
        raise direct_upload_service.as_error(upload)
    now = utc_now()
    if not await crud_direct_upload.claim_check(upload_id, until=now + _CLAIM, kept_until=now + _KEPT):
        raise ConflictError("This upload is being received or checked.")
    try:
        async with meanwhile(partial(_prolong, upload_id), every_seconds=_PROLONGED_EVERY_SECONDS):
            return await _check(upload, by=by)
    except BaseException:  # told only then, so that whoever is told may go on at once
        await background.to_the_end(crud_direct_upload.release_check(upload_id), name="release_upload_check")
        raise


async def _check(upload: Upload, *, by: Principal) -> Upload:
    check = _Check(upload)
    try:
        changes = await check.run()
    except (FileRejectedError, FileInfectedError) as error:
        is_infected = isinstance(error, FileInfectedError)
        status = UploadStatus.INFECTED if is_infected else UploadStatus.FAILED
        reason = check.verdict.signature or "" if is_infected else str(error)
        with provisionally():  # the refusal stays, although it is one
            await _refuse(upload.id, status, reason, by=by)
        raise
    said = UploadCreate(visibility=upload.visibility, conversation_id=upload.conversation_id)
    return await upload_service.accept(upload.id, said, changes, scan=check.verdict.finding, by=by)


class _Check:
    def __init__(self, upload: Upload) -> None:
        settings = get_settings()
        self.verdict = Verdict(Finding.NOT_SCANNED)
        self._upload = upload
        self._probe = FileProbe(upload.filename, settings.upload_allowed_types)
        self._scanner = scanner_of(settings)

    async def run(self) -> dict[str, Any]:
        """What is known of the file then. `FileRejectedError` or `FileInfectedError` when it can't stay."""
        await self._require_announced()
        digest = await self._read()
        if self._upload.sha256 not in {None, digest}:
            raise FileRejectedError("The bytes have another SHA-256 than was announced.")
        kind = self._probe.finish()
        return {
            "filename": clean_name(self._upload.filename, extension=kind.extension),
            "content_type": kind.content_type,
            "size": self._probe.size,
            "sha256": digest,
        }

    async def _require_announced(self) -> None:
        stored, announced = await get_storage().stat(key_of(self._upload.stem)), self._upload.size
        if stored is None:
            raise ConflictError("The bytes are not there yet: put them first.")
        if stored.size != announced:
            raise FileRejectedError(f"{announced} bytes were announced, and {stored.size} are there.")
        if stored.is_encoded:
            raise FileRejectedError("The bytes were put with a Content-Encoding, under which they are another file.")

    async def _read(self) -> str:
        digest = hashlib.sha256()
        async with self._scanner.scan() as scan:
            async for chunk in get_storage().read(key_of(self._upload.stem)):
                self._probe.feed(chunk)
                await asyncio.to_thread(digest.update, chunk)
                await scan.feed(chunk)
            self.verdict = await scan.verdict()
        if self.verdict.finding is Finding.INFECTED:
            raise FileInfectedError
        return digest.hexdigest()


@transactional
async def _refuse(upload_id: ObjectId, status: UploadStatus, reason: str, *, by: Principal) -> None:
    refused = await crud_direct_upload.refuse(upload_id, status, reason=reason)
    if refused is None:
        return
    before, note_id = refused
    if before["owner_id"] is not None:
        await crud_usage.give_back_storage(before["owner_id"], before["size"])
    target, failure = ("upload", upload_id), AuditOutcome.FAILURE
    await audit_service.record(AuditAction.UPLOAD_REFUSED, by=by, target=target, outcome=failure, reason=reason)
    upload_removal_service.remove_bytes_after_commit(note_id, before["stem"])


async def _prolong(upload_id: ObjectId) -> None:
    now = utc_now()
    await crud_direct_upload.prolong_check(upload_id, until=now + _CLAIM, kept_until=now + _KEPT)
