"""How links that work once are kept and used up."""

from datetime import datetime

from bson import ObjectId

from app.core.clock import utc_now
from app.crud.base import find_one_and_delete
from app.models.enums import TokenPurpose
from app.models.one_time_token import OneTimeToken


async def add(token: OneTimeToken) -> bool:
    """Keep it. One that is there already, since its mail is sent a second time, stays as it is: False."""
    document = token.model_dump(exclude={"id"})
    result = await OneTimeToken.get_pymongo_collection().update_one(
        {"_id": token.id}, {"$setOnInsert": document}, upsert=True
    )
    return result.upserted_id is not None


async def was_made_since(moment: datetime, *, user_id: ObjectId, purpose: TokenPurpose, but: ObjectId) -> bool:
    """Whether another link of that purpose was made for the user since then."""
    where = {"user_id": user_id, "purpose": purpose, "created_at": {"$gt": moment}, "_id": {"$ne": but}}
    return await OneTimeToken.find_one(where) is not None


async def find(token_id: ObjectId, purpose: TokenPurpose) -> OneTimeToken | None:
    return await OneTimeToken.find_one({"_id": token_id, "purpose": purpose, "expires_at": {"$gt": utc_now()}})


async def spend(token_id: ObjectId, purpose: TokenPurpose) -> OneTimeToken | None:
    """Use it up. Of several at the same time one gets it; none when it was used, or has expired."""
    where = {"_id": token_id, "purpose": purpose, "expires_at": {"$gt": utc_now()}}
    return await find_one_and_delete(OneTimeToken, where)


async def remove_all(user_id: ObjectId, purpose: TokenPurpose) -> None:
    await OneTimeToken.get_pymongo_collection().delete_many({"user_id": user_id, "purpose": purpose})
