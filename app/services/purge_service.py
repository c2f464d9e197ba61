"""Purging: what a deleted user owned is removed for good, once the time in which it could be restored is over.

In batches, each one transaction with the count of what it removed and with the claim on the archived account, which
goes last. So a process may end anywhere and another goes on from there, and of two that think the purge is
theirs only one gets anything done.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import ConflictError
from app.core.logging_config import get_logger
from app.core.principal import Principal
from app.core.tasks import is_cancelled
from app.crud import crud_conversation, crud_deleted_user, crud_purge, crud_usage
from app.crud.crud_purge import Place
from app.db.mongo import transactional
from app.models.deleted_user import DeletedUser
from app.models.enums import AuditAction
from app.services import audit_service, participant_service, upload_removal_service

JOB: Final = "purge_deleted_users"
_BATCH: Final = 200
_CLAIM: Final = timedelta(minutes=1)
_PURGER: Final = Principal.system("purge")

Change = Callable[[Place, ObjectId, Sequence[ObjectId]], Awaitable[int]]

_log = get_logger(__name__)


class Round(NamedTuple):
    """How many accounts were purged, and how many are left to the next round."""

    purged: int
    interrupted: int


async def purge_due() -> Round:
    """Purge every account that is due and that nobody else is at. One that fails does not hold up the others."""
    purged = interrupted = 0
    while not is_cancelled() and (claim := await _claim()) is not None:
        try:
            await _purge(claim)
        except asyncio.CancelledError:
            await crud_deleted_user.release(claim)
            raise
        except Exception as error:  # noqa: BLE001 - the claim runs out, and another attempt is made
            _log.warning("purge_interrupted", user_id=str(claim.id), exc_info=error)
            interrupted += 1
        else:
            purged += 1
    return Round(purged, interrupted)


async def _claim() -> DeletedUser | None:
    now = utc_now()
    return await crud_deleted_user.claim_due(holder=ObjectId(), at=now, until=now + _CLAIM)


async def _purge(claim: DeletedUser) -> None:
    """In order of ownership. Whoever takes no part any more writes no message, so messages come after conversations."""
    user_id = claim.id
    if claim.conversation_id is not None:
        await _remove_messages(claim, claim.conversation_id)
    while ids := await crud_purge.some(crud_purge.TAKING_PART, user_id, limit=_BATCH):
        for conversation_id in ids:
            if await _leave(claim, conversation_id):
                await _remove_messages(claim, conversation_id)
    await _all(claim, "messages_emptied", crud_purge.WRITTEN, user_id, crud_purge.empty)
    await _all(claim, "uploads", crud_purge.UPLOADED, user_id, crud_purge.remove_uploads)
    for place in crud_purge.OWNED:
        await _all(claim, place.collection, place, user_id, crud_purge.remove)
    for place in crud_purge.SIGNED:
        await _all(claim, f"{place.collection}_unsigned", place, user_id, crud_purge.forget)
    await _end(claim)


@transactional
async def _leave(claim: DeletedUser, conversation_id: ObjectId) -> bool:
    """Leave a conversation to the others who take part, the last owner handing over. True when there were none."""
    target = ("conversation", conversation_id)
    removed = await crud_purge.remove_if_alone(conversation_id, claim.id)
    if removed is not None:
        if removed["created_by"] is not None:
            await crud_usage.give_back_conversation(removed["created_by"])
        await participant_service.tell_of_end(conversation_id, removed["version"])
        await _note(claim, {"conversations": 1}, conversation_id=conversation_id)
        await audit_service.record(AuditAction.CONVERSATION_DELETED, by=_PURGER, target=target)
        return True
    departure = await crud_conversation.remove_participant(conversation_id, claim.id)
    if departure is not None:
        await participant_service.tell_of_departure(conversation_id, claim.id, departure)
        await _note(claim, {"conversations_left": 1})
        await audit_service.record(AuditAction.PARTICIPANT_REMOVED, by=_PURGER, target=target, user_id=claim.id)
    return False


async def _remove_messages(claim: DeletedUser, conversation_id: ObjectId) -> None:
    """Everybody's, of a conversation that went with the user."""
    await upload_removal_service.remove_of_conversation(conversation_id)
    await _all(claim, "messages", crud_purge.SAID_IN, conversation_id, crud_purge.remove)
    await _close(claim, conversation_id)


@transactional
async def _close(claim: DeletedUser, conversation_id: ObjectId) -> None:
    await crud_purge.remove_note(conversation_id)
    await _note(claim, {}, conversation_id=None)


async def _all(claim: DeletedUser, kind: str, place: Place, named: ObjectId, change: Change) -> None:
    """Change all documents that name it there, until none does."""
    while ids := await crud_purge.some(place, named, limit=_BATCH):
        await _some(claim, kind, place, named, change, ids)


@transactional
async def _some(
    claim: DeletedUser, kind: str, place: Place, named: ObjectId, change: Change, ids: Sequence[ObjectId]
) -> None:
    count = await change(place, named, ids)
    await _note(claim, {kind: count})


@transactional
async def _end(claim: DeletedUser) -> None:
    archived = await crud_deleted_user.remove_claimed(claim)
    if archived is None:
        raise _taken_over()
    await crud_usage.remove_totals(archived.id)
    await audit_service.record(
        AuditAction.USER_PURGED, by=_PURGER, target=("user", archived.id), removed=archived.removed
    )


async def _note(claim: DeletedUser, removed: dict[str, int], **changes: Any) -> None:
    """Part of every transaction here: without the claim none of them is committed."""
    if is_cancelled():
        raise asyncio.CancelledError
    until: datetime = utc_now() + _CLAIM
    if not await crud_deleted_user.note_progress(claim, removed, until=until, **changes):
        raise _taken_over()


def _taken_over() -> ConflictError:
    return ConflictError("Another process has taken this purge over.")
