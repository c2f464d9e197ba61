"""What has happened in a conversation, in the order of versions: its messages and its other events, as one log."""

from collections.abc import Collection
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.exceptions import NotFoundError
from app.crud.base import ASCENDING
from app.crud.crud_conversation import Place
from app.db.event_feed import Inserted
from app.db.mongo import Raw, find_batch

MESSAGE_CREATED: Final = "message.created"
_PAGE: Final = 20


class Entry(NamedTuple):
    """One thing that happened. `content` is the message that was written, or the ids that the event names.

    `seq` is that of the message; `version` is none for what passes without a trace.
    """

    conversation_id: ObjectId
    version: int | None
    seq: int | None
    type: str
    content: Raw


class LogPage(NamedTuple):
    entries: list[Entry]
    is_last: bool


def entry_of(inserted: Inserted) -> Entry:
    document = inserted.document
    if inserted.collection == "messages":
        return Entry(document["conversation_id"], document["version"], document["seq"], MESSAGE_CREATED, document)
    return Entry(document["conversation_id"], document["version"], None, document["type"], document["data"])


async def require_head(conversation_id: ObjectId, *, user_id: ObjectId | None) -> Place:
    """Where the conversation is now; `NotFoundError` when it has no such participant, where one is given.

    Without what a failover could take back: the versions that came instead would be taken for known.
    """
    where: Raw = {"_id": conversation_id, **({} if user_id is None else {"participants.user_id": user_id})}
    fields = {"last_seq": 1, "version": 1}
    rows = await find_batch("conversations", where, fields=fields, limit=1, is_lasting=True)
    if not rows:
        raise NotFoundError("There is no such conversation.")
    return Place(rows[0]["last_seq"], rows[0]["version"])


async def was_at(conversation_id: ObjectId, place: Place, *, head: Place) -> bool:
    """Whether that is a place of its past: that message was the last one when the conversation had that version."""
    if place.version >= head.version or place.seq > head.seq:
        return False
    where = {"conversation_id": conversation_id, "seq": {"$in": [place.seq, place.seq + 1]}}
    rows = await find_batch("messages", where, fields={"seq": 1, "version": 1}, limit=2)
    return all((row["seq"] <= place.seq) == (row["version"] <= place.version) for row in rows)


async def page(conversation_id: ObjectId, *, after: Place, until: int) -> LogPage:
    """Some of what happened after a place, up to a version that was reached before this is called.

    So nothing that belongs between two entries can still come.
    """
    reach = after.seq + until - after.version  # every message made a version, so there are no more than that
    of_conversation, versions = {"conversation_id": conversation_id}, {"$gt": after.version, "$lte": until}
    messages = await find_batch(
        "messages",
        of_conversation | {"seq": {"$gt": after.seq, "$lte": reach}, "version": versions},
        sort={"seq": ASCENDING},
        limit=_PAGE,
    )
    events = await find_batch(
        "conversation_events", of_conversation | {"version": versions}, sort={"version": ASCENDING}, limit=_PAGE
    )
    both = [Inserted("messages", row) for row in messages] + [Inserted("conversation_events", row) for row in events]
    entries = sorted((entry_of(row) for row in both), key=lambda entry: entry.version or 0)
    # Behind the end of a full page there may be more of its kind.
    ends = [rows[-1]["version"] for rows in (messages, events) if len(rows) == _PAGE]
    return LogPage([entry for entry in entries if (entry.version or 0) <= min(ends, default=until)], not ends)


async def messages(message_ids: Collection[ObjectId]) -> dict[ObjectId, Raw]:
    """As they are now; those that exist."""
    if not message_ids:
        return {}
    rows = await find_batch("messages", {"_id": {"$in": list(message_ids)}}, limit=len(message_ids))
    return {row["_id"]: row for row in rows}
