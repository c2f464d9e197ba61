"""The drill: back up under load, lose the database, get it back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from httpx import AsyncClient
from pymongo.database import Database

from app.services import audit_chain_service
from tests.backup.conftest import Run
from tests.conftest import Serve
from tests.factories import SignedInUser, make_api_key, make_signed_in

Raw = dict[str, Any]


class Acknowledged(NamedTuple):
    conversation: str
    seq: int
    content: str
    at: datetime


class Load:
    """Four users, each writing to a conversation, and a conversation more now and then."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._changed = asyncio.Event()
        self._is_over = False
        self.acknowledged: list[Acknowledged] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        users = [await make_signed_in(limits={"daily_messages": 1_000_000}) for _ in range(4)]
        tasks = [asyncio.create_task(self._write(user)) for user in users]
        try:
            yield
        finally:
            self._is_over = True
            await asyncio.gather(*tasks)

    async def reaches(self, count: int) -> list[Acknowledged]:
        """What is acknowledged as soon as it is that many."""
        async with asyncio.timeout(60):
            while len(self.acknowledged) < count:
                self._changed.clear()
                await self._changed.wait()
        return list(self.acknowledged)

    async def _write(self, user: SignedInUser) -> None:
        number = 0
        while not self._is_over:
            body = {"title": f"Tea {number}"}
            made = await self._client.post("/api/v1/conversations", json=body, headers=user.headers)
            chat = made.json()["id"]
            for _ in range(15):
                number += 1
                body = {"content": f"Cup {number} of {user.id}"}
                path = f"/api/v1/conversations/{chat}/messages"
                answer = await self._client.post(path, json=body, headers=user.headers)
                assert answer.status_code == 201, answer.text
                self.acknowledged.append(Acknowledged(chat, answer.json()["seq"], body["content"], datetime.now(UTC)))
                self._changed.set()


async def test_drill_brings_back_every_write_that_was_acknowledged_before_the_backup_and_no_half_of_another(
    serve: Serve, run: Run, database: Database[Raw], url: str
) -> None:
    async with serve(database_url=url) as client:
        load = Load(client)
        async with load.running():
            before = await load.reaches(60)
            await audit_chain_service.seal(rounds=1)
            archive = (await asyncio.to_thread(run, "backup")).archive
            last = (await load.reaches(len(load.acknowledged) + 20))[-1]
    indexes = {name: database[name].index_information() for name in database.list_collection_names()}
    database.client.drop_database(database.name)

    restored = run("restore", archive)

    assert (restored.code, restored.err) == (0, "")
    brought_back = {name: database[name].index_information() for name in database.list_collection_names()}
    assert {"users", "sessions", "conversations", "messages", "audit_events", "usage_counters"} <= brought_back.keys()
    # A job that ran for the first time only after the backup has made its collection then.
    assert brought_back == {name: indexes[name] for name in brought_back}
    there = {(str(row["conversation_id"]), row["seq"], row["content"]) for row in database["messages"].find()}
    at = datetime.fromisoformat(run("list").out.split()[1])
    expected = [each[:3] for each in load.acknowledged if each.at < at]
    assert len(expected) >= len(before)
    assert set(expected) <= there
    assert last[:3] not in there
    require_consistent(database)
    async with serve(database_url=url) as client:
        auditor = await make_api_key("audit:read")
        report = await client.get("/api/v1/admin/audit-events/verify", headers=auditor.headers)
        assert (report.json()["valid"], report.json()["fault"]) == (True, None)
        assert report.json()["checked"] >= 4  # each user had made a conversation before


def require_consistent(database: Database[Raw]) -> None:
    """What one transaction writes in several collections is in all of them or in none."""
    chats = list(database["conversations"].find())
    for chat in chats:
        seqs = [row["seq"] for row in database["messages"].find({"conversation_id": chat["_id"]}).sort("seq")]
        assert seqs == list(range(1, chat["message_count"] + 1))
    made = {row["_id"]: row["conversations"] for row in database["usage_totals"].find()}
    counted = Counter[Any]()
    for row in database["usage_counters"].find():  # of two days, at midnight
        counted[row["user_id"]] += row["messages"]
    for user_id, conversations in made.items():
        own = [chat for chat in chats if chat["created_by"] == user_id]
        assert len(own) == conversations
        assert sum(chat["message_count"] for chat in own) == counted[user_id]
    told = {row["target"]["id"] for row in database["audit_events"].find({"action": "conversation:created"})}
    assert told == {str(chat["_id"]) for chat in chats} or told == {chat["_id"] for chat in chats}
