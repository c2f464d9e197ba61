"""How audit events are found and sealed. Nothing here changes what an event says."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from bson import ObjectId
from pydantic import ValidationError
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from app.core.exceptions import ConflictError
from app.core.hash_chain import Link
from app.crud.base import ASCENDING, DESCENDING, Filter, Listing, Page
from app.db.mongo import Raw, find_batch
from app.models.audit_chain import CHAIN, AuditChain
from app.models.audit_event import AuditEvent
from app.models.enums import AuditAction, AuditOutcome

EVENTS: Final = "audit_events"
_BATCH: Final = 500
_DUPLICATE: Final = 11000
# What orders events by their times leaves out those without one, which only a stranger can have put there: a page could
# not go on behind them.
_FIRST_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
_LAST_TIME: Final = datetime(9999, 12, 31, tzinfo=UTC)
_NO_LIST: Final = {"$not": {"$type": "array"}}
_OF_KEYS: Final = [
    AuditAction.SERVICE_BOOTSTRAPPED,
    *(action for action in AuditAction if action.partition(":")[0] == "api_key"),
]

Batches = AsyncIterator[list[Raw]]


def matching(
    *,
    actor: ObjectId | None = None,
    action: AuditAction | None = None,
    target: ObjectId | None = None,
    outcome: AuditOutcome | None = None,
    ip: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Filter:
    """What is named, all of it; `since` included, `until` not."""
    named = {"actor.id": actor, "action": action, "target.id": target, "outcome": outcome, "ip": ip}
    where: Filter = {field: value for field, value in named.items() if value is not None}
    bounds = {"$gte": since, "$lt": until}
    if time := {bound: at for bound, at in bounds.items() if at is not None}:
        where["time"] = time
    return where


def about_keys(*, api_key_id: ObjectId | None = None, action: AuditAction | None = None) -> Filter:
    """Events about API keys, or about one of them."""
    where: Filter = {"target.kind": "api_key"}
    if api_key_id is not None:
        return where | {"target.id": api_key_id} | ({"action": action} if action else {})
    return where | {"action": {"$in": [known for known in _OF_KEYS if action in {None, known}]}}


async def add(events: Sequence[AuditEvent]) -> None:
    """`ConflictError` when one of them was added before: their ids are their makers'."""
    try:
        await AuditEvent.insert_many(events)
    except BulkWriteError as error:
        if all(fault["code"] == _DUPLICATE for fault in error.details["writeErrors"]):
            raise ConflictError from error
        raise


async def page(where: Filter, *, limit: int, cursor: str | None) -> Page[Raw]:
    """Newest first. By time, since the ids of two processes are in no order within a second."""
    listing = Listing(EVENTS, _with_time(where), ["time", "_id"], DESCENDING)
    rows = await find_batch(EVENTS, listing.after(cursor), sort=listing.order, limit=limit + 1)
    return listing.page(rows, limit)


def _with_time(where: Filter) -> Filter:
    return {**where, "time": {"$gte": _FIRST_TIME, "$lt": _LAST_TIME, **where.get("time", {}), **_NO_LIST}}


async def unsealed(*, limit: int) -> list[Raw]:
    return await find_batch(EVENTS, {"seq": None}, sort={"_id": ASCENDING}, limit=limit)


async def seal(events: Sequence[tuple[Any, Raw]]) -> bool:
    """Give events, each with its stored id, their places. False when one is gone, or it or the place is taken."""
    updates = [
        UpdateOne(
            {"_id": event_id, "seq": None},
            {"$set": {"seq": event["seq"], "prev_hash": event["prev_hash"], "hash": event["hash"]}},
        )
        for event_id, event in events
    ]
    try:
        result = await AuditEvent.get_pymongo_collection().bulk_write(updates, ordered=False)
    except BulkWriteError as error:
        if any(fault["code"] == _DUPLICATE for fault in error.details["writeErrors"]):
            return False
        raise
    return result.modified_count == len(updates)


async def from_seq(seq: float, *, limit: int, fields: Raw | None = None) -> list[Raw]:
    """Sealed events in the order of the chain, from that place on."""
    return await find_batch(EVENTS, {"seq": {"$gte": seq}}, fields=fields, sort={"seq": ASCENDING}, limit=limit)


async def find_up_to(seq: int) -> Raw | None:
    """The first event with a place up to that one."""
    found = await find_batch(EVENTS, {"seq": {"$lte": seq}}, sort={"seq": ASCENDING}, limit=1)
    return found[0] if found else None


async def find_place(event_id: ObjectId) -> Raw | None:
    found = await find_batch(EVENTS, {"_id": event_id}, fields={"seq": 1}, limit=1)
    return found[0] if found else None


async def at_ends() -> list[Raw]:
    """The first and the last of all places: whatever is no number stands before or behind all numbers."""
    where = {"seq": {"$exists": True, "$ne": None}}
    found = [await find_batch(EVENTS, where, sort={"seq": order}, limit=1) for order in (ASCENDING, DESCENDING)]
    return [row for rows in found for row in rows]


async def has_pruning_event(begins_after: Link) -> bool:
    """Whether a pruning that ended there was recorded."""
    where = {"action": AuditAction.AUDIT_PRUNED, "details.seq": begins_after.seq, "details.last": begins_after.hash}
    return bool(await find_batch(EVENTS, where, fields={"_id": 1}, sort={"time": DESCENDING}, limit=1))


async def sealed_batches(where: Filter, *, after: int, up_to: int) -> Batches:
    """The sealed events that match, oldest first: all of them in the order of the chain, some in that of time."""
    place = {"seq": {"$gt": after, "$lte": up_to, **_NO_LIST}}
    chosen = {**_with_time(where), **place} if where else place
    listing = Listing(EVENTS, chosen, ["time", "_id"] if where else ["seq"], ASCENDING)
    cursor: str | None = None
    while True:
        rows = await find_batch(EVENTS, listing.after(cursor), sort=listing.order, limit=_BATCH + 1)
        rows, cursor = listing.page(rows, _BATCH)
        yield rows
        if cursor is None:
            return


async def remove(first: int, last: int) -> int:
    """Remove a stretch of the chain. How many there were."""
    return (await AuditEvent.get_pymongo_collection().delete_many({"seq": {"$gte": first, "$lte": last}})).deleted_count


async def find_head() -> AuditChain | None:
    """None when there is none, or none that makes sense."""
    try:
        return await AuditChain.get(CHAIN)
    except ValidationError:
        return None


async def ensure_head(beginning: Link) -> None:
    """Note where the chain begins, unless it has begun."""
    fresh = {"seq": beginning.seq, "hash": beginning.hash, "begins_after": beginning._asdict()}
    await AuditChain.get_pymongo_collection().update_one({"_id": CHAIN}, {"$setOnInsert": fresh}, upsert=True)


async def move_head(old: Link, new: Link) -> bool:
    """False when the chain does not end there any more."""
    where = {"_id": CHAIN, "seq": old.seq, "hash": old.hash}
    result = await AuditChain.get_pymongo_collection().update_one(where, {"$set": new._asdict()})
    return result.modified_count == 1


async def move_beginning(old: Link, new: Link) -> bool:
    """False when the chain does not begin there any more."""
    where = {"_id": CHAIN, "begins_after.seq": old.seq, "begins_after.hash": old.hash}
    result = await AuditChain.get_pymongo_collection().update_one(where, {"$set": {"begins_after": new._asdict()}})
    return result.modified_count == 1
