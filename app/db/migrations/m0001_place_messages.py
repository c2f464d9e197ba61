"""Messages get their place among all that happens in a conversation, and participants the count of what they sent.

Not for a rolling upgrade: the version before counts what participants have sent since they read. Stop it first.

Back, it takes away only what that version would trip over. What else is stored stays, and is used again on the way
forward; then only what was written in between is filled in.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from beanie import Document
from pymongo import UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession

from app.db.migrations.steps import Position, at_once, in_batches

BATCH = 1000
_BLOCK: Final = 4096
_CONVERSATIONS: Final = 100
_FIELDS: Final = (
    *("conversation_id", "seq", "user_id", "deleted_at"),
    *("version", "block", "nth", "attachment_ids", "tokens"),
)
Raw = dict[str, Any]


class ApiKey(Document):
    class Settings:
        name = "api_keys"


class AuditEvent(Document):
    class Settings:
        name = "audit_events"


class Conversation(Document):
    class Settings:
        name = "conversations"


class Message(Document):
    class Settings:
        name = "messages"


class OneTimeToken(Document):
    class Settings:
        name = "one_time_tokens"


class Session(Document):
    class Settings:
        name = "sessions"


class User(Document):
    class Settings:
        name = "users"


# Earlier versions have made them, by these names on these fields, and none has dropped them.
_OBSOLETE: Final[Mapping[type[Document], Mapping[str, Raw]]] = {
    ApiKey: {"expiry": {"expires_at": 1}},
    AuditEvent: {
        "actor_newest": {"actor.id": 1, "_id": -1},
        "target_newest": {"target.id": 1, "_id": -1},
        "action_newest": {"action": 1, "_id": -1},
        "time": {"time": -1},
    },
    Message: {"user": {"user_id": 1}, "user_oldest": {"user_id": 1, "_id": 1}},
    OneTimeToken: {"expired": {"expires_at": 1}},  # it removes links that must be remembered
    Session: {"user": {"user_id": 1}},
}
# Of the same name and fields as today's, which can't be made beside it.
_FIRST_UNIQUE_NAMES: Final = {"username_key": {"$type": "string"}}
_NEW: Final = {
    Conversation: ("participant_archived", "archived"),
    Message: ("conversation_role_order", "words", "user_order"),
}
_IS_MISSING: Final = {"$eq": [{"$type": "$$this.sent"}, "missing"]}
_BEFORE_MARK: Final = {"$ifNull": ["$$this.sent_before_mark", 0]}
_SINCE_READ: Final = {"$ifNull": ["$$this.sent_since_read", 0]}


class Forward:
    @at_once(*_OBSOLETE, User)
    async def drop_obsolete_indexes(self, session: AsyncClientSession) -> None:
        for model, obsolete in _OBSOLETE.items():
            for index in await _indexes(model, session):
                if dict(index["key"]) == obsolete.get(index["name"]):
                    await model.get_pymongo_collection().drop_index(index["name"], session=session)
        for index in await _indexes(User, session):
            if index.get("partialFilterExpression") == _FIRST_UNIQUE_NAMES:
                await User.get_pymongo_collection().drop_index(index["name"], session=session)

    @in_batches(Conversation, Message)
    async def place_messages(self, position: Position | None) -> AsyncIterator[Position]:
        walk, batch = _Walk(position), list[UpdateOne]()
        async for write in walk.writes():
            batch.append(write)
            if len(batch) >= BATCH:
                await Message.get_pymongo_collection().bulk_write(batch, ordered=False)
                batch = []
                yield walk.position
        if batch:
            await Message.get_pymongo_collection().bulk_write(batch, ordered=False)
            yield walk.position

    @in_batches(Conversation)
    async def count_what_was_sent(self, position: Position | None) -> AsyncIterator[Position]:
        """The counter that was there is exact, and nobody's mark was moved in the version before."""
        counted = {"sent": {"$add": [_BEFORE_MARK, _SINCE_READ]}, "sent_before_mark": _BEFORE_MARK}
        entry = {"$cond": [_IS_MISSING, _without("sent_since_read", counted), "$$this"]}
        async for place in _change_entries(position, where={"sent": {"$exists": False}}, entry=entry):
            yield place


class Backward:
    @in_batches(Conversation)
    async def count_since_read(self, position: Position | None) -> AsyncIterator[Position]:
        """So that what is unread stays so. `sent_before_mark` stays, for the way forward."""
        counted = {"sent_since_read": {"$subtract": ["$$this.sent", _BEFORE_MARK]}}
        entry = {"$cond": [_IS_MISSING, "$$this", _without("sent", counted)]}
        async for place in _change_entries(position, where={"sent": {"$exists": True}}, entry=entry):
            yield place

    @at_once(*_NEW)
    async def drop_new_indexes(self, session: AsyncClientSession) -> None:
        for model, new in _NEW.items():
            for index in await _indexes(model, session):
                if index["name"] in new:
                    await model.get_pymongo_collection().drop_index(index["name"], session=session)


class _Walk:
    """Through all messages, conversation by conversation in their order."""

    def __init__(self, position: Position | None) -> None:
        begin: Raw = position or {"conversation_id": None, "seq": 0, "sent": []}
        self._conversation_id = begin["conversation_id"]
        self._seq: int = begin["seq"]
        self._sent: dict[Any, int] = {row["user_id"]: row["nth"] for row in begin["sent"]}

    @property
    def position(self) -> Position:
        """Behind the message that was given last: with it, which of its writer's each of the next ones is."""
        sent = [{"user_id": user_id, "nth": nth} for user_id, nth in self._sent.items()]
        return {"conversation_id": self._conversation_id, "seq": self._seq, "sent": sent}

    async def writes(self) -> AsyncIterator[UpdateOne]:
        """Of every message what it lacks."""
        where: Raw = {}
        if self._conversation_id is not None:
            async for write in self._writes_of(await _conversations({"_id": self._conversation_id}), after=self._seq):
                yield write
            where = {"_id": {"$gt": self._conversation_id}}
        while rows := await _conversations(where):
            async for write in self._writes_of(rows):
                yield write
            where = {"_id": {"$gt": rows[-1]["_id"]}}

    async def _writes_of(self, rows: Sequence[Raw], *, after: int = 0) -> AsyncIterator[UpdateOne]:
        conversations = {row["_id"]: row for row in rows}
        where = {"conversation_id": {"$in": list(conversations)}, "seq": {"$gt": after}}
        found = Message.get_pymongo_collection().find(where, dict.fromkeys(_FIELDS, 1))
        entries: dict[Any, Raw] = {}
        async for message in found.sort({"conversation_id": 1, "seq": 1}).batch_size(BATCH):
            conversation = conversations[message["conversation_id"]]
            if conversation["_id"] != self._conversation_id:
                self._conversation_id, self._sent = conversation["_id"], {}
                entries = {}
            entries = entries or {entry["user_id"]: entry for entry in conversation["participants"]}
            self._seq = message["seq"]
            # As if all else had happened before the first message: so no version of an event that is stored is met.
            version = self._seq + conversation["version"] - conversation["last_seq"]
            changes = _changes(message, version, self._nth(message, entries.get(message["user_id"])))
            if any(name not in message or message[name] != value for name, value in changes.items()):
                yield UpdateOne({"_id": message["_id"]}, {"$set": changes})

    def _nth(self, message: Raw, entry: Raw | None) -> int | None:
        """Which of its writer's; none where it is not asked for: of one who left, or has joined or read since."""
        if entry is None or "sent" in entry or message["seq"] <= entry["last_read_seq"]:
            return None
        nth = 1 + self._sent.get(message["user_id"], int(entry.get("sent_before_mark", 0)))
        self._sent[message["user_id"]] = nth
        return nth


def _changes(message: Raw, version: int, nth: int | None) -> Raw:
    block = message["seq"] // _BLOCK
    found = {"version": version, "block": block, "nth": nth, "attachment_ids": [], "tokens": None}
    changes = {name: value for name, value in found.items() if name not in message}
    if nth is not None:
        changes["nth"] = nth
    if message["deleted_at"] is not None:  # also by the version before, which did not know of them
        changes["attachment_ids"] = []
    return changes


async def _conversations(where: Raw) -> list[Raw]:
    found = Conversation.get_pymongo_collection().find(where, {"version": 1, "last_seq": 1, "participants": 1})
    return await found.sort("_id", 1).limit(_CONVERSATIONS).to_list()


async def _change_entries(position: Position | None, *, where: Raw, entry: Raw) -> AsyncIterator[Position]:
    """Make of each participant that is `where` the entry, in all conversations with such a one."""
    conversations = Conversation.get_pymongo_collection()
    behind: Raw = {} if position is None else {"_id": {"$gt": position["conversation_id"]}}
    while rows := await conversations.find(behind, {"_id": 1}).sort("_id", 1).limit(BATCH).to_list():
        of_batch = {"_id": {"$gte": rows[0]["_id"], "$lte": rows[-1]["_id"]}, "participants": {"$elemMatch": where}}
        participants = {"$map": {"input": "$participants", "in": entry}}
        await conversations.update_many(of_batch, [{"$set": {"participants": participants}}])
        behind = {"_id": {"$gt": rows[-1]["_id"]}}
        yield {"conversation_id": rows[-1]["_id"]}


def _without(field: str, changes: Raw) -> Raw:
    return {"$unsetField": {"field": field, "input": {"$mergeObjects": ["$$this", changes]}}}


async def _indexes(model: type[Document], session: AsyncClientSession) -> Sequence[Mapping[str, Any]]:
    return await (await model.get_pymongo_collection().list_indexes(session=session)).to_list()
