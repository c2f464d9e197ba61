"""The outbox: mails are stored with what they tell of, claimed by one sender at a time, and removed once sent."""

from datetime import datetime, timedelta
from typing import Final

from bson import ObjectId
from pymongo import ReturnDocument

from app.core.clock import utc_now
from app.models.outgoing_mail import OutgoingMail

# Longer than a sender takes at most; after it another one tries, since the first must have ended.
_CLAIM: Final = timedelta(seconds=90)


async def claim_next() -> OutgoingMail | None:
    """The mail that has been due longest, out of the others' sight for a while; none when none is due."""
    now = utc_now()
    raw = await OutgoingMail.get_pymongo_collection().find_one_and_update(
        {"due_at": {"$lte": now}},
        {"$set": {"due_at": now + _CLAIM}, "$inc": {"attempts": 1}},
        sort={"due_at": 1, "_id": 1},
        return_document=ReturnDocument.AFTER,
    )
    return OutgoingMail.model_validate(raw) if raw else None


async def hold(mail_id: ObjectId) -> bool:
    """Keep a claimed mail out of the others' sight for another while. False when it is not to be sent any more."""
    where = {"_id": mail_id, "failed_at": None}
    result = await OutgoingMail.get_pymongo_collection().update_one(where, {"$set": {"due_at": utc_now() + _CLAIM}})
    return result.matched_count == 1


async def remove(mail_id: ObjectId) -> None:
    await OutgoingMail.get_pymongo_collection().delete_one({"_id": mail_id})


async def postpone(mail_id: ObjectId, due_at: datetime) -> None:
    await OutgoingMail.get_pymongo_collection().update_one({"_id": mail_id}, {"$set": {"due_at": due_at}})


async def give_up(mail_id: ObjectId) -> None:
    """Try no more. That there was one is kept for a month, for the operator to see; whose it was is not."""
    personal: dict[str, object] = {"user_id": None, "account": None, "to": None, "values": {}, "request": {}}
    failed = {"due_at": None, "failed_at": utc_now(), **personal}
    await OutgoingMail.get_pymongo_collection().update_one({"_id": mail_id}, {"$set": failed})
