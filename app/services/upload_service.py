"""Uploads on their way in: through the checks into the storage as they arrive, counted against the plan meanwhile.

A pending document stands for what is reserved. It becomes a clean one, or goes, and the reservation with it: in a
transaction of its own, here or, when this process dies, by `upload_removal_service.clean_up`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final, Protocol

from bson import ObjectId

from app.core import background
from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.context import provisionally
from app.core.exceptions import (
    ConflictError,
    FileInfectedError,
    FileRejectedError,
    InvalidContentError,
    PayloadTooLargeError,
    QuotaExceededError,
)
from app.core.file_name import clean_name
from app.core.file_signature import OCTETS
from app.core.file_type import FileProbe, FileType
from app.core.logging_config import get_logger
from app.core.meanwhile import meanwhile
from app.core.metrics import UPLOAD_BYTES
from app.core.principal import Principal
from app.core.stored_object import Stored, key_of, new_stem
from app.core.turns import Turns
from app.crud import crud_conversation, crud_upload, crud_usage
from app.db.mongo import transactional
from app.models.enums import AuditAction, UploadStatus
from app.models.upload import GIVEN_UP_AFTER, Upload
from app.schemas.upload import UploadCreate
from app.services import audit_service, upload_removal_service, usage_service
from app.services.scanner import Finding, Scan, Verdict, scanner_of
from app.services.storage import get_storage

_STEP: Final = 8 * 1024 * 1024  # what is reserved at a time, when nobody says how much is to come
_SLACK: Final = 1024  # by which what is announced may be more than the file
_PROLONGED_EVERY_SECONDS: Final = 60.0

# By user: uploads that one user makes at the same time count in the same document.
_turns: Final = Turns()
_log = get_logger(__name__)


class Reserve(Protocol):
    async def __call__(self, upload: Upload, size: int, *, limit: int | None) -> None: ...


class Incoming(Protocol):
    """A file that somebody is sending. `said` is what was said of it by now, and final after the last chunk."""

    @property
    def filename(self) -> str: ...

    @property
    def most_bytes(self) -> int | None: ...

    def said(self) -> UploadCreate: ...

    def chunks(self) -> AsyncIterator[bytes]: ...


async def receive(incoming: Incoming, *, by: Principal) -> Upload:
    """Take a file in. Whatever goes wrong on the way, nothing of it is left, and nothing of it counts."""
    await require_conversation(incoming.said(), by=by)
    intake = _Intake(incoming, by=by)
    await intake.begin()
    try:
        async with meanwhile(intake.stay, every_seconds=_PROLONGED_EVERY_SECONDS), aclosing(intake.chunks()) as chunks:
            stored = await get_storage().write(key_of(intake.upload.stem), chunks)
            return await intake.accept(stored)
    except asyncio.CancelledError:
        background.start(_give_up(intake.upload, None, by=by), name="give_up_upload")
        raise
    except Exception as error:
        with provisionally():
            await _give_up(intake.upload, intake.reason_of(error), by=by)
        raise


class _Intake:
    """One file on its way."""

    def __init__(self, incoming: Incoming, *, by: Principal) -> None:
        settings = get_settings()
        self._incoming = incoming
        self._by = by
        self._most = settings.max_upload_bytes
        self._scanner = scanner_of(settings)
        self._received = 0
        self._limit: int | None = None
        self._verdict = Verdict(Finding.NOT_SCANNED)
        self._type: FileType | None = None
        name = clean_name(incoming.filename)
        self._probe = FileProbe(name, settings.upload_allowed_types)
        self.upload = Upload(
            owner_id=by.user_id, filename=name, content_type=OCTETS, size=0, stem=new_stem(), due_at=_due_at()
        )

    async def begin(self) -> None:
        """Reserve what is announced, or else the first step of what is to come."""
        if self._by.user_id is not None:
            self._limit = (await usage_service.limits_of_user(self._by.user_id)).storage_bytes
            await crud_usage.open_totals(self._by.user_id)
        announced = self._incoming.most_bytes
        size = _STEP if announced is None else min(announced, self._most)
        await self._reserve(open_pending, size, at_least=0 if announced is None else max(0, size - _SLACK))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes, each looked at before it goes on. The end comes when all of them are known to be good."""
        async with self._scanner.scan() as scan:
            async for chunk in self._incoming.chunks():
                await self._make_room(len(chunk))
                UPLOAD_BYTES.add(amount=len(chunk))
                self._probe.feed(chunk)
                await scan.feed(chunk)
                yield chunk
            await require_conversation(self._incoming.said(), by=self._by)  # what came behind the file, too
            self._type = self._probe.finish()
            await self._hear(scan)

    async def stay(self) -> None:
        """Keep the upload from being given up meanwhile, however slowly its bytes come and its verdict."""
        await crud_upload.prolong(self.upload.id, due_at=_due_at())

    async def accept(self, stored: Stored) -> Upload:
        assert self._type is not None  # noqa: S101 - nothing is stored before it is known
        said = self._incoming.said()
        changes = {
            "filename": clean_name(self._incoming.filename, extension=self._type.extension),
            "content_type": self._type.content_type,
            "size": stored.size,
            "sha256": stored.sha256,
            "visibility": said.visibility,
            "conversation_id": said.conversation_id,
        }
        return await accept(self.upload.id, said, changes, scan=self._verdict.finding, by=self._by)

    def reason_of(self, error: Exception) -> str | None:
        """What the audit trail is told of a file that was looked at and refused."""
        if isinstance(error, FileInfectedError):
            return self._verdict.signature
        return str(error) if isinstance(error, FileRejectedError) else None

    async def _make_room(self, size: int) -> None:
        self._received += size
        if self._received > self._most:
            raise PayloadTooLargeError(f"A file has at most {self._most} bytes here.")
        missing = self._received - self.upload.size
        if missing > 0:
            await self._reserve(_grow, max(_STEP, missing), at_least=missing)

    async def _reserve(self, reserve: Reserve, size: int, *, at_least: int) -> None:
        """Reserve that much more, or if there is no room for it, no more than what is needed."""
        with provisionally():
            async with _turns.of(self._by.user_id):
                try:
                    await reserve(self.upload, size, limit=self._limit)
                except QuotaExceededError:
                    if at_least == size:
                        raise
                    size = at_least
                    await reserve(self.upload, size, limit=self._limit)
        self.upload.size += size

    async def _hear(self, scan: Scan) -> None:
        self._verdict = await scan.verdict()
        if self._verdict.finding is Finding.INFECTED:
            raise FileInfectedError


@transactional
async def open_pending(upload: Upload, size: int, *, limit: int | None) -> None:
    """Let a new upload count for so many bytes."""
    if upload.owner_id is not None:
        await usage_service.spend_storage(upload.owner_id, size, limit=limit)
    await upload.model_copy(update={"size": size}).insert()


@transactional
async def _grow(upload: Upload, size: int, *, limit: int | None) -> None:
    """Let it count for so many bytes more."""
    if not await crud_upload.grow(upload.id, size):
        raise _gone()
    if upload.owner_id is not None:
        await usage_service.spend_storage(upload.owner_id, size, limit=limit)


@transactional
async def accept(
    upload_id: ObjectId, said: UploadCreate, changes: dict[str, Any], *, scan: Finding, by: Principal
) -> Upload:
    await require_conversation(said, by=by)
    before = await crud_upload.accept(upload_id, changes)
    if before is None:
        raise _gone()
    if before["owner_id"] is not None:
        await crud_usage.give_back_storage(before["owner_id"], before["size"] - changes["size"])
    details = {name: changes[name] for name in ("filename", "content_type", "size", "sha256")}
    await audit_service.record(AuditAction.UPLOAD_CREATED, by=by, target=("upload", upload_id), scan=scan, **details)
    accepted: Upload = Upload.model_validate(before | changes | {"status": UploadStatus.CLEAN, "due_at": None})
    return accepted


async def require_conversation(said: UploadCreate, *, by: Principal) -> None:
    """Users share files where they take part themselves; a service in any conversation."""
    if said.conversation_id is None or await crud_conversation.exists(said.conversation_id, user_id=by.user_id):
        return
    error = {"loc": ["body", "conversation_id"], "msg": "there is no such conversation", "type": "unknown_conversation"}
    raise InvalidContentError(errors=[error])


async def _give_up(upload: Upload, reason: str | None, *, by: Principal) -> None:
    try:
        await upload_removal_service.give_up(upload.id, upload.stem, reason=reason, by=by)
    except Exception as error:  # noqa: BLE001 - the database is away: the job does it
        _log.warning("upload_not_given_up", upload_id=str(upload.id), error=type(error).__name__)


def _due_at() -> datetime:
    return utc_now() + GIVEN_UP_AFTER


def _gone() -> ConflictError:
    return ConflictError("The upload was deleted, or given up, before it came to its end.")
