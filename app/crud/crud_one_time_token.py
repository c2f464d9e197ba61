"""How links that work once are found and used up.

A link and the mail that carries it have one id. Once a link is over, its mail is not to be sent any more.
"""

from datetime import datetime

from bson import ObjectId

from app.core.clock import utc_now
from app.crud.base import Filter, find_one_and_update
from app.models.enums import TokenPurpose
from app.models.one_time_token import OneTimeToken
from app.models.outgoing_mail import OutgoingMail
from app.models.user import User


async def find_of_mail(mail_id: ObjectId) -> OneTimeToken | None:
    """The link that was made for the mail, be it over."""
    return await OneTimeToken.find_one({"_id": mail_id})


async def count_since(moment: datetime, *, user: User, purpose: TokenPurpose) -> int:
    """How many links of that purpose were made for the user at its address since then.

    Counting writes them, so that of two who count before they make one, one is run again and counts the other's.
    """
    result = await OneTimeToken.get_pymongo_collection().update_many(
        _made_since(moment, user, purpose), {"$inc": {"counted": 1}}
    )
    return result.matched_count


async def was_made_since(moment: datetime, *, user: User, purpose: TokenPurpose) -> bool:
    """Whether a link of that purpose was made for the user at its address since then, and may be good still."""
    return await OneTimeToken.find_one({**_made_since(moment, user, purpose), "ended_at": None}) is not None


async def find(token_id: ObjectId, purpose: TokenPurpose) -> OneTimeToken | None:
    """None when it was used or made void, or has expired."""
    return await OneTimeToken.find_one(_usable(token_id, purpose))


async def spend(token_id: ObjectId, purpose: TokenPurpose) -> OneTimeToken | None:
    """Use it up. Of several at the same time one gets it; none when it was used or made void, or has expired."""
    spent = await find_one_and_update(OneTimeToken, _usable(token_id, purpose), {"$set": {"ended_at": utc_now()}})
    if spent is not None:
        await OutgoingMail.get_pymongo_collection().delete_one({"_id": spent.id})
    return spent


async def void_all(user_id: ObjectId, purpose: TokenPurpose) -> None:
    """Let no link of that purpose that the user was mailed be good any more."""
    tokens = OneTimeToken.get_pymongo_collection()
    where = {"user_id": user_id, "purpose": purpose, "ended_at": None}
    ids = [row["_id"] async for row in tokens.find(where, {"_id": 1})]
    await tokens.update_many({"_id": {"$in": ids}}, {"$set": {"ended_at": utc_now()}})
    await OutgoingMail.get_pymongo_collection().delete_many({"_id": {"$in": ids}})


def _made_since(moment: datetime, user: User, purpose: TokenPurpose) -> Filter:
    return {"user_id": user.id, "purpose": purpose, "created_at": {"$gt": moment}, "email_key": user.email_key}


def _usable(token_id: ObjectId, purpose: TokenPurpose) -> Filter:
    return {"_id": token_id, "purpose": purpose, "ended_at": None, "expires_at": {"$gt": utc_now()}}
