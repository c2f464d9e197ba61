"""A database as the version wrote it that had no migrations: its documents and indexes, field by field."""

from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId
from pymongo.database import Database

Raw = dict[str, Any]

ADA, BOB = ObjectId("68a000000000000000000001"), ObjectId("68a000000000000000000002")
TEA, LONG, EMPTY = (ObjectId(f"68b00000000000000000000{number}") for number in (1, 2, 3))
BEGUN = datetime(2026, 11, 1, 9, tzinfo=UTC)
LONG_COUNT = 4100


def fill(database: Database[Raw]) -> None:
    database["users"].insert_many([user(ADA, "ada"), user(BOB, "bob")])
    # Made, renamed, and Bob was added, left after his first message, and was added again.
    bob = participant(BOB, "member", last_read_seq=2, sent_since_read=1)
    ada = participant(ADA, "owner", last_read_seq=0, sent_since_read=3)
    tea = conversation(TEA, "Tea", [ada, bob], last_seq=7, version=12)
    both = [participant(ADA, "owner", sent_since_read=2050), participant(BOB, "member", sent_since_read=2050)]
    long = conversation(LONG, "Counting", both, last_seq=LONG_COUNT, version=1 + LONG_COUNT)
    empty = conversation(EMPTY, None, [participant(ADA, "owner")], last_seq=0, version=1)
    database["conversations"].insert_many([tea, long, empty])
    purged = {"content": "", "deleted_at": BEGUN + timedelta(days=1)}
    database["messages"].insert_many(
        [
            message(TEA, 1, ADA, "Who wants green tea?"),
            message(TEA, 2, BOB, "I do"),
            message(TEA, 3, ADA, "Then come"),
            message(TEA, 4, BOB, "On my way"),
            message(TEA, 5, None, "Boil the water first", role="assistant", model="gpt"),
            message(TEA, 6, ADA, "It boils"),
            message(TEA, 7, None, "x") | purged,
            *(message(LONG, seq, ADA if seq % 2 else BOB, f"Number {seq}") for seq in range(1, LONG_COUNT + 1)),
        ]
    )
    index(database)


def index(database: Database[Raw]) -> None:
    """Those that matter: what is in the way now, and what the way forward needs."""
    database["messages"].create_index([("conversation_id", 1), ("seq", 1)], name="conversation_order", unique=True)
    database["messages"].create_index([("user_id", 1)], name="user")
    database["messages"].create_index([("user_id", 1), ("_id", 1)], name="user_oldest")
    database["conversations"].create_index([("created_by", 1)], name="creator")
    database["one_time_tokens"].create_index([("expires_at", 1)], name="expired", expireAfterSeconds=0)
    database["api_keys"].create_index([("expires_at", 1)], name="expiry")
    database["sessions"].create_index([("user_id", 1)], name="user")
    database["audit_events"].create_index([("actor.id", 1), ("_id", -1)], name="actor_newest")
    database["audit_events"].create_index([("time", -1)], name="time")
    database["users"].create_index(
        [("username_key", 1)],
        name="username_unique",
        unique=True,
        partialFilterExpression={"username_key": {"$type": "string"}},
    )
    database["users"].create_index([("credits", 1)], name="of_the_operator")
    database["installation"].insert_one({"_id": "indexes", "fingerprint": 64 * "0", "at": BEGUN})


def user(user_id: ObjectId, name: str) -> Raw:
    email = f"{name}@example.com"
    return {
        "_id": user_id,
        "created_at": BEGUN,
        "email": email,
        "email_key": email,
        "username": name,
        "username_key": name,
        "full_name": None,
        "full_name_key": None,
        "hashed_password": "none",
        "role": "user",
        "staff_level": None,
        "is_active": True,
        "is_verified": False,
        "first_verified_at": None,
        "mfa": None,
        "pending_mfa": None,
        "plan": "free",
        "limits": {},
        "credits": 0,
        "version": 1,
        "updated_at": BEGUN,
        "password_changed_at": BEGUN,
        "last_login_at": None,
        "last_login_ip": None,
    }


def participant(user_id: ObjectId, role: str, *, last_read_seq: int = 0, sent_since_read: int = 0) -> Raw:
    return {
        "user_id": user_id,
        "role": role,
        "joined_at": BEGUN,
        "last_read_seq": last_read_seq,
        "sent_since_read": sent_since_read,
    }


def conversation(
    conversation_id: ObjectId, title: str | None, participants: list[Raw], *, last_seq: int, version: int
) -> Raw:
    return {
        "_id": conversation_id,
        "created_at": BEGUN,
        "title": title,
        "created_by": ADA,
        "participants": participants,
        "archived": False,
        "last_seq": last_seq,
        "message_count": last_seq,
        "last_activity_at": BEGUN,
        "updated_at": BEGUN,
        "version": version,
    }


def message(
    conversation_id: ObjectId,
    seq: int,
    user_id: ObjectId | None,
    content: str,
    *,
    role: str = "user",
    model: str | None = None,
) -> Raw:
    return {
        "_id": ObjectId(),
        "created_at": BEGUN + timedelta(seconds=seq),
        "conversation_id": conversation_id,
        "seq": seq,
        "user_id": user_id,
        "role": role,
        "content": content,
        "model": model,
        "edited_at": None,
        "deleted_at": None,
    }


def post(database: Database[Raw], conversation_id: ObjectId, writer_id: ObjectId, content: str) -> None:
    """As that version posts."""
    increments = {"last_seq": 1, "message_count": 1, "version": 1, "participants.$.sent_since_read": 1}
    where = {"_id": conversation_id, "participants.user_id": writer_id}
    before: Any = database["conversations"].find_one_and_update(where, {"$inc": increments})
    database["messages"].insert_one(message(conversation_id, before["last_seq"] + 1, writer_id, content))


def unread(database: Database[Raw], conversation_id: ObjectId, reader_id: ObjectId) -> int:
    """As that version counts."""
    found = database["conversations"].find_one({"_id": conversation_id}) or {}
    (entry,) = (entry for entry in found["participants"] if entry["user_id"] == reader_id)
    return int(found["last_seq"] - entry["last_read_seq"] - entry["sent_since_read"])
