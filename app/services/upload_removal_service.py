"""What is left of uploads goes: their bytes, after the transaction in which they themselves go.

A note in that transaction says which bytes these are. So a process may end anywhere, and the job goes on from there.
"""

from datetime import timedelta
from typing import Final, NamedTuple

from bson import ObjectId

from app.core import background
from app.core.clock import utc_now
from app.core.exceptions import NotFoundError, StorageUnavailableError
from app.core.logging_config import get_logger
from app.core.principal import Principal
from app.core.scopes import Scope
from app.crud import crud_upload, crud_usage
from app.db.mongo import Raw, after_commit, transactional
from app.models.enums import AuditAction, AuditOutcome
from app.services import audit_service
from app.services.storage import get_storage

JOB: Final = "clean_up_uploads"
_BATCH: Final = 100
# A slow sender fills a block in that time, and no verdict takes as long: whoever has not written since is dead.
_SWEPT_AFTER: Final = timedelta(hours=1)
_MOST_FAILURES: Final = 10
_REMOVER: Final = Principal.system("conversation")

_log = get_logger(__name__)


class CleanUp(NamedTuple):
    """How many uploads that never came to an end were given up, of how many the bytes are gone, and other remains."""

    given_up: int
    removed: int
    swept: int


@transactional
async def delete(upload_id: ObjectId, *, by: Principal) -> None:
    removed = await crud_upload.remove(upload_id, owner_id=by.owner_filter(Scope.UPLOADS_WRITE))
    if removed is None:
        raise NotFoundError("There is no such upload.")
    await _let_go(removed)
    await audit_service.record(AuditAction.UPLOAD_DELETED, by=by, target=("upload", upload_id))


@transactional
async def give_up(upload_id: ObjectId, stem: str, *, reason: str | None, by: Principal) -> None:
    """Forget one that is pending. `reason` is what was found in it, if anything."""
    removed = await crud_upload.remove_pending(upload_id)
    if removed is not None:
        await _let_go(removed)
    elif not await crud_upload.exists(upload_id):  # somebody else was quicker, and perhaps than the last byte
        await crud_upload.note(upload_id, stem)
        remove_bytes_after_commit(upload_id, stem)
    if reason is not None:
        failure = AuditOutcome.FAILURE
        target = ("upload", upload_id)
        await audit_service.record(AuditAction.UPLOAD_REFUSED, by=by, target=target, outcome=failure, reason=reason)


async def remove_of_conversation(conversation_id: ObjectId) -> None:
    """Remove the uploads that were made for a conversation which is gone. Safe to repeat."""
    while ids := await crud_upload.ids_of_conversation(conversation_id, limit=_BATCH):
        for upload_id in ids:
            await _remove_with_conversation(upload_id, conversation_id)


@transactional
async def _remove_with_conversation(upload_id: ObjectId, conversation_id: ObjectId) -> None:
    removed = await crud_upload.remove(upload_id, owner_id=None)
    if removed is not None:
        await _give_back(removed)  # the job removes the bytes: a script that purges has no storage open
        await audit_service.record(
            AuditAction.UPLOAD_DELETED, by=_REMOVER, target=("upload", upload_id), conversation_id=conversation_id
        )


async def clean_up() -> CleanUp:
    """Give up what is due, remove the bytes of what is gone, and what writers that died have left."""
    given_up = 0
    while ids := await crud_upload.due_ids(limit=_BATCH):
        for upload_id in ids:
            given_up += await _give_up_due(upload_id)
    swept = await get_storage().sweep(before=utc_now() - _SWEPT_AFTER)
    return CleanUp(given_up, await _remove_noted(), swept)


async def _remove_noted() -> int:
    """The bytes of all that is gone. Some that can't be removed do not keep the others; many are a storage away."""
    removed, after, failures = 0, None, []
    while notes := await crud_upload.notes(after=after, limit=_BATCH):
        for note in notes:
            try:
                await _remove_bytes(note["_id"], note["stem"])
                removed += 1
            except StorageUnavailableError as error:
                failures.append(error)
                if len(failures) == _MOST_FAILURES:
                    raise
        after = notes[-1]["_id"]
    if failures:
        raise failures[0]
    return removed


@transactional
async def _give_up_due(upload_id: ObjectId) -> bool:
    removed = await crud_upload.remove_due(upload_id)
    if removed is not None:
        await _give_back(removed)
    return removed is not None


async def _let_go(removed: Raw) -> None:
    """Inside of the transaction that removed it."""
    await _give_back(removed)
    remove_bytes_after_commit(removed["_id"], removed["stem"])


def remove_bytes_after_commit(note_id: ObjectId, stem: str) -> None:
    """Soon, since there is a note of them."""
    after_commit(lambda: background.start(_try_to_remove_bytes(note_id, stem), name="remove_upload"))


async def _give_back(removed: Raw) -> None:
    if removed["owner_id"] is not None:
        await crud_usage.give_back_storage(removed["owner_id"], removed["size"])


async def _try_to_remove_bytes(upload_id: ObjectId, stem: str) -> None:
    try:
        await _remove_bytes(upload_id, stem)
    except Exception as error:  # noqa: BLE001 - storage or database is away: the job does it
        _log.warning("bytes_of_upload_left", upload_id=str(upload_id), error=type(error).__name__)


async def _remove_bytes(upload_id: ObjectId, stem: str) -> None:
    await get_storage().delete_all(stem)
    await crud_upload.settle_note(upload_id)
