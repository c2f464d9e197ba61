"""How sessions are found, exchanged and ended."""

from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from app.core import live_cache
from app.core.clock import utc_now
from app.core.plans import limits_of
from app.crud.base import Listing, Page, find_one_and_delete, find_one_and_update
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


async def hold(session_id: ObjectId) -> Raw | None:
    """Let the transaction under way stand only if nothing changes the session before its end.

    Who it belongs to, as `find_live` tells it; none when it has ended.
    """
    now = utc_now()
    held: Raw | None = await Session.get_pymongo_collection().find_one_and_update(
        {"_id": session_id, "expires_at": {"$gt": now}},
        {"$set": {"last_used_at": now}},
        projection=_AUTHENTICATION_FIELDS,
    )
    return held


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


async def end_by_token(session_id: ObjectId, digest: bytes) -> Session | None:
    """End the session whose present refresh token it is, and give it as it was; none when it is none, or was over."""
    where = {"_id": session_id, "refresh_digest": digest, "expires_at": {"$gt": utc_now()}}
    ended = await find_one_and_delete(Session, where)
    after_commit(lambda: live_cache.forget(session_id))
    return ended


async def end_longest_unused(user_id: ObjectId, *, but: ObjectId, keep: int) -> int:
    """End the sessions of a user beside that one, but for so many that were used last. How many there were."""
    others = {"user_id": user_id, "_id": {"$ne": but}}
    live = Session.find({**others, "expires_at": {"$gt": utc_now()}})
    latest_to_end = await live.sort("-last_used_at", "-_id").skip(keep).limit(1).to_list()
    if not latest_to_end:
        return 0
    used_at = latest_to_end[0].last_used_at
    not_later = [{"last_used_at": {"$lt": used_at}}, {"last_used_at": used_at, "_id": {"$lte": latest_to_end[0].id}}]
    result = await Session.get_pymongo_collection().delete_many({"$and": [others, {"$or": not_later}]})
    after_commit(lambda: live_cache.forget(user_id))
    return result.deleted_count


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
        "is_verified": user.is_verified,
        "rate_limit": limits_of(user.plan, user.limits).rate,
    }


async def update_identity(user: User) -> None:
    """Repeat what has changed of a user in its sessions."""
    await Session.get_pymongo_collection().update_many({"user_id": user.id}, {"$set": identity_of(user)})
    after_commit(lambda: live_cache.forget(user.id))
