"""Requests that must not be carried out twice: one holder at a time, decided by single conditional writes."""

from collections.abc import Sequence
from datetime import datetime

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from app.core.clock import utc_now
from app.models.enums import IdempotencyState
from app.models.idempotency_record import IdempotencyRecord


async def claim(record: IdempotencyRecord, *, fingerprints: Sequence[bytes]) -> IdempotencyRecord | None:
    """Make it the record of its request; the one that is in the way when there is one.

    Not in the way are one whose day is over, and one of the same request (by any of its fingerprints, of which each
    secret makes one) whose holder has not committed anything in its time: should it still try to, `mark_committed`
    stops it.
    """
    now = utc_now()
    lapsed = {"state": IdempotencyState.RUNNING, "fingerprint": {"$in": fingerprints}, "until": {"$lte": now}}
    is_free = {"_id": record.id, "$or": [{"expires_at": {"$lte": now}}, lapsed]}
    stored = record.model_dump(exclude={"id", "revision_id"})
    while True:
        try:
            await IdempotencyRecord.get_pymongo_collection().replace_one(is_free, stored, upsert=True)
        except DuplicateKeyError:  # it is there, and not free
            if found := await IdempotencyRecord.find_one({"_id": record.id}):
                return found
        else:
            return None


async def mark_committed(record_id: bytes, holder: ObjectId) -> bool:
    """Note that the holder has changed something, inside of the transaction that does. False when it lost its hold."""
    where = {"_id": record_id, "holder": holder, "state": {"$ne": IdempotencyState.ANSWERED}}
    result = await IdempotencyRecord.get_pymongo_collection().update_one(
        where, {"$set": {"state": IdempotencyState.COMMITTED}}
    )
    return result.matched_count == 1


async def prolong(record_id: bytes, holder: ObjectId, *, until: datetime) -> None:
    """Give the holder more time, if it still is the holder."""
    await IdempotencyRecord.get_pymongo_collection().update_one(
        {"_id": record_id, "holder": holder}, {"$set": {"until": until}}
    )


async def keep_answer(record_id: bytes, holder: ObjectId, answer: bytes) -> None:
    changes = {"state": IdempotencyState.ANSWERED, "answer": answer}
    await IdempotencyRecord.get_pymongo_collection().update_one({"_id": record_id, "holder": holder}, {"$set": changes})


async def release(record_id: bytes, holder: ObjectId) -> None:
    """Forget a request that has changed nothing, so that it may be sent again.

    Of one that has changed something the hold is over: nobody waits for its answer any more.
    """
    records = IdempotencyRecord.get_pymongo_collection()
    await records.delete_one({"_id": record_id, "holder": holder, "state": IdempotencyState.RUNNING})
    await records.update_one(
        {"_id": record_id, "holder": holder, "state": IdempotencyState.COMMITTED}, {"$set": {"until": utc_now()}}
    )
