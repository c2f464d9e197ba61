"""How sessions are found, exchanged and ended."""

from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from app.core import live_cache
from app.core.clock import utc_now
from app.core.plans import limits_of
from app.crud.base import Listing, Page, find_one_and_update
from app.db.mongo import Raw, after_commit, find_batch
from app.models.session import Session
from app.models.user import User

_AUTHENTICATION_FIELDS = {"username": 1, "role": 1, "staff_level": 1, "has_mfa": 1, "rate_limit": 1}


async def find_live(session_id: ObjectId, *, user_id: ObjectId) -> Raw | None:
    """Who the session belongs to, as long as it lives."""
    where = {"_id": session_id, "user_id": user_id, "expires_at": {"$gt": utc_now()}}
    rows = await find_batch("sessions", where, fields=_AUTHENTICATION_FIELDS, limit=1)
    return rows[0] if rows else None


async def find(session_id: ObjectId) -> Session | None:
    return await Session.find_one({"_id": session_id, "expires_at": {"$gt": utc_now()}})


async def mark_rotated(
    session_id: ObjectId, *, spent: bytes, successor: bytes, at: datetime, life: timedelta, longest: timedelta
) -> Session | None:
    """Exchange the refresh token once. None when it is not the present one, or the session is over.

    The session lives on from now, but no longer than `longest` from its beginning.
    """
    end = {"$add": ["$created_at", longest // timedelta(milliseconds=1)]}
    changes = {
        "refresh_digest": successor,
        "rotated_at": at,
        "last_used_at": at,
        "expires_at": {"$min": [at + life, end]},
        "generation": {"$add": ["$generation", 1]},
    }
    where = {
        "_id": session_id,
        "refresh_digest": spent,
        "expires_at": {"$gt": at},
        "created_at": {"$gt": at - longest},
    }
    return await find_one_and_update(Session, where, [{"$set": changes}])


async def page(user_id: ObjectId, *, limit: int, cursor: str | None) -> Page[Session]:
    """The sessions of a user that live, newest first."""
    listing = Listing("sessions", {"user_id": user_id}, ["created_at", "_id"])
    where = {**listing.after(cursor), "expires_at": {"$gt": utc_now()}}
    rows = await Session.find(where).sort(listing.beanie_order).limit(limit + 1).to_list()
    return listing.page(rows, limit)


async def mark_second_factor(session_id: ObjectId) -> None:
    """A second factor was shown in this session."""
    await Session.get_pymongo_collection().update_one({"_id": session_id}, {"$set": {"has_mfa": True}})
    after_commit(lambda: live_cache.forget(session_id))


async def unmark_second_factor(user_id: ObjectId) -> None:
    """The user has none any more."""
    await Session.get_pymongo_collection().update_many({"user_id": user_id}, {"$set": {"has_mfa": False}})
    after_commit(lambda: live_cache.forget(user_id))


async def end(session_id: ObjectId, *, user_id: ObjectId) -> bool:
    """False when it was over before, or is not the user's."""
    result = await Session.get_pymongo_collection().delete_one({"_id": session_id, "user_id": user_id})
    after_commit(lambda: live_cache.forget(session_id))
    return result.deleted_count == 1


async def end_all(user_id: ObjectId, *, but: ObjectId | None = None) -> int:
    """End the sessions of a user, all or all but one. How many there were."""
    where: dict[str, Any] = {"user_id": user_id, **({"_id": {"$ne": but}} if but else {})}
    result = await Session.get_pymongo_collection().delete_many(where)
    after_commit(lambda: live_cache.forget(user_id))
    return result.deleted_count


def identity_of(user: User) -> Raw:
    """What a session repeats of its user."""
    return {
        "username": user.username,
        "role": user.role,
        "staff_level": user.staff_level,
        "rate_limit": limits_of(user.plan, user.limits).rate,
    }


async def update_identity(user: User) -> None:
    """Repeat what has changed of a user in its sessions."""
    await Session.get_pymongo_collection().update_many({"user_id": user.id}, {"$set": identity_of(user)})
    after_commit(lambda: live_cache.forget(user.id))
