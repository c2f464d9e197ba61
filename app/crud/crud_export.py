"""All that is held about a user, kind by kind, in batches by key range: no cursor stays open on the server meanwhile.

Each order is one that nothing changes while it is walked, so that no row is missed or repeated.
"""

from collections.abc import AsyncIterator
from typing import Final

from bson import ObjectId

from app.crud.base import ASCENDING, DESCENDING, Listing
from app.db.mongo import Raw, find_batch

BATCH: Final = 100
_BY_CONVERSATION: Final = {"conversation_id": ASCENDING, "seq": ASCENDING}

Batches = AsyncIterator[list[Raw]]


def sessions(user_id: ObjectId) -> Batches:
    return _walk(Listing("sessions", {"user_id": user_id}, ["created_at", "_id"], DESCENDING))


def api_keys(owner_id: ObjectId) -> Batches:
    return _walk(Listing("api_keys", {"owner_id": owner_id}, ["created_at", "_id"], DESCENDING))


def items(owner_id: ObjectId) -> Batches:
    return _walk(Listing("items", {"owner_id": owner_id}, ["created_at", "_id"], ASCENDING))


def uploads(owner_id: ObjectId) -> Batches:
    return _walk(Listing("uploads", {"owner_id": owner_id}, ["created_at", "_id"], ASCENDING))


def conversations(user_id: ObjectId) -> Batches:
    """Of the participants only the user itself is read, and how many there are."""
    own = {"$filter": {"input": "$participants", "cond": {"$eq": ["$$this.user_id", user_id]}}}
    fields: Raw = dict.fromkeys(
        ["title", "created_by", "archived", "message_count", "created_at", "updated_at", "last_activity_at"], 1
    )
    fields |= {"participants": own, "participant_count": {"$size": "$participants"}}
    return _walk(Listing("conversations", {"participants.user_id": user_id}, ["_id"], ASCENDING), fields)


async def messages(user_id: ObjectId) -> Batches:
    """Those it wrote, wherever that was: to the end of one conversation, then on, each step one range of an index."""
    where: Raw = {}
    while True:
        found = await find_batch("messages", {"user_id": user_id} | where, sort=_BY_CONVERSATION, limit=BATCH + 1)
        rows = found[:BATCH]
        yield rows
        if len(found) > BATCH:
            where = {"conversation_id": rows[-1]["conversation_id"], "seq": {"$gt": rows[-1]["seq"]}}
        elif "seq" in where:
            where = {"conversation_id": {"$gt": where["conversation_id"]}}
        else:
            return


def usage(user_id: ObjectId) -> Batches:
    return _walk(Listing("usage_counters", {"user_id": user_id}, ["day"], ASCENDING))


def message_logs(user_id: ObjectId) -> Batches:
    return _walk(Listing("message_logs", {"user_id": user_id}, ["timestamp", "_id"], ASCENDING))


def audit_events(user_id: ObjectId) -> Batches:
    """What it did, and what was done to it: two ranges of two indexes, merged in order."""
    concerned: Raw = {"$or": [{"actor.id": user_id}, {"target.id": user_id}]}
    return _walk(Listing("audit_events", concerned, ["time", "_id"], ASCENDING))


async def _walk(listing: Listing, fields: Raw | None = None) -> Batches:
    cursor: str | None = None
    while True:
        rows = await find_batch(
            listing.collection, listing.after(cursor), fields=fields, sort=listing.order, limit=BATCH + 1
        )
        rows, cursor = listing.page(rows, BATCH)
        yield rows
        if cursor is None:
            return
