"""How credits are drawn on and given back. None of it makes the account another version: nobody edits a balance."""

from collections.abc import Mapping
from datetime import datetime

from bson import ObjectId
from pymongo import UpdateOne

from app.crud.base import ASCENDING, find_one_and_delete
from app.db.mongo import Raw, find_batch
from app.models.credit_hold import CreditHold
from app.models.deleted_user import DeletedUser
from app.models.user import User


async def draw(user_id: ObjectId, amount: int) -> bool:
    """False when the account has not so many."""
    where = {"_id": user_id, "credits": {"$gte": amount}}
    result = await User.get_pymongo_collection().update_one(where, {"$inc": {"credits": -amount}})
    return result.matched_count == 1


async def draw_from_many(costs: Mapping[ObjectId, int]) -> None:
    """Take from each what it costs, and from nobody more than there is."""
    updates = [
        UpdateOne({"_id": user_id, "credits": {"$gt": 0}}, _added("credits", -cost))
        for user_id, cost in costs.items()
        if cost
    ]
    if updates:
        await User.get_pymongo_collection().bulk_write(updates, ordered=False)


async def give(user_id: ObjectId, amount: int) -> None:
    """Add to the balance, also of an account that was deleted meanwhile. A negative amount takes, but never below 0."""
    of_user = User.get_pymongo_collection()
    result = await of_user.update_one({"_id": user_id}, _added("credits", amount))
    if result.matched_count == 0:
        await DeletedUser.get_pymongo_collection().update_one({"_id": user_id}, _added("user.credits", amount))


async def count_holds(user_id: ObjectId, *, limit: int) -> int:
    """How many holds there are of a user, up to the limit."""
    return len(await find_batch("credit_holds", {"user_id": user_id}, fields={"_id": 1}, limit=limit))


async def take_hold(hold_id: ObjectId) -> CreditHold | None:
    """Remove a hold and give it as it was; none when another has removed it."""
    return await find_one_and_delete(CreditHold, {"_id": hold_id})


async def expired_holds(at: datetime, *, limit: int) -> list[ObjectId]:
    where = {"expires_at": {"$lte": at}}
    order = {"expires_at": ASCENDING}
    return [row["_id"] for row in await find_batch("credit_holds", where, fields={"_id": 1}, sort=order, limit=limit)]


def _added(field: str, amount: int) -> list[Raw]:
    return [{"$set": {field: {"$max": [0, {"$add": [f"${field}", amount]}]}}}]
