"""An export begins soon, however much is still to be sealed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from app.core.config import Settings, use_settings
from app.core.principal import Principal
from app.crud import crud_audit_event
from app.db.mongo import connected
from app.schemas.audit_query import AuditExportQuery
from app.services import audit_chain_service, audit_export_service
from app.services.audit_export_service import export
from tests.services.test_audit_chain import chain, happen, head

Database = AsyncDatabase[dict[str, Any]]
Raw = dict[str, Any]
AUDITOR = Principal.system("auditor")


@pytest.fixture(autouse=True)
async def database(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Database]:
    """The database without the application, which seals by itself."""
    use_settings(make_settings())
    async with connected(database_url) as database:
        yield database


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones, so that twenty events are a backlog."""
    monkeypatch.setattr(audit_chain_service, "_BATCH", 2)
    monkeypatch.setattr(audit_export_service, "_ROUNDS", 2)


async def rest_of(stream: AsyncIterator[list[Raw]]) -> list[Raw]:
    return [row async for batch in stream for row in batch]


class TestExport:
    async def test_begins_before_everything_is_sealed_and_is_whole_in_the_end(self, database: Database) -> None:
        await happen(20)

        stream = await export(AuditExportQuery(format="jsonl"), by=AUDITOR)
        first = await anext(stream)

        assert [row["seq"] for row in first] == [1, 2, 3, 4]
        assert await database["audit_events"].count_documents({"seq": None}) == 17
        rows = first + await rest_of(stream)
        assert [row["seq"] for row in rows] == list(range(1, 22))
        assert [row["action"] for row in rows] == ["item:created"] * 20 + ["audit:exported"]

    async def test_begins_with_what_was_sealed_before(self) -> None:
        await chain(6)
        await happen(20)

        stream = await export(AuditExportQuery(format="jsonl"), by=AUDITOR)

        assert [row["seq"] for row in await anext(stream)] == list(range(1, 11))
        assert [row["seq"] for row in await rest_of(stream)] == list(range(11, 28))

    async def test_of_some_has_all_of_those(self, database: Database) -> None:
        await happen(20)
        await database["audit_events"].update_many(
            {"details.number": {"$in": [3, 8, 17]}}, {"$set": {"ip": "192.0.2.1"}}
        )

        rows = await rest_of(await export(AuditExportQuery(format="jsonl", ip="192.0.2.1"), by=AUDITOR))

        assert [row["details"]["number"] for row in rows] == [3, 8, 17]

    async def test_ends_with_itself_though_events_go_on(self) -> None:
        await happen(10)
        stream = await export(AuditExportQuery(format="jsonl"), by=AUDITOR)
        rows = await anext(stream)

        async for batch in stream:
            rows += batch
            await happen(3)

        assert [row["seq"] for row in rows] == list(range(1, 12))
        assert rows[-1]["action"] == "audit:exported"

    async def test_ends_when_the_chain_is_broken_on_the_way(self, database: Database) -> None:
        await happen(20)
        stream = await export(AuditExportQuery(format="jsonl"), by=AUDITOR)
        rows = await anext(stream)
        end = await head()
        await database["audit_events"].insert_one({"_id": ObjectId(), "seq": end["seq"] + 1, "details": {}})

        rows += await asyncio.wait_for(rest_of(stream), 20)

        assert [row["seq"] for row in rows] == [1, 2, 3, 4]

    async def test_ends_when_its_own_event_is_removed(self, database: Database) -> None:
        await happen(20)
        stream = await export(AuditExportQuery(format="jsonl"), by=AUDITOR)
        rows = await anext(stream)
        await database["audit_events"].delete_one({"action": "audit:exported"})

        rows += await asyncio.wait_for(rest_of(stream), 20)

        assert len(rows) >= 4

    @pytest.mark.usefixtures("with_lists")
    @pytest.mark.parametrize("seq", [[3], [[1]], "5", True], ids=repr)
    async def test_passes_by_what_has_no_number_for_a_place(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, seq: object
    ) -> None:
        monkeypatch.setattr(crud_audit_event, "_BATCH", 1)
        await chain(5)
        await database["audit_events"].delete_one({"seq": 3})
        await database["audit_events"].insert_one({"seq": seq})

        rows = await rest_of(await export(AuditExportQuery(format="jsonl"), by=AUDITOR))

        assert [row["seq"] for row in rows] == [1, 2, 4, 5, 6]
