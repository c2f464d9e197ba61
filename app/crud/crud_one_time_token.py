"""How links that work once are kept and used up.

A link and the mail that carries it have one id. A mail that may be sent again makes its link again, so the link goes
together with the mail.
"""

from datetime import datetime

from bson import ObjectId

from app.core.clock import utc_now
from app.crud.base import find_one_and_delete
from app.models.enums import TokenPurpose
from app.models.one_time_token import OneTimeToken
from app.models.outgoing_mail import OutgoingMail


async def add(token: OneTimeToken) -> bool:
    """Keep it. One that is there already, since its mail is sent a second time, only lives on from now: False."""
    document = token.model_dump(exclude={"id", "expires_at"})
    changes = {"$set": {"expires_at": token.expires_at}, "$setOnInsert": document}
    result = await OneTimeToken.get_pymongo_collection().update_one({"_id": token.id}, changes, upsert=True)
    return result.upserted_id is not None


async def was_made_since(
    moment: datetime, *, user_id: ObjectId, purpose: TokenPurpose, email_key: str, but: ObjectId
) -> bool:
    """Whether another link of that purpose was made for the user at that address since then."""
    where = {"user_id": user_id, "purpose": purpose, "created_at": {"$gt": moment}}
    return await OneTimeToken.find_one(where, {"email_key": email_key, "_id": {"$ne": but}}) is not None


async def find(token_id: ObjectId, purpose: TokenPurpose) -> OneTimeToken | None:
    return await OneTimeToken.find_one({"_id": token_id, "purpose": purpose, "expires_at": {"$gt": utc_now()}})


async def spend(token_id: ObjectId, purpose: TokenPurpose) -> OneTimeToken | None:
    """Use it up. Of several at the same time one gets it; none when it was used, or has expired."""
    where = {"_id": token_id, "purpose": purpose, "expires_at": {"$gt": utc_now()}}
    spent = await find_one_and_delete(OneTimeToken, where)
    if spent is not None:
        await _remove([spent.id])
    return spent


async def remove_all(user_id: ObjectId, purpose: TokenPurpose) -> None:
    where = {"user_id": user_id, "purpose": purpose}
    await _remove([row["_id"] async for row in OneTimeToken.get_pymongo_collection().find(where, {"_id": 1})])


async def _remove(ids: list[ObjectId]) -> None:
    where = {"_id": {"$in": ids}}
    await OneTimeToken.get_pymongo_collection().delete_many(where)
    await OutgoingMail.get_pymongo_collection().delete_many(where)
