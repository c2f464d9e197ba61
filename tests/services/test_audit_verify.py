"""What is done to the trail in the database, behind the API's back, is found and named."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Code, DatetimeMS, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp
from pymongo.asynchronous.database import AsyncDatabase

from app.core.config import Settings, use_settings
from app.core.exceptions import InvalidContentError
from app.core.hash_chain import Link, digest
from app.crud import crud_audit_event
from app.db.mongo import connected
from app.schemas.audit_event import ChainFault, event_of
from app.services import audit_chain_service, audit_fault_service, audit_verify_service
from app.services.audit_chain_service import ChainBrokenError
from app.services.audit_verify_service import verify
from tests.services.test_audit_chain import chain, happen, head, stored

Database = AsyncDatabase[dict[str, Any]]
Raw = dict[str, Any]


@pytest.fixture(autouse=True)
async def database(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Database]:
    """The database without the application, which seals by itself."""
    use_settings(make_settings())
    async with connected(database_url) as database:
        yield database


@pytest.fixture
async def rows(database: Database) -> list[Raw]:
    """A chain of ten events."""
    assert database is not None
    return await chain(10)


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones, so that ten events have places within one and at either end."""
    monkeypatch.setattr(audit_verify_service, "_BATCH", 3)


@pytest.fixture
async def unguarded(database: Database) -> AsyncIterator[None]:
    """Without the index that lets no two events have one place."""
    await database["audit_events"].drop_index("seq_unique")
    yield
    await database["audit_events"].delete_many({})
    await database["audit_events"].create_index("seq", name="seq_unique", unique=True, sparse=True)


async def fault() -> ChainFault:
    report = await verify()
    assert not report.valid
    assert report.fault is not None
    return report.fault


async def named() -> tuple[str, int | None, str | None]:
    found = await fault()
    return found.kind, found.seq, found.id


def made_anew(row: Raw, **changes: Any) -> Raw:
    """The event with other content, and the hash that belongs to it."""
    changed = {**row, **changes}
    return {**changed, "hash": digest(event_of(changed))}


async def mark(database: Database, seq: int, content_hash: str) -> None:
    """Make the note of how far was ever sealed fit, as who knows of it does."""
    changes = {"seq": seq, "hash": content_hash}
    assert (await database["installation"].update_one({"_id": "audit_sealed"}, {"$set": changes})).modified_count == 1


async def replace(database: Database, row: Raw) -> None:
    await database["audit_events"].replace_one({"_id": row["_id"]}, row)


class TestWhole:
    async def test_chain_is_valid(self, rows: list[Raw]) -> None:
        report = await verify()

        assert (report.valid, report.checked, report.first_seq, report.fault) == (True, 10, 1, None)
        assert report.head is not None
        assert (report.head.seq, report.head.hash) == (10, rows[9]["hash"])

    async def test_trail_without_events_is_valid(self, database: Database) -> None:
        assert database is not None
        report = await verify()

        assert (report.valid, report.checked, report.head, report.fault) == (True, 0, None, None)

    async def test_chain_may_have_unsealed_events_besides(self, rows: list[Raw]) -> None:
        await happen(3)

        report = await verify()

        assert (report.valid, report.checked) == (True, len(rows))

    async def test_chain_may_grow_meanwhile(self, rows: list[Raw], monkeypatch: pytest.MonkeyPatch) -> None:
        real, left = crud_audit_event.find_head, [3]

        async def seal_first() -> Any:
            found = await real()
            if found is not None and left[0]:
                left[0] -= 1
                await happen(2)
                await audit_chain_service._append(
                    found.last, audit_chain_service._chained(await crud_audit_event.unsealed(limit=9), found.last)
                )
            return found

        monkeypatch.setattr(crud_audit_event, "find_head", seal_first)

        assert (await verify()).fault is None
        assert (await verify()).checked == len(rows) + 6

    async def test_chain_may_lose_its_beginning_meanwhile(
        self,
        rows: list[Raw],
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
        make_settings: Callable[..., Settings],
    ) -> None:
        await database["audit_events"].drop_index("seq_unique")
        await database["audit_events"].create_index("seq", name="seq_unique", unique=True, sparse=True)
        use_settings(make_settings(audit_retention_days=1))
        real, left = crud_audit_event.find_up_to, [1]

        async def prune_first(seq: int) -> Raw | None:
            if left.pop() if left else 0:
                monkeypatch.setattr(audit_chain_service, "utc_now", lambda: datetime(2099, 1, 1, tzinfo=UTC))
                await audit_chain_service.prune()
            return await real(seq)

        monkeypatch.setattr(crud_audit_event, "find_up_to", prune_first)

        report = await verify()

        assert (report.valid, report.first_seq) == (True, len(rows) + 1)


class TestAltered:
    @pytest.mark.parametrize(
        "change",
        [
            {"details.number": 7},
            {"details.more": 1},
            {"details": []},
            {"time": datetime(2026, 1, 1, tzinfo=UTC)},
            {"time": "2026"},
            {"time": DatetimeMS(2**60)},
            {"actor.name": "somebody"},
            {"actor": None},
            {"action": "item:deleted"},
            {"target.id": ObjectId("6746d0a8f8f8f8f8f8f8f8f8")},
            {"outcome": "failure"},
            {"ip": "192.0.2.1"},
            {"user_agent": ""},
            {"request_id": "r"},
            {"hash": "0" * 64},
            {"hash": None},
            {"prev_hash": "0" * 64},
        ],
        ids=str,
    )
    async def test_event_is_named(self, rows: list[Raw], database: Database, change: Raw) -> None:
        await database["audit_events"].update_one({"seq": 5}, {"$set": change})

        assert await named() == ("altered", 5, str(rows[4]["_id"]))

    @pytest.mark.parametrize("field", ["details", "time", "actor", "hash", "prev_hash"])
    async def test_event_that_has_lost_a_field_is_named(self, rows: list[Raw], database: Database, field: str) -> None:
        await database["audit_events"].update_one({"seq": 5}, {"$unset": {field: ""}})

        assert await named() == ("altered", 5, str(rows[4]["_id"]))

    @pytest.mark.parametrize("seq", [1, 5, 9])
    async def test_event_with_its_hash_made_anew_is_named(self, rows: list[Raw], database: Database, seq: int) -> None:
        await replace(database, made_anew(rows[seq - 1], details={"number": 70}))

        assert await named() == ("altered", seq, str(rows[seq - 1]["_id"]))

    async def test_event_that_follows_another_than_it_did_is_named(self, rows: list[Raw], database: Database) -> None:
        await replace(database, made_anew(rows[4], prev_hash="1" * 64))

        assert await named() == ("altered", 5, str(rows[4]["_id"]))

    async def test_first_of_several_is_named(self, rows: list[Raw], database: Database) -> None:
        await database["audit_events"].delete_one({"seq": 8})
        await database["audit_events"].update_many({"seq": {"$in": [4, 6]}}, {"$set": {"ip": "192.0.2.1"}})

        report = await verify()

        assert report.fault is not None
        assert (report.fault.seq, report.fault.kind, report.checked) == (4, "altered", 3)
        assert report.fault.id == str(rows[3]["_id"])


class TestRemoved:
    @pytest.mark.parametrize("seq", [1, 3, 4, 9])
    async def test_place_is_named(self, rows: list[Raw], database: Database, seq: int) -> None:
        await database["audit_events"].delete_one({"seq": seq})

        assert len(rows) == 10
        assert await named() == ("removed", seq, None)

    async def test_first_of_several_is_named(self, rows: list[Raw], database: Database) -> None:
        await database["audit_events"].delete_many({"seq": {"$in": [7, 4, 5]}})

        assert len(rows) == 10
        assert await named() == ("removed", 4, None)

    async def test_event_that_was_taken_out_of_the_chain_is_missed(self, rows: list[Raw], database: Database) -> None:
        await database["audit_events"].update_one({"seq": 4}, {"$unset": {"seq": "", "hash": "", "prev_hash": ""}})

        assert len(rows) == 10
        assert await named() == ("removed", 4, None)


class TestTruncated:
    @pytest.mark.parametrize("left", [0, 3, 9])
    async def test_end_that_is_gone_is_seen_by_the_head(self, rows: list[Raw], database: Database, left: int) -> None:
        await database["audit_events"].delete_many({"seq": {"$gt": left}})

        assert len(rows) == 10
        assert await named() == ("truncated", left + 1, None)

    async def test_head_that_is_gone_is_seen(self, rows: list[Raw], database: Database) -> None:
        await database["audit_chain"].delete_many({})

        assert len(rows) == 10
        assert await named() == ("truncated", 11, None)

    @pytest.mark.parametrize("change", [{"seq": "many"}, {"begins_after": {}}], ids=str)
    async def test_head_that_makes_no_sense_is_seen(self, rows: list[Raw], database: Database, change: Raw) -> None:
        await database["audit_chain"].update_one({}, {"$set": change})

        assert len(rows) == 10
        assert await named() == ("truncated", 11, None)

    async def test_end_that_is_gone_with_a_fitting_head_is_seen_by_the_mark_and_by_an_anchor(
        self, rows: list[Raw], database: Database
    ) -> None:
        anchor = Link(10, rows[9]["hash"])
        await database["audit_events"].delete_many({"seq": {"$gt": 7}})
        await database["audit_chain"].update_one({}, {"$set": {"seq": 7, "hash": rows[6]["hash"]}})
        assert await named() == ("truncated", 8, None)
        await mark(database, 7, rows[6]["hash"])

        without, with_anchor = await verify(), await verify(anchor)

        assert without.valid
        assert with_anchor.fault is not None
        assert (with_anchor.fault.kind, with_anchor.fault.seq) == ("truncated", 8)

    async def test_trail_that_is_gone_is_seen_by_an_anchor(self, rows: list[Raw], database: Database) -> None:
        await database["audit_events"].delete_many({})
        await database["audit_chain"].delete_many({})
        await database["installation"].delete_many({"_id": {"$ne": "indexes"}})

        report = await verify(Link(10, rows[9]["hash"]))

        assert report.fault is not None
        assert (report.fault.kind, report.fault.seq) == ("truncated", 1)

    async def test_trail_that_is_gone_with_its_head_is_seen_and_not_begun_anew(
        self, rows: list[Raw], database: Database
    ) -> None:
        await database["audit_events"].delete_many({})
        await database["audit_chain"].delete_many({})

        assert len(rows) == 10
        assert await named() == ("truncated", 1, None)
        await happen(1)
        with pytest.raises(ChainBrokenError):
            await audit_chain_service.seal()
        assert await named() == ("truncated", 1, None)

    async def test_trail_that_is_gone_after_it_was_pruned_is_seen(
        self,
        rows: list[Raw],
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
        make_settings: Callable[..., Settings],
    ) -> None:
        use_settings(make_settings(audit_retention_days=1))
        monkeypatch.setattr(audit_chain_service, "utc_now", lambda: datetime(2099, 1, 1, tzinfo=UTC))
        assert await audit_chain_service.prune() == (len(rows),)
        assert (await verify()).valid

        await database["audit_chain"].delete_many({})
        await database["audit_events"].delete_many({})

        assert await named() == ("truncated", 1, None)

    async def test_trail_from_before_there_was_a_mark_is_valid(self, rows: list[Raw], database: Database) -> None:
        await database["installation"].delete_one({"_id": "audit_sealed"})

        assert (await verify()).valid
        await chain(1)
        noted = await database["installation"].find_one({"_id": "audit_sealed"})
        assert noted is not None
        assert (noted["seq"], noted["hash"]) == (len(rows) + 1, (await stored())[-1]["hash"])

    @pytest.mark.parametrize("change", [{"seq": "many"}, {"seq": DatetimeMS(2**60)}, {"hash": None}], ids=str)
    async def test_mark_that_makes_no_sense_says_nothing(
        self, rows: list[Raw], database: Database, change: Raw
    ) -> None:
        await database["installation"].update_one({"_id": "audit_sealed"}, {"$set": change})

        assert (await verify()).checked == len(rows)


class TestInserted:
    async def insert(self, database: Database, row: Raw, **changes: Any) -> str:
        made = made_anew(row, _id=ObjectId(), **changes)
        await database["audit_events"].insert_one(made)
        return str(made["_id"])

    async def test_event_behind_the_end_is_named(self, rows: list[Raw], database: Database) -> None:
        made = await self.insert(database, rows[9], seq=11, prev_hash=rows[9]["hash"])

        assert await named() == ("inserted", 11, made)

    @pytest.mark.parametrize("seq", [11, 13, 5000])
    async def test_unsealed_event_that_was_sealed_by_hand_is_named(
        self, rows: list[Raw], database: Database, seq: int
    ) -> None:
        await happen(1)
        (row,) = await crud_audit_event.unsealed(limit=1)
        await replace(database, made_anew(row, seq=seq, prev_hash=rows[9]["hash"]))

        assert await named() == ("inserted", seq, str(row["_id"]))

    async def test_several_behind_the_end_are_named_by_the_first(self, rows: list[Raw], database: Database) -> None:
        first = await self.insert(database, rows[9], seq=11, prev_hash=rows[9]["hash"])
        await self.insert(database, rows[9], seq=12, prev_hash="made up")

        assert await named() == ("inserted", 11, first)

    @pytest.mark.parametrize("seq", [0, -3, 0.5, 4.5, 10.5])
    async def test_event_at_no_place_is_named(self, rows: list[Raw], database: Database, seq: float) -> None:
        made = await self.insert(database, rows[3], seq=seq)

        assert await named() == ("inserted", int(seq), made)

    @pytest.mark.usefixtures("with_lists")
    @pytest.mark.parametrize(
        "seq",
        [
            *(
                "5",
                "",
                True,
                False,
                datetime(2026, 3, 1, tzinfo=UTC),
                DatetimeMS(2**60),
                float("nan"),
                Decimal128("4.5"),
            ),
            *(
                Decimal128("NaN"),
                Decimal128("11"),
                [],
                [11],
                [4.5],
                ["a"],
                [[1]],
                {"a": 1},
                {},
                b"x",
                ObjectId("6746d0a8f8f8f8f8f8f8f8f8"),
            ),
            *(MinKey(), MaxKey(), Timestamp(1, 1), Regex("x"), Code("x")),
        ],
        ids=repr,
    )
    async def test_event_whose_place_is_no_number_is_named(
        self, rows: list[Raw], database: Database, seq: object
    ) -> None:
        made = {**rows[3], "_id": ObjectId(), "seq": seq}
        await database["audit_events"].insert_one(made)

        found = await fault()

        assert (found.kind, found.seq, found.id) == ("inserted", None, str(made["_id"]))

    @pytest.mark.usefixtures("with_lists")
    @pytest.mark.parametrize("seq", ["5", True, float("nan"), [[1]]], ids=repr)
    async def test_event_whose_place_is_no_number_is_named_in_a_trail_without_others(
        self, database: Database, seq: object
    ) -> None:
        await database["audit_events"].insert_one({"_id": "odd", "seq": seq})

        report = await verify()

        assert report.fault is not None
        assert (report.checked, report.fault.kind, report.fault.id) == (0, "inserted", "odd")

    @pytest.mark.usefixtures("with_lists")
    @pytest.mark.parametrize("planted", [[], ["5", True, {}], [[[1]], ["a", 700], None]], ids=repr)
    async def test_event_whose_place_is_no_number_is_found_by_the_index(
        self, rows: list[Raw], database: Database, planted: list[object]
    ) -> None:
        copies = [{**rows[3], "_id": ObjectId(), "seq": seq} for seq in [*range(11, 400), *planted]]
        await database["audit_events"].insert_many(copies)
        await database.drop_collection("system.profile")
        await database.command("profile", 2)

        await audit_fault_service.at_no_place()

        await database.command("profile", 0)
        searches = (
            await database["system.profile"].find({"op": "query", "ns": f"{database.name}.audit_events"}).to_list()
        )
        await database.drop_collection("system.profile")
        assert [search["planSummary"] for search in searches] == ["IXSCAN { seq: 1 }"] * 2
        assert max(search["keysExamined"] for search in searches) <= 2

    @pytest.mark.usefixtures("unguarded")
    @pytest.mark.parametrize("seq", [1, 3, 4, 10])
    @pytest.mark.parametrize("is_made_anew", [False, True])
    async def test_second_event_at_a_place_is_named(
        self, rows: list[Raw], database: Database, seq: int, *, is_made_anew: bool
    ) -> None:
        row = rows[seq - 1]
        copy = made_anew(row, _id=ObjectId()) if is_made_anew else {**row, "_id": ObjectId()}
        await database["audit_events"].insert_one(copy)

        assert await named() == ("inserted", seq, str(copy["_id"]))

    @pytest.mark.usefixtures("unguarded")
    @pytest.mark.parametrize("seq", [1, 3, 4, 10])
    async def test_second_event_is_named_also_when_it_is_found_first(
        self, rows: list[Raw], database: Database, seq: int
    ) -> None:
        row = rows[seq - 1]
        copy = made_anew(row, _id=ObjectId())
        await database["audit_events"].delete_one({"_id": row["_id"]})
        await database["audit_events"].insert_many([copy, row])

        assert await named() == ("inserted", seq, str(copy["_id"]))


class TestReordered:
    @pytest.mark.parametrize(("one", "other"), [(1, 2), (4, 5), (2, 9)])
    async def test_exchanged_events_are_named_by_the_first_place(
        self, rows: list[Raw], database: Database, one: int, other: int
    ) -> None:
        places = {field: (rows[one - 1][field], rows[other - 1][field]) for field in ("seq", "prev_hash", "hash")}
        await database["audit_events"].delete_many({"seq": {"$in": [one, other]}})
        swapped = [
            {**rows[at - 1], **{field: pair[number] for field, pair in places.items()}}
            for at, number in ((one, 1), (other, 0))
        ]
        await database["audit_events"].insert_many(swapped)

        assert await named() == ("reordered", one, str(rows[other - 1]["_id"]))

    async def test_exchanged_places_alone_are_named_too(
        self, rows: list[Raw], database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit_fault_service, "_WINDOW", 2)
        for seq, place in ((3, 100), (8, 3), (100, 8)):
            await database["audit_events"].update_one({"seq": seq}, {"$set": {"seq": place}})

        found = await fault()

        assert (found.kind, found.seq, found.id) == ("reordered", 3, str(rows[7]["_id"]))
        assert "8" in found.detail


class TestRewritten:
    async def anew(self, database: Database, rows: list[Raw], *, start: int) -> None:
        """Alter one event, and make all hashes from there on fit."""
        previous = rows[start - 2]["hash"] if start > 1 else "0" * 64
        for row in rows[start - 1 :]:
            details = {"number": -1} if row["seq"] == start else row["details"]
            made = made_anew(row, details=details, prev_hash=previous)
            await replace(database, made)
            previous = made["hash"]

    async def test_end_does_not_fit_the_head(self, rows: list[Raw], database: Database) -> None:
        await self.anew(database, rows, start=6)

        assert await named() == ("rewritten", 10, str(rows[9]["_id"]))

    @pytest.mark.parametrize("start", [1, 6])
    async def test_chain_with_a_fitting_head_is_seen_by_the_mark_and_by_an_anchor(
        self, rows: list[Raw], database: Database, start: int
    ) -> None:
        await self.anew(database, rows, start=start)
        end = (await stored())[-1]
        await database["audit_chain"].update_one({}, {"$set": {"hash": end["hash"]}})
        assert await named() == ("rewritten", 10, str(rows[9]["_id"]))
        await mark(database, 10, end["hash"])

        assert (await verify()).valid
        for seq in (7, 10):
            report = await verify(Link(seq, rows[seq - 1]["hash"]))
            assert report.fault is not None
            assert (report.fault.kind, report.fault.seq) == ("rewritten", seq)
            assert report.fault.id == str(rows[seq - 1]["_id"])

    async def test_anchor_of_the_chain_that_is_there_shows_nothing(self, rows: list[Raw]) -> None:
        for row in rows:
            assert (await verify(Link(row["seq"], row["hash"]))).valid

    async def test_anchor_from_before_the_beginning_is_refused(
        self, rows: list[Raw], monkeypatch: pytest.MonkeyPatch, make_settings: Callable[..., Settings]
    ) -> None:
        use_settings(make_settings(audit_retention_days=1))
        monkeypatch.setattr(audit_chain_service, "utc_now", lambda: datetime(2099, 1, 1, tzinfo=UTC))
        await audit_chain_service.prune()

        with pytest.raises(InvalidContentError):
            await verify(Link(9, rows[8]["hash"]))
        assert (await verify(Link(10, rows[9]["hash"]))).valid
        assert (await head())["begins_after"]["seq"] == 10
