import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from typing import Any
from uuid import uuid4

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from app.core.clock import utc_now
from app.db import schema
from app.db.mongo import connected
from app.db.schema import ensure_indexes

Database = AsyncDatabase[dict[str, Any]]


@pytest.fixture
async def database(mongodb: MongoClient[dict[str, Any]], database_url: str) -> AsyncIterator[Database]:
    """A database in which nothing has been made yet."""
    name = f"fresh_{uuid4().hex[:8]}"
    async with AsyncMongoClient[dict[str, Any]](database_url) as client:
        yield client[name]
    mongodb.drop_database(name)


async def keys_of(database: Database, collection: str) -> set[str]:
    """Every index as its fields in order, with what it promises: `key_id unique`, `owner_id, created_at-`."""
    described = set()
    for index in (await database[collection].index_information()).values():
        fields = ", ".join(f"{name}{'-' if direction == -1 else ''}" for name, direction in index["key"])
        marks = [
            mark for mark in ("unique", "sparse", "expireAfterSeconds", "partialFilterExpression") if mark in index
        ]
        described.add(" ".join([fields, *marks]))
    return described


class TestEnsureIndexes:
    @pytest.mark.parametrize(
        ("collection", "keys"),
        [
            (
                "users",
                {
                    "email_key unique",
                    "username_key unique partialFilterExpression",
                    "full_name_key",
                    "mfa.confirmed_at partialFilterExpression",
                    "pending_mfa.created_at partialFilterExpression",
                    "created_at-, _id-",
                    "role, created_at-, _id-",
                    "plan, created_at-, _id-",
                    "is_active, created_at-, _id-",
                },
            ),
            (
                "sessions",
                {
                    "user_id, created_at-, _id-",
                    "user_id, last_used_at-, _id-",
                    "expires_at expireAfterSeconds",
                },
            ),
            (
                "items",
                {
                    "owner_id, created_at-, _id-",
                    "owner_id, is_completed, created_at-, _id-",
                    "created_at-, _id-",
                    "is_completed, created_at-, _id-",
                },
            ),
            ("usage_counters", {"user_id, day unique", "expires_at expireAfterSeconds"}),
            (
                "uploads",
                {
                    "created_at-, _id-",
                    "status, created_at-, _id-",
                    "owner_id, created_at-, _id-",
                    "owner_id, status, created_at-, _id-",
                    "conversation_id, created_at-, _id-",
                    "stem unique",
                    "due_at sparse",
                },
            ),
            (
                "message_logs",
                {
                    "timestamp-, _id-",
                    "user_id, timestamp-, _id-",
                    "username_key, timestamp-, _id-",
                    "model, timestamp-, _id-",
                },
            ),
            ("credit_holds", {"user_id, _id", "expires_at"}),
            ("one_time_tokens", {"user_id, purpose, created_at-", "created_at expireAfterSeconds"}),
            (
                "api_keys",
                {
                    "key_id unique",
                    "owner_id, created_at-, _id-",
                    "created_at-, _id-",
                    "is_active, expires_at, _id",
                    "created_by",
                },
            ),
            ("api_key_quotas", {"key_id, window unique", "expires_at expireAfterSeconds"}),
            ("api_key_usage", {"key_id, hour unique", "hour expireAfterSeconds"}),
            ("api_key_usage_batches", {"created_at expireAfterSeconds"}),
            (
                "conversations",
                {
                    "participants.user_id, last_activity_at-, _id-",
                    "last_activity_at-, _id-",
                    "participants.user_id, archived, last_activity_at-, _id- partialFilterExpression",
                    "archived, last_activity_at-, _id- partialFilterExpression",
                    "participants.user_id, _id",
                    "created_by",
                },
            ),
            (
                "conversation_events",
                {
                    "conversation_id, version",
                    "expires_at expireAfterSeconds",
                    "data.user_id sparse",
                    "data.owner_id sparse",
                },
            ),
            (
                "messages",
                {
                    "conversation_id, seq unique",
                    "conversation_id, role, seq",
                    "conversation_id, block, _fts, _ftsx",
                    "user_id, conversation_id, seq",
                },
            ),
            (
                "audit_events",
                {
                    "actor.id, time-, _id-",
                    "target.id, time-, _id-",
                    "action, time-, _id-",
                    "ip, time-, _id-",
                    "time-, _id-",
                    "outcome, time-, _id- partialFilterExpression",
                    "seq unique sparse",
                    "seq, _id partialFilterExpression",
                },
            ),
            (
                "deleted_users",
                {
                    "purge_at",
                    "email_key",
                    "deleted_at-, _id-",
                    "deleted_by",
                    "user.mfa.confirmed_at partialFilterExpression",
                    "user.pending_mfa.created_at partialFilterExpression",
                },
            ),
        ],
    )
    async def test_makes_what_queries_rely_on(self, database: Database, collection: str, keys: set[str]) -> None:
        await ensure_indexes(database)

        assert await keys_of(database, collection) == keys | {"_id"}

    async def test_removes_sessions_the_moment_they_expire_and_no_archived_account(self, database: Database) -> None:
        await ensure_indexes(database)

        sessions = await database["sessions"].index_information()
        archive = await database["deleted_users"].index_information()
        assert [index["expireAfterSeconds"] for index in sessions.values() if "expireAfterSeconds" in index] == [0]
        assert not [index for index in archive.values() if "expireAfterSeconds" in index]

    async def test_finds_nothing_to_do_the_second_time(self, database: Database) -> None:
        assert await ensure_indexes(database)

        assert not await ensure_indexes(database)

    async def test_is_done_by_one_of_ten_at_once(self, database: Database) -> None:
        outcomes = await asyncio.gather(*(ensure_indexes(database) for _ in range(10)))

        assert sorted(outcomes) == [False] * 9 + [True]
        assert "email_key unique" in await keys_of(database, "users")

    async def test_lets_nobody_by_before_it_is_done(self, database: Database) -> None:
        async def look() -> set[str]:
            await ensure_indexes(database)
            return await keys_of(database, "messages") | await keys_of(database, "users")

        seen = await asyncio.gather(*(look() for _ in range(5)))

        assert all({"conversation_id, seq unique", "email_key unique"} <= keys for keys in seen)

    async def test_takes_over_from_a_holder_that_died(self, database: Database) -> None:
        dead = {"_id": "indexes", "holder": ObjectId(), "until": utc_now() - timedelta(seconds=1)}
        await database["installation"].insert_one(dead)

        assert await ensure_indexes(database)

        assert "email_key unique" in await keys_of(database, "users")

    async def test_is_taken_over_by_one_alone(self, database: Database) -> None:
        dead = {"_id": "indexes", "holder": ObjectId(), "until": utc_now() - timedelta(seconds=1)}
        await database["installation"].insert_one(dead)

        outcomes = await asyncio.gather(*(ensure_indexes(database) for _ in range(5)))

        assert sum(outcomes) == 1

    async def test_waits_for_a_holder_that_lives(self, database: Database) -> None:
        alive = {"_id": "indexes", "holder": ObjectId(), "until": utc_now() + timedelta(seconds=0.6)}
        await database["installation"].insert_one(alive)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ensure_indexes(database), 0.3)

        assert await database.list_collection_names() == ["installation"]
        assert await asyncio.wait_for(ensure_indexes(database), 5)

    async def test_holds_nobody_up_when_it_fails_on_a_host_whose_clock_is_ahead(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held_until = []

        async def fail(database: Database) -> None:
            held_until.append((await database["installation"].find_one() or {})["until"].replace(tzinfo=UTC))
            raise OperationFailure("no room")

        monkeypatch.setattr(schema, "make_indexes", fail)
        monkeypatch.setattr(schema, "utc_now", lambda: utc_now() + timedelta(hours=1))
        with pytest.raises(OperationFailure, match="no room"):
            await ensure_indexes(database)
        monkeypatch.undo()

        assert held_until[0] < utc_now() + timedelta(minutes=1)
        assert await asyncio.wait_for(ensure_indexes(database), 5)

    async def test_makes_them_again_when_the_declared_ones_have_changed(self, database: Database) -> None:
        await ensure_indexes(database)
        await database["users"].drop_index("full_name")
        await database["installation"].update_one({"_id": "indexes"}, {"$set": {"fingerprint": "of an older version"}})

        assert await ensure_indexes(database)

        assert "full_name_key" in await keys_of(database, "users")

    async def test_is_part_of_connecting(self, database: Database, database_url: str) -> None:
        shared = database_url.replace("/test_", f"/{database.name}#test_").partition("#")[0]

        async with connected(f"{shared}?{database_url.partition('?')[2]}") as connection:
            assert connection.name == database.name

        assert not await ensure_indexes(database)
