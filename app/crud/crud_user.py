"""How users are found and changed."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from app.core import live_cache
from app.core.clock import utc_now
from app.core.exceptions import (
    AppError,
    ConflictError,
    EmailTakenError,
    NotFoundError,
    PreconditionFailedError,
    UsernameTakenError,
)
from app.core.live_cache import LiveCache
from app.core.normalise import name_key
from app.core.plans import Limits, Plan, limits_of
from app.core.scopes import Role
from app.crud.base import ASCENDING, DESCENDING, Filter, Listing, Page, find_one_and_update, matching
from app.db.mongo import after_commit, find_batch
from app.models.installation import Installation
from app.models.user import User

_AFTER_ALL: Final = "\U0010ffff"


class Card(NamedTuple):
    """What is asked for of users again and again: what other participants see, and what the plan allows."""

    username: str | None
    email: str
    limits: Limits


_CARD_FIELDS: Final = {"username": 1, "email": 1, "plan": 1, "limits": 1}


_cards: LiveCache[Card] = LiveCache()


async def find(user_id: ObjectId) -> User | None:
    return await User.find_one({"_id": user_id})


async def require(user_id: ObjectId) -> User:
    user = await find(user_id)
    if user is None:
        raise NotFoundError("There is no such user.")
    return user


async def find_by_email_key(email_key: str) -> User | None:
    return await User.find_one({"email_key": email_key})


async def require_by_username_key(username_key: str) -> User:
    user = await find_by_username_key(username_key)
    if user is None:
        raise NotFoundError("There is no such user.")
    return user


async def find_by_username_key(username_key: str) -> User | None:
    return await User.find_one({"username_key": username_key})


async def named(username_keys: Collection[str]) -> dict[str, tuple[ObjectId, str]]:
    """Id and name of those whose names these are, by the key of the name."""
    where = {"username_key": {"$in": list(username_keys)}}
    fields = {"username_key": 1, "username": 1}
    rows = await find_batch("users", where, fields=fields, limit=len(username_keys)) if username_keys else []
    return {row["username_key"]: (row["_id"], row["username"]) for row in rows}


async def cards_of(user_ids: Iterable[ObjectId]) -> dict[ObjectId, Card]:
    """The cards of those that exist. What was read lately costs nothing."""
    cards: dict[ObjectId, Card] = {}
    unknown = []
    for user_id in set(user_ids):
        if (card := _cards.get(user_id)) is not None:
            cards[user_id] = card
        else:
            unknown.append(user_id)
    if unknown:
        seen = live_cache.changes_seen()
        where = {"_id": {"$in": unknown}}
        for row in await find_batch("users", where, fields=_CARD_FIELDS, limit=len(unknown)):
            limits = limits_of(Plan(row.get("plan", Plan.FREE)), row.get("limits", {}))
            cards[row["_id"]] = card = Card(row["username"], row["email"], limits)
            _cards.put(row["_id"], card, tags=[row["_id"]], seen=seen)
    return cards


async def existing(user_ids: Collection[ObjectId]) -> set[ObjectId]:
    """Which of the ids are users."""
    if not user_ids:
        return set()
    where = {"_id": {"$in": list(user_ids)}}
    return {row["_id"] async for row in User.get_pymongo_collection().find(where, {"_id": 1})}


async def oldest_active(roles: Collection[Role], *, limit: int) -> list[ObjectId]:
    """Active users of these roles, the oldest accounts."""
    where = {"role": {"$in": list(roles)}, "is_active": True}
    order = {"created_at": ASCENDING, "_id": ASCENDING}
    return [row["_id"] for row in await find_batch("users", where, fields={"_id": 1}, sort=order, limit=limit)]


async def page(
    *,
    q: str | None,
    role: Role | None,
    is_active: bool | None,
    plan: str | None,
    sort: str,
    limit: int,
    cursor: str | None,
) -> Page[User]:
    """Users in the order asked for. `q` is the beginning of an e-mail address, username or full name."""
    where: Filter = {
        name: value for name, value in {"role": role, "is_active": is_active, "plan": plan}.items() if value is not None
    }
    if q:
        # A range, not an expression: only of a range is it known that the partial index on usernames holds it.
        prefix = {"$gte": name_key(q), "$lt": name_key(q) + _AFTER_ALL}
        where["$or"] = [{"email_key": prefix}, {"username_key": prefix}, {"full_name_key": prefix}]
    by = ["email_key"] if sort == "email" else ["created_at", "_id"]
    listing = Listing("users", where, by, DESCENDING if sort.startswith("-") else ASCENDING)
    rows = await User.find(listing.after(cursor)).sort(listing.beanie_order).limit(limit + 1).to_list()
    return listing.page(rows, limit)


async def add(user: User) -> User:
    try:
        return await user.insert()
    except DuplicateKeyError as error:
        raise _taken(error) from error


async def change(
    user_id: ObjectId, changes: dict[str, Any], *, expected: Filter, versions: frozenset[int] | None = None
) -> User:
    """Change a user that is still as expected, and of one of the versions when any are named.

    `PreconditionFailedError` when the version has moved on, `ConflictError` when what the decision was made on
    has changed meanwhile, `NotFoundError` when the user is gone.
    """
    where = matching({"_id": user_id, **expected}, versions)
    update = {"$set": {**changes, "updated_at": utc_now()}, "$inc": {"version": 1}}
    try:
        changed = await find_one_and_update(User, where, update)
    except DuplicateKeyError as error:
        raise _taken(error) from error
    if changed is None:
        raise await _why_unchanged(user_id, versions)
    after_commit(lambda: live_cache.forget(user_id))
    return changed


async def add_credits(user_id: ObjectId, amount: int, *, expected: Filter) -> User:
    """Add credits, or take them when the amount is negative. `ConflictError` when there are not so many to take."""
    where = {"_id": user_id, **expected, **({"credits": {"$gte": -amount}} if amount < 0 else {})}
    update = {"$inc": {"credits": amount, "version": 1}, "$set": {"updated_at": utc_now()}}
    changed = await find_one_and_update(User, where, update)
    if changed is None:
        present = await require(user_id)
        if present.credits + amount < 0:
            raise ConflictError("The account has fewer credits than that.")
        raise await _why_unchanged(user_id, None)
    return changed


async def mark_logged_in(user: User, *, at: datetime, ip: str | None) -> User | None:
    """None when the account is no longer active with that password, or has a second factor that it had not."""
    where = {"_id": user.id, "is_active": True, "hashed_password": user.hashed_password}
    if user.mfa is None:
        where["mfa"] = None
    update = {"$set": {"last_login_at": at, "last_login_ip": ip}, "$inc": {"version": 1}}
    return await find_one_and_update(User, where, update)


async def mark_verified(user_id: ObjectId, *, email_key: str) -> User | None:
    """None when the user has another address by now, or is gone."""
    now = utc_now()
    first = {"first_verified_at": {"$ifNull": ["$first_verified_at", now]}}
    changes = {"is_verified": True, **first, "updated_at": now, "version": {"$add": ["$version", 1]}}
    return await find_one_and_update(User, {"_id": user_id, "email_key": email_key}, [{"$set": changes}])


async def spend_step(user_id: ObjectId, step: int) -> bool:
    """Use up the authenticator's code of a time step. False when that one or a later one was used before."""
    result = await User.get_pymongo_collection().update_one(
        {"_id": user_id, "mfa.last_step": {"$lt": step}}, {"$set": {"mfa.last_step": step}}
    )
    return result.modified_count == 1


async def spend_recovery_code(user_id: ObjectId, digests: list[bytes]) -> int | None:
    """Use up the recovery code with one of the digests. How many are left; none when it was none of them."""
    where = {"_id": user_id, "mfa.recovery_digests": {"$in": digests}}
    changed = await find_one_and_update(User, where, {"$pullAll": {"mfa.recovery_digests": digests}})
    return None if changed is None or changed.mfa is None else len(changed.mfa.recovery_digests)


async def renew_hash(user: User, new_hash: str) -> bool:
    """Store the same password under present settings. False when it was changed or renewed meanwhile."""
    result = await User.get_pymongo_collection().update_one(
        {"_id": user.id, "hashed_password": user.hashed_password}, {"$set": {"hashed_password": new_hash}}
    )
    return result.modified_count == 1


async def remove(user_id: ObjectId, *, expected: Filter, versions: frozenset[int] | None) -> dict[str, Any]:
    """Take a user out of the collection and give it as it was; errors as in `change`."""
    where = matching({"_id": user_id, **expected}, versions)
    removed: dict[str, Any] | None = await User.get_pymongo_collection().find_one_and_delete(where)
    if removed is None:
        raise await _why_unchanged(user_id, versions)
    after_commit(lambda: live_cache.forget(user_id))
    return removed


async def require_other_superuser(user_id: ObjectId) -> None:
    """Refuse to go on when no other active superuser is left. Call it inside the transaction that takes one away.

    Two transactions that take away two of them at once would not see each other; both write the same document
    here, so one of them is run again.
    """
    await Installation.get_pymongo_collection().update_one(
        {"_id": "superusers"}, {"$set": {"at": utc_now()}}, upsert=True
    )
    others = {"role": Role.SUPERUSER, "is_active": True, "_id": {"$ne": user_id}}
    if await User.find_one(others) is None:
        raise ConflictError("The last active superuser can't be removed, demoted or deactivated.")


async def _why_unchanged(user_id: ObjectId, versions: frozenset[int] | None) -> AppError:
    present = await require(user_id)
    if versions is not None and present.version not in versions:
        return PreconditionFailedError()
    return ConflictError("The account was changed by somebody else meanwhile. Try again.")


def _taken(error: DuplicateKeyError) -> AppError:
    key = (error.details or {}).get("keyPattern", {})
    return UsernameTakenError() if "username_key" in key else EmailTakenError()
