"""Counting the tries to prove who one is, each before it is looked at, so that no crowd of them gets around it."""

from datetime import timedelta
from typing import Any, Final

from pymongo.errors import DuplicateKeyError

from app.core.clock import utc_now
from app.crud.base import find_one_and_update
from app.models.login_throttle import LoginThrottle

_FIRST_LOCK: Final = timedelta(minutes=1)
_LONGEST_LOCK: Final = timedelta(hours=1)


async def take_try(throttle_id: bytes, *, attempts: int, window: timedelta) -> LoginThrottle | None:
    """Count one try in and give the count; none when the account is locked.

    The try that fills the count locks at once, and each further one for twice as long, up to an hour. Whoever
    succeeds clears the count. What is older than the window, counted from the end of the lock, is forgotten.
    """
    now = utc_now()
    is_forgotten = {"$lt": [{"$ifNull": ["$forgotten_at", now]}, now]}
    tries = {"$cond": [is_forgotten, 1, {"$add": [{"$ifNull": ["$tries", 0]}, 1]}]}
    locked_until = {"$cond": [{"$gte": ["$tries", attempts]}, {"$add": [now, _lock_ms(attempts)]}, None]}
    unlocked = {"_id": throttle_id, "$or": [{"locked_until": None}, {"locked_until": {"$lte": now}}]}
    stages: list[dict[str, Any]] = [
        {"$set": {"tries": tries, "tried_at": now, "has_failed": False}},
        {"$set": {"locked_until": locked_until}},
        {"$set": {"forgotten_at": {"$add": [{"$max": [now, "$locked_until"]}, _ms(window)]}}},
    ]
    while True:
        try:
            return await find_one_and_update(LoginThrottle, unlocked, stages, upsert=True)
        except DuplicateKeyError:  # it is there and locked, or another made it at this moment
            if (found := await find(throttle_id)) is not None and found.locked_until and found.locked_until > now:
                return None


async def find(throttle_id: bytes) -> LoginThrottle | None:
    return await LoginThrottle.find_one({"_id": throttle_id})


async def mark_failed(throttle_id: bytes) -> None:
    """The try that locked has failed: whoever waits for it need not wait longer."""
    await LoginThrottle.get_pymongo_collection().update_one({"_id": throttle_id}, {"$set": {"has_failed": True}})


async def take_notice(notice_id: bytes, *, window: timedelta) -> bool:
    """Whether the owner is to be told: of all who ask within the window, the first one is.

    Kept as a try is, in a document of its own: a success in between does not make it forgotten.
    """
    now = utc_now()
    is_fresh = {"$gt": ["$forgotten_at", now]}
    forgotten_at = {"$cond": [is_fresh, "$forgotten_at", {"$add": [now, _ms(window)]}]}
    notice = {"tries": 0, "tried_at": now, "has_failed": False, "locked_until": None, "forgotten_at": forgotten_at}
    before = await LoginThrottle.get_pymongo_collection().find_one_and_update(
        {"_id": notice_id}, [{"$set": notice}], upsert=True
    )
    return before is None or before["forgotten_at"] <= now


async def give_back(throttle_id: bytes) -> None:
    """Take one try out of the count: it was no failure, and no success either.

    With it goes the lock that it brought, not one that others have brought meanwhile by failing.
    """
    without = {
        "tries": {"$subtract": ["$tries", 1]},
        "locked_until": {"$cond": ["$has_failed", "$locked_until", None]},
    }
    await LoginThrottle.get_pymongo_collection().update_one({"_id": throttle_id}, [{"$set": without}])


async def clear(throttle_id: bytes) -> None:
    await LoginThrottle.get_pymongo_collection().delete_one({"_id": throttle_id})


def _lock_ms(attempts: int) -> Any:
    """The length of the lock after `$tries`."""
    doublings = {"$min": [{"$subtract": ["$tries", attempts]}, 20]}
    return {"$min": [{"$multiply": [_ms(_FIRST_LOCK), {"$pow": [2, doublings]}]}, _ms(_LONGEST_LOCK)]}


def _ms(span: timedelta) -> int:
    return int(span.total_seconds() * 1000)
