"""A database of the version before is brought up to date, used, and brought back."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient
from pymongo import AsyncMongoClient
from pymongo.database import Database

from app.db import migrator
from app.db.lease import Lease, LeaseLostError
from app.db.migrator import Schema, SchemaError, ensure_schema, migrate
from app.models.user import User
from tests import old_database
from tests.conftest import SECRET, Serve
from tests.factories import SignedInUser, StoredUser, sign_in
from tests.fresh_database import database, url
from tests.measuring import process_environment
from tests.old_database import ADA, BOB, EMPTY, LONG, TEA

__all__ = ["database", "url"]  # fixtures
Raw = dict[str, Any]
CONVERSATIONS = "/api/v1/conversations"
NAME = "0001_place_messages"


class Person:
    """One who uses the API."""

    def __init__(self, client: AsyncClient, user: SignedInUser) -> None:
        self.client, self.headers = client, user.headers

    async def get(self, path: str, **query: Any) -> Any:
        response = await self.client.get(f"{CONVERSATIONS}{path}", headers=self.headers, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    async def said(self, conversation_id: ObjectId, **query: Any) -> list[int]:
        """The places of the messages of all pages."""
        found, path = [], f"{CONVERSATIONS}/{conversation_id}/messages"
        response = await self.client.get(path, headers=self.headers, params={"order": "asc", **query})
        while True:
            found += [row["seq"] for row in response.json()]
            if "next" not in response.links:
                return found
            response = await self.client.get(response.links["next"]["url"], headers=self.headers)

    async def unread(self) -> dict[str | None, int]:
        return {row["title"]: row["unread_count"] for row in await self.get("")}

    async def say(self, content: str) -> str:
        response = await self.client.post(
            f"{CONVERSATIONS}/{TEA}/messages", json={"content": content}, headers=self.headers
        )
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    async def read_until(self, message_id: str) -> int:
        path = f"{CONVERSATIONS}/{TEA}/read"
        response = await self.client.post(path, json={"message_id": message_id}, headers=self.headers)
        return int(response.json()["unread_count"])


async def people(client: AsyncClient) -> tuple[Person, Person]:
    signed_in = []
    for user_id in (ADA, BOB):
        document = await User.get(user_id)
        assert document is not None
        signed_in.append(Person(client, await sign_in(StoredUser(document, ""))))
    return signed_in[0], signed_in[1]


def places(database: Database[Raw], conversation_id: ObjectId) -> list[tuple[int, int | None]]:
    """Of each message its version, and which of its writer's it is."""
    rows = database["messages"].find({"conversation_id": conversation_id}).sort("seq", 1)
    return [(row["version"], row["nth"]) for row in rows]


def entries(database: Database[Raw]) -> list[Raw]:
    """The participants of the short conversation, but for what never changes."""
    found = database["conversations"].find_one({"_id": TEA}) or {}
    same = {"user_id", "role", "joined_at"}
    return [{name: value for name, value in entry.items() if name not in same} for entry in found["participants"]]


def indexes(database: Database[Raw], collection: str) -> set[str]:
    return set(database[collection].index_information()) - {"_id_"}


async def back(url: str) -> list[str]:
    async with AsyncMongoClient[Raw](url, tz_aware=True) as client:
        return await migrate(client.get_default_database(), 0)


class TestUpgrade:
    async def test_leaves_nothing_of_what_was_written_before_behind(
        self, serve: Serve, url: str, database: Database[Raw]
    ) -> None:
        old_database.fill(database)

        async with serve(database_url=url) as client:
            ada, bob = await people(client)
            await self.find_everything(ada, bob)
            assert places(database, TEA) == [(6, 1), (7, None), (8, 2), (9, 1), (10, None), (11, 3), (12, None)]
            self.look_at_the_long_one(database)
            self.look_at_the_indexes(database)
            ids = [row["_id"] for row in database["messages"].find({"conversation_id": TEA}).sort("seq", 1)]
            await self.go_on(ada, bob, ids)

        after = database["messages"].find_one({"conversation_id": TEA, "seq": 8}) or {}
        assert (after["version"], after["nth"], after["tokens"]) == (14, 4, None)  # after a mark
        rows = list(database["messages"].find().sort("_id", 1))
        assert await back(url) == [NAME]
        self.look_at_what_is_as_before(database)
        old_database.post(database, TEA, ADA, "Old tea")
        assert [old_database.unread(database, TEA, reader) for reader in (ADA, BOB)] == [1, 1]

        async with serve(database_url=url) as client:
            ada, bob = await people(client)
            assert (await ada.unread())["Tea"] == 1
            assert (await bob.unread())["Tea"] == 1
            assert await bob.said(TEA, q="old") == [9]
        assert entries(database)[0] == {"last_read_seq": 5, "sent": 5, "sent_before_mark": 2}
        ninth = database["messages"].find_one({"conversation_id": TEA, "seq": 9}) or {}
        # Two marks were moved behind the eighth.
        assert (ninth["version"], ninth["nth"], ninth["block"], ninth["attachment_ids"]) == (17, 5, 0, [])
        assert [row for row in database["messages"].find().sort("_id", 1) if row["_id"] != ninth["_id"]] == rows
        await self.change_nothing_without_a_mark(url, database)

    async def change_nothing_without_a_mark(self, url: str, database: Database[Raw]) -> None:
        """There were versions that wrote the new form and knew no migrations yet."""
        database["installation"].delete_one({"_id": "schema"})
        before = [list(database[name].find().sort("_id", 1)) for name in ("conversations", "messages")]
        async with AsyncMongoClient[Raw](url, tz_aware=True) as client:
            assert await migrate(client.get_default_database(), 1) == [NAME]
        assert [list(database[name].find().sort("_id", 1)) for name in ("conversations", "messages")] == before

    async def find_everything(self, ada: Person, bob: Person) -> None:
        assert await ada.unread() == {"Tea": 4, "Counting": 2050, None: 0}
        assert await bob.unread() == {"Tea": 4, "Counting": 2050}
        assert await ada.said(TEA, limit=3) == [1, 2, 3, 4, 5, 6, 7]
        assert await ada.said(TEA, q="tea") == [1]
        assert await ada.said(LONG, q="number 4099") == [4099]
        latest = await ada.get(f"/{LONG}/messages", role="user", order="desc", limit=3)
        assert [row["seq"] for row in latest] == [4100, 4099, 4098]
        shown = (await ada.get(f"/{TEA}/messages", order="asc"))[4]
        names = ("content", "role", "model", "attachment_ids")
        assert [shown[name] for name in names] == ["Boil the water first", "assistant", "gpt", []]

    async def go_on(self, ada: Person, bob: Person, ids: list[ObjectId]) -> None:
        """Marks between old messages count what is behind them."""
        assert await bob.read_until(str(ids[5])) == 1
        new = await ada.say("More tea?")
        assert (await bob.unread())["Tea"] == 2
        assert await bob.read_until(new) == 0
        assert await ada.read_until(str(ids[4])) == 1

    def look_at_the_long_one(self, database: Database[Raw]) -> None:
        assert places(database, LONG) == [(1 + seq, (seq + 1) // 2) for seq in range(1, 4101)]
        where = {"conversation_id": LONG, "seq": {"$in": [4095, 4096]}}
        assert [row["block"] for row in database["messages"].find(where).sort("seq", 1)] == [0, 1]

    def look_at_the_indexes(self, database: Database[Raw]) -> None:
        assert indexes(database, "messages") == {"conversation_order", "conversation_role_order", "words", "user_order"}
        assert indexes(database, "one_time_tokens") == {"user_purpose_newest", "remembered"}
        assert "expiry" not in indexes(database, "api_keys")
        assert not {"actor_newest", "time"} & indexes(database, "audit_events")
        assert "user" not in indexes(database, "sessions")
        assert "of_the_operator" in indexes(database, "users")

    def look_at_what_is_as_before(self, database: Database[Raw]) -> None:
        assert entries(database) == [
            {"last_read_seq": 5, "sent_since_read": 2, "sent_before_mark": 2},
            {"last_read_seq": 8, "sent_since_read": 0, "sent_before_mark": 1},
        ]
        assert [old_database.unread(database, TEA, reader) for reader in (ADA, BOB)] == [1, 0]
        assert old_database.unread(database, EMPTY, ADA) == 0
        assert indexes(database, "messages") == {"conversation_order"}  # its own it makes at its start
        assert "archived" not in indexes(database, "conversations")


class TestStart:
    async def test_on_an_empty_database_runs_no_migration(self, url: str, database: Database[Raw]) -> None:
        async with AsyncMongoClient[Raw](url, tz_aware=True) as client:
            await ensure_schema(client.get_default_database(), migrates=False)
            await ensure_schema(client.get_default_database(), migrates=False)

        marked = database["installation"].find_one() or {}
        assert [row["name"] for row in marked["applied"]] == [NAME]
        assert marked.keys() == {"_id", "applied"}

    async def test_on_an_older_schema_is_refused_when_it_must_not_migrate(
        self, serve: Serve, url: str, database: Database[Raw]
    ) -> None:
        database["messages"].insert_one(old_database.message(TEA, 1, ADA, "Tea"))
        before = list(database["messages"].find())

        with pytest.raises(SchemaError, match=r"scripts/migrate\.py up"):
            async with serve(database_url=url, migrate_on_start=False):
                pass

        assert list(database["messages"].find()) == before
        assert database.list_collection_names() == ["messages"]

    async def test_that_must_not_migrate_goes_well_beside_another_on_an_empty_database(
        self, url: str, database: Database[Raw], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other is faster: when this one looks what there is, there is something."""
        is_fresh = migrator._is_fresh

        async def is_fresh_no_more(ours: migrator.Database, schema: Schema) -> bool:
            monkeypatch.undo()
            await ensure_schema(ours, migrates=False)
            database["users"].insert_one({})
            return await is_fresh(ours, schema)

        monkeypatch.setattr(migrator, "_is_fresh", is_fresh_no_more)
        async with AsyncMongoClient[Raw](url, tz_aware=True) as client:
            await ensure_schema(client.get_default_database(), migrates=False)

        assert database.list_collection_names(filter={"name": "messages"}) == []

    @pytest.mark.parametrize("state", ["applied", "running"])
    async def test_on_a_newer_schema_is_refused(
        self, serve: Serve, url: str, database: Database[Raw], capsys: pytest.CaptureFixture[str], state: str
    ) -> None:
        applied, newer = [{"name": NAME}], {"name": "0002_pour_milk", "direction": "FORWARD"}
        marks = {"applied": [*applied, newer]} if state == "applied" else {"applied": applied, "running": newer}
        database["installation"].insert_one({"_id": "schema", **marks})

        with pytest.raises(SchemaError, match="0002_pour_milk"):
            async with serve(database_url=url):
                pass

        assert database["installation"].find_one() == {"_id": "schema", **marks}
        assert '"event.action":"start_refused"' in capsys.readouterr().err

    @pytest.mark.parametrize("state", ["applied", "running"])
    async def test_on_a_newer_schema_goes_well_when_it_only_adds(
        self, serve: Serve, url: str, database: Database[Raw], state: str
    ) -> None:
        applied, newer = [{"name": NAME}], {"name": "0002_pour_milk", "is_additive": True, "direction": "FORWARD"}
        marks = {"applied": [*applied, newer]} if state == "applied" else {"applied": applied, "running": newer}
        database["installation"].insert_one({"_id": "schema", **marks})

        async with serve(database_url=url) as client:
            assert (await client.get("/health")).status_code == 200

        async with AsyncMongoClient[Raw](url, tz_aware=True) as own:
            with pytest.raises(SchemaError, match="0002_pour_milk"):
                await migrate(own.get_default_database(), 0)
            assert await migrate(own.get_default_database(), 2) == []
        mark = database["installation"].find_one({"_id": "schema"}) or {}
        assert {name: mark[name] for name in marks} == marks

    def test_of_several_workers_is_refused_before_there_are_any(
        self, url: str, database: Database[Raw], tmp_path: Path
    ) -> None:
        database["installation"].insert_one({"_id": "schema", "applied": [{"name": "0002_pour_milk"}]})
        variables = {"DATABASE_URL": url, "DATA_DIR": str(tmp_path), "SECRET_KEY": SECRET, "WORKERS": "2", "PORT": "0"}

        ended = subprocess.run(
            [sys.executable, "-m", "app"],
            cwd=Path(__file__).parents[2],
            env=process_environment("python -m app", times=1) | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("The database is newer than this version of Octopus")
        assert len(ended.stderr.splitlines()) == 1

    async def test_goes_forward_when_the_way_back_was_cut_off(self, url: str, database: Database[Raw]) -> None:
        """Some participants are back, and some not, and the version before has made its indexes."""
        old = old_database.participant(ADA, "owner", last_read_seq=1, sent_since_read=2) | {"sent_before_mark": 1}
        new = {"user_id": BOB, "role": "member", "last_read_seq": 0, "sent": 3, "sent_before_mark": 0}
        chat = old_database.conversation(TEA, "Tea", [old, new], last_seq=6, version=7)
        database["conversations"].insert_one(chat)
        database["messages"].create_index([("user_id", 1), ("_id", 1)], name="user_oldest")
        running = {"name": NAME, "direction": "BACKWARD", "step": 1, "position": None}
        database["installation"].insert_one({"_id": "schema", "applied": [], "running": running})

        async with AsyncMongoClient[Raw](url, tz_aware=True) as client:
            await ensure_schema(client.get_default_database(), migrates=True)
            assert (await Schema.of(client.get_default_database())).is_current

        assert "user_oldest" not in indexes(database, "messages")
        ada, bob = entries(database)
        assert ada == {"last_read_seq": 1, "sent": 3, "sent_before_mark": 1}
        assert bob == {"last_read_seq": 0, "sent": 3, "sent_before_mark": 0}


class TestLease:
    async def test_ends_the_work_of_who_has_lost_it(
        self, url: str, database: Database[Raw], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.core.meanwhile._PROLONGATIONS", 3000)
        async with AsyncMongoClient[Raw](url) as client:
            lost, other = (Lease(client.get_default_database(), "tea") for _ in range(2))
            assert await lost.take()
            assert not await other.take()

            async def work() -> None:
                database["installation"].update_one({"_id": "tea"}, {"$set": {"until": old_database.BEGUN}})
                assert await other.take()
                with pytest.raises(LeaseLostError):
                    await lost.note({"by": "lost"})
                await asyncio.Event().wait()

            with pytest.raises(LeaseLostError):
                await lost.run(work())
            await other.note({"by": "other"})

        assert (database["installation"].find_one() or {})["by"] == "other"
