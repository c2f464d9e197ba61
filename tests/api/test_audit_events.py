import asyncio
import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import uvicorn
from bson import DatetimeMS, ObjectId
from httpx import AsyncClient

from app.crud import crud_audit_event
from app.db.mongo import find_batch, get_database
from app.models.audit_event import AuditEvent
from app.services import audit_chain_service
from tests.conftest import Serve
from tests.factories import make_api_key, make_signed_in

URL = "/api/v1/admin/audit-events"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
Raw = dict[str, Any]


async def make_event(number: int = 0, **changes: Any) -> AuditEvent:
    """An event of that minute after noon, long past."""
    event = AuditEvent(
        time=NOON + timedelta(minutes=number),
        **{
            "actor": {"kind": "user", "id": ObjectId(), "name": "ada"},
            "action": "item:created",
            "target": {"kind": "item", "id": ObjectId()},
            "outcome": "success",
            "ip": "192.0.2.7",
            "user_agent": "browser",
            "request_id": f"r{number}",
            "details": {"number": number},
            **changes,
        },
    )
    await event.insert()
    return event


@pytest.fixture
async def auditor(client: AsyncClient) -> dict[str, str]:
    assert client is not None
    return (await make_api_key("audit:read", name="auditor")).headers


async def numbers_of(client: AsyncClient, auditor: dict[str, str], query: str) -> list[int]:
    response = await client.get(f"{URL}?{query}", headers=auditor)
    assert response.status_code == 200, response.text
    return [row["details"]["number"] for row in response.json() if "number" in row["details"]]


class TestList:
    async def test_shows_an_event_as_it_was_recorded(self, client: AsyncClient, auditor: dict[str, str]) -> None:
        ada = await make_signed_in(username="ada")
        agent = {"User-Agent": "probe/1", "X-Request-ID": "r-77"}
        made = await client.post("/api/v1/items", json={"title": "Tea"}, headers=ada.headers | agent)
        await audit_chain_service.seal()

        (event,) = (await client.get(f"{URL}?action=item:created", headers=auditor)).json()

        stored = await get_database()["audit_events"].find_one({"action": "item:created"})
        assert stored is not None
        assert event == {
            "id": str(stored["_id"]),
            "time": event["time"],
            "actor": {"kind": "user", "id": str(ada.id), "name": "ada"},
            "action": "item:created",
            "target": {"kind": "item", "id": made.json()["id"]},
            "outcome": "success",
            "ip": "127.0.0.1",
            "user_agent": "probe/1",
            "request_id": "r-77",
            "details": {},
            "seq": stored["seq"],
            "prev_hash": stored["prev_hash"],
            "hash": stored["hash"],
        }
        assert event["time"][-1] == "Z"
        assert len(event["time"]) == len("2026-03-01T12:00:00.000Z")

    async def test_has_no_place_for_an_event_that_is_not_sealed(
        self, client: AsyncClient, auditor: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crud_audit_event, "unsealed", no_rows)
        event = await make_event()

        (row,) = (await client.get(URL, headers=auditor)).json()

        assert (row["id"], row["time"]) == (str(event.id), "2026-03-01T12:00:00.000Z")
        assert (row["seq"], row["prev_hash"], row["hash"]) == (None, None, None)

    async def test_seals_within_seconds_by_itself(self, client: AsyncClient, auditor: dict[str, str]) -> None:
        ada = await make_signed_in()
        await client.post("/api/v1/items", json={"title": "Tea"}, headers=ada.headers)

        async with asyncio.timeout(20):
            while True:
                (row,) = (await client.get(f"{URL}?action=item:created", headers=auditor)).json()
                if row["seq"] is not None:
                    break
                await asyncio.sleep(0.05)

        assert row["seq"] == 1

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("", [3, 2, 1, 0]),
            ("actor={actor}", [2]),
            ("target={target}", [1]),
            ("action=user:updated", [3]),
            ("outcome=failure", [3, 0]),
            ("outcome=success", [2, 1]),
            ("ip=198.51.100.1", [0]),
            ("ip=::ffff:198.51.100.1", [0]),
            ("from=2026-03-01T12:01:00Z", [3, 2, 1]),
            ("to=2026-03-01T12:01:00Z", [0]),
            ("from=2026-03-01T12:01:00&to=2026-03-01T14:02:00%2B02:00", [1]),
            ("outcome=failure&action=user:updated", [3]),
            ("outcome=failure&ip=198.51.100.1&to=2026-03-01T12:00:00Z", []),
            ("actor={target}", []),
        ],
    )
    async def test_gives_what_matches_every_filter_newest_first(
        self, client: AsyncClient, auditor: dict[str, str], query: str, expected: list[int]
    ) -> None:
        actor, target = ObjectId(), ObjectId()
        await make_event(3, action="user:updated", outcome="failure")
        await make_event(1, target={"kind": "item", "id": target})
        await make_event(0, ip="198.51.100.1", outcome="failure")
        await make_event(2, actor={"kind": "api_key", "id": actor, "name": "ci"})

        assert await numbers_of(client, auditor, query.format(actor=actor, target=target)) == expected

    @pytest.mark.parametrize("query", ["", "&ip=192.0.2.7&from=2026-03-01T12:00:00Z", "&outcome=success"])
    async def test_pages_without_loss_though_times_are_equal_and_events_are_added(
        self, client: AsyncClient, auditor: dict[str, str], query: str
    ) -> None:
        for number in range(7):
            await make_event(number // 4)
        seen: list[str] = []

        url: str | None = f"{URL}?limit=2{query}"
        while url is not None:
            page = await client.get(url, headers=auditor)
            seen += [row["id"] for row in page.json()]
            url = page.links.get("next", {}).get("url")
            await make_event(30)

        stored = await AuditEvent.find({"time": {"$lt": NOON + timedelta(minutes=30)}}).sort("-time", "-_id").to_list()
        assert seen == [str(event.id) for event in stored]

    @pytest.mark.parametrize(
        "query",
        [
            *("actor=me", "target=1", "action=everything", "outcome=maybe", "ip=home", "from=yesterday", "limit=0"),
            "to=2026-13-01T00:00:00Z",
        ],
    )
    async def test_says_what_is_wrong_with_a_filter(
        self, client: AsyncClient, auditor: dict[str, str], query: str
    ) -> None:
        for path in (URL, f"{URL}/export"):
            if "limit" not in query or path == URL:
                response = await client.get(f"{path}?{query}", headers=auditor)

                assert (response.status_code, response.json()["code"]) == (422, "validation_error")
                assert [error["loc"] for error in response.json()["errors"]] == [["query", query.partition("=")[0]]]

    async def test_refuses_a_cursor_of_other_filters(self, client: AsyncClient, auditor: dict[str, str]) -> None:
        for number in range(3):
            await make_event(number)
        link = (await client.get(f"{URL}?limit=1", headers=auditor)).links["next"]["url"]

        response = await client.get(f"{link}&outcome=success", headers=auditor)

        assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")

    async def test_is_for_auditors(self, client: AsyncClient) -> None:
        assert client is not None
        for path in ("", "/export", "/verify"):
            for scope in ("read", "users:*", "api_keys:*"):
                headers = (await make_api_key(scope)).headers
                assert (await client.get(f"{URL}{path}", headers=headers)).status_code == 403


async def no_rows(**_: Any) -> list[Raw]:
    return []


class TestExport:
    async def lines(self, client: AsyncClient, headers: dict[str, str], query: str = "") -> list[Raw]:
        response = await client.get(f"{URL}/export?format=jsonl&{query}", headers=headers)
        assert response.status_code == 200, response.text
        assert response.text.endswith("\n")
        return [json.loads(line) for line in response.text.splitlines()]

    async def test_is_every_event_in_the_order_of_the_chain_and_itself(
        self, client: AsyncClient, auditor: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crud_audit_event, "_BATCH", 2)
        for number in (5, 1, 3, 2, 4):
            await make_event(number)

        rows = await self.lines(client, auditor)
        shown = (await client.get(URL, headers=auditor)).json()

        assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5, 6]
        assert [row["details"]["number"] for row in rows[:5]] == [5, 1, 3, 2, 4]
        assert (rows[5]["action"], rows[5]["actor"]["name"]) == ("audit:exported", "auditor")
        assert rows[5]["details"] == {"format": "jsonl", "filters": {}}
        assert sorted(rows, key=lambda row: row["seq"]) == sorted(shown, key=lambda row: row["seq"])

    async def test_is_a_file(self, client: AsyncClient, auditor: dict[str, str]) -> None:
        for form, kind in (("jsonl", "application/x-ndjson"), ("csv", "text/csv; charset=utf-8; header=present")):
            response = await client.get(f"{URL}/export?format={form}", headers=auditor)

            assert response.headers["content-type"] == kind
            name = response.headers["content-disposition"].removeprefix('attachment; filename="octopus-audit-')
            assert datetime.strptime(name, f'%Y%m%dT%H%M%SZ.{form}"').replace(tzinfo=UTC).year >= 2026

    async def test_is_filtered_like_the_list_and_oldest_first(
        self, client: AsyncClient, auditor: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crud_audit_event, "_BATCH", 2)
        for number in (5, 1, 3, 2, 4):
            await make_event(number, ip="198.51.100.1" if number != 3 else "192.0.2.7")

        rows = await self.lines(client, auditor, "ip=198.51.100.1")

        assert [row["details"]["number"] for row in rows] == [1, 2, 4, 5]
        event = await AuditEvent.find_one({"action": "audit:exported"})
        assert event is not None
        assert event.details == {"format": "jsonl", "filters": {"ip": "198.51.100.1"}}

    async def test_has_a_row_for_each_event_as_csv(self, client: AsyncClient, auditor: dict[str, str]) -> None:
        event = await make_event(user_agent=None, details={"a": 'b"c,\nd'})

        response = await client.get(f"{URL}/export?format=csv&to=2026-03-02T00:00:00Z", headers=auditor)

        header, row = csv.reader(io.StringIO(response.text, newline=""))
        assert header == [
            *("id", "time", "actor_kind", "actor_id", "actor_name", "action", "target_kind", "target_id", "outcome"),
            *("ip", "user_agent", "request_id", "details", "seq", "prev_hash", "hash"),
        ]
        assert row[:13] == [
            *(str(event.id), "2026-03-01T12:00:00.000Z", "user", str(event.actor.id), "ada", "item:created", "item"),
            *(str(event.target.id), "success", "192.0.2.7", "", "r0", '{"a":"b\\"c,\\nd"}'),
        ]
        assert row[14] == "0" * 64

    @pytest.mark.parametrize(
        ("text", "cell"),
        [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "'\r=1"),
            ("\n=1", "'\n=1"),
            ("'=1", "''=1"),
            ("", "'"),
            ("a=1", "a=1"),
            ('"=1', '"=1'),
            (None, ""),
        ],
    )
    async def test_gives_a_spreadsheet_nothing_to_run(
        self, client: AsyncClient, auditor: dict[str, str], text: str | None, cell: str
    ) -> None:
        await make_event(user_agent=text, actor={"kind": "user", "id": None, "name": text})

        response = await client.get(f"{URL}/export?format=csv&to=2026-03-02T00:00:00Z", headers=auditor)

        _, row = csv.reader(io.StringIO(response.text, newline=""))
        assert (row[4], row[10]) == (cell, cell)

    async def test_is_refused_in_another_format(self, client: AsyncClient, auditor: dict[str, str]) -> None:
        response = await client.get(f"{URL}/export?format=xml", headers=auditor)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
        assert await AuditEvent.find({"action": "audit:exported"}).count() == 0

    async def test_of_a_broken_chain_is_given_as_far_as_it_is_sealed(
        self, client: AsyncClient, auditor: dict[str, str]
    ) -> None:
        for number in range(3):
            await make_event(number)
        await audit_chain_service.seal()
        await get_database()["audit_events"].update_one({"seq": 2}, {"$set": {"seq": 9}})
        await get_database()["audit_chain"].update_one({}, {"$set": {"seq": 8}})

        assert [row["seq"] for row in await self.lines(client, auditor)] == [1, 3]

    async def test_that_fails_in_the_middle_breaks_the_connection(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crud_audit_event, "_BATCH", 2)

        async def find_or_fail(collection: str, where: Raw, **options: Any) -> list[Raw]:
            if "$and" in where and options["sort"] == {"seq": 1}:
                raise ConnectionError("gone")
            return await find_batch(collection, where, **options)

        async with serve() as client:
            app: Any = client._transport.app  # type: ignore[attr-defined]
            key = await make_api_key("audit:read")
            for number in range(5):
                await make_event(number)
            monkeypatch.setattr(crud_audit_event, "find_batch", find_or_fail)
            server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
            running = asyncio.create_task(server.serve())
            async with asyncio.timeout(10):
                while not server.started:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            async with AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=key.headers) as wire:
                for form in ("jsonl", "csv"):
                    with pytest.raises(httpx.RemoteProtocolError):
                        await wire.get(f"{URL}/export?format={form}")
            server.should_exit = True
            await running


@pytest.mark.usefixtures("with_lists")
class TestPlanted:
    """What somebody has put into the database behind the API's back is shown, whatever it is."""

    async def plant(self, **changes: Any) -> str:
        row = {**(await make_event()).model_dump(by_alias=True, exclude={"id"}), "_id": ObjectId(), **changes}
        await AuditEvent.find_all().delete()
        await get_database()["audit_events"].insert_one(row)
        return str(row["_id"])

    @pytest.mark.parametrize(
        "value", ["eve", 7, True, [1, "a"], None, datetime(2026, 3, 1, tzinfo=UTC), b"x"], ids=repr
    )
    @pytest.mark.parametrize("field", ["actor", "target", "details"])
    async def test_event_whose_part_is_no_document_is_listed_and_exported(
        self, client: AsyncClient, auditor: dict[str, str], field: str, value: Any
    ) -> None:
        event_id = await self.plant(**{field: value})

        listed = (await client.get(URL, headers=auditor)).json()
        lines = [json.loads(line) for line in (await client.get(f"{URL}/export", headers=auditor)).text.splitlines()]
        text = (await client.get(f"{URL}/export?format=csv", headers=auditor)).text
        rows = list(csv.DictReader(io.StringIO(text, newline="")))

        shown = {datetime: "2026-03-01T00:00:00.000Z", bytes: "b'x'"}.get(type(value), value)
        assert (listed[0]["id"], listed[0][field]) == (event_id, shown)
        assert (lines[0]["id"], lines[0][field]) == (event_id, shown)
        assert rows[0]["id"] == event_id
        assert [row["action"] for row in rows[1:]] == ["audit:exported"] * 2
        assert (await client.get(f"{URL}/verify", headers=auditor)).json()["valid"] is True

    @pytest.mark.parametrize("value", [[1], {"a": 1}, 7, float("nan"), True], ids=repr)
    async def test_event_with_odd_texts_is_listed_and_exported(
        self, client: AsyncClient, auditor: dict[str, str], value: Any
    ) -> None:
        actor = {"kind": value, "id": value, "name": value}
        event_id = await self.plant(actor=actor, ip=value, user_agent=value, request_id=value, outcome=value)

        for path in ("", "/export", "/export?format=csv"):
            response = await client.get(f"{URL}{path}", headers=auditor)

            assert response.status_code == 200
            assert event_id in response.text
            assert "NaN" not in response.text

    @pytest.mark.parametrize("time", [None, "2026", [NOON], DatetimeMS(2**60), 5], ids=repr)
    async def test_event_without_a_time_does_not_end_the_pages(
        self, client: AsyncClient, auditor: dict[str, str], monkeypatch: pytest.MonkeyPatch, time: Any
    ) -> None:
        monkeypatch.setattr(crud_audit_event, "_BATCH", 1)
        await self.plant(time=time)
        for number in range(3):
            await make_event(number)
        await get_database()["audit_events"].insert_one({"ip": "192.0.2.7"})
        seen = []

        url: str | None = f"{URL}?limit=1&ip=192.0.2.7"
        while url is not None:
            page = await client.get(url, headers=auditor)
            assert page.status_code == 200
            seen += [row["details"]["number"] for row in page.json()]
            url = page.links.get("next", {}).get("url")
        lines = (await client.get(f"{URL}/export?ip=192.0.2.7", headers=auditor)).text.splitlines()

        assert seen == [2, 1, 0]
        assert [json.loads(line)["details"]["number"] for line in lines] == [0, 1, 2]

    @pytest.mark.parametrize("event_id", ["x", 7, "6746d0a8f8f8f8f8f8f8f8f8"], ids=repr)
    async def test_event_with_an_id_of_another_kind_does_not_end_the_sealing(
        self, client: AsyncClient, auditor: dict[str, str], event_id: Any
    ) -> None:
        await self.plant(_id=event_id)

        lines = [json.loads(line) for line in (await client.get(f"{URL}/export", headers=auditor)).text.splitlines()]

        assert [(line["seq"], line["action"]) for line in lines] == [(1, "item:created"), (2, "audit:exported")]
        assert lines[0]["id"] == str(event_id)

    async def test_large_number_is_shown_as_one(self, client: AsyncClient, auditor: dict[str, str]) -> None:
        await self.plant(details={"number": 2**40})

        (row,) = (await client.get(URL, headers=auditor)).json()

        assert row["details"] == {"number": 1099511627776}


class TestVerify:
    async def test_says_that_the_chain_is_whole(self, client: AsyncClient, auditor: dict[str, str]) -> None:
        for number in range(3):
            await make_event(number)
        await audit_chain_service.seal()

        report = (await client.get(f"{URL}/verify", headers=auditor)).json()

        last = await get_database()["audit_events"].find_one({"seq": 3})
        assert last is not None
        assert report == {
            "valid": True,
            "checked": 3,
            "first_seq": 1,
            "head": {"seq": 3, "hash": last["hash"]},
            "fault": None,
        }
        anchored = await client.get(f"{URL}/verify?seq=3&hash={last['hash']}", headers=auditor)
        assert anchored.json()["valid"] is True

    async def test_names_what_was_done_to_it(self, client: AsyncClient, auditor: dict[str, str]) -> None:
        events = [await make_event(number) for number in range(3)]
        await audit_chain_service.seal()
        await get_database()["audit_events"].update_one({"seq": 2}, {"$set": {"details.number": 9}})

        report = (await client.get(f"{URL}/verify", headers=auditor)).json()

        assert (report["valid"], report["checked"]) == (False, 1)
        assert {name: report["fault"][name] for name in ("seq", "id", "kind")} == {
            "seq": 2,
            "id": str(events[1].id),
            "kind": "altered",
        }
        assert isinstance(report["fault"]["detail"], str)

    @pytest.mark.parametrize(
        "query", ["seq=1", f"hash={'0' * 64}", f"seq=0&hash={'0' * 64}", "seq=1&hash=0", f"seq=x&hash={'0' * 64}"]
    )
    async def test_refuses_half_an_anchor(self, client: AsyncClient, auditor: dict[str, str], query: str) -> None:
        response = await client.get(f"{URL}/verify?{query}", headers=auditor)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")


class TestKeys:
    async def test_have_their_own_lists(self, client: AsyncClient) -> None:
        admin = (await make_api_key("admin")).headers
        made = [
            (await client.post("/api/v1/api-keys", json={"name": name, "scopes": ["read"]}, headers=admin)).json()["id"]
            for name in ("one", "two")
        ]
        await client.patch(f"/api/v1/api-keys/{made[0]}", json={"name": "uno"}, headers=admin)
        await client.delete(f"/api/v1/api-keys/{made[0]}", headers=admin)
        await client.post("/api/v1/conversations", json={"title": "Tea"}, headers=admin)

        async def actions(path: str) -> list[tuple[str, str]]:
            response = await client.get(f"/api/v1/api-keys/{path}", headers=admin)
            assert response.status_code == 200, response.text
            return [(row["action"].partition(":")[2], row["target"]["id"]) for row in response.json()]

        of_one = [("deleted", made[0]), ("updated", made[0]), ("created", made[0])]
        assert await actions(f"{made[0]}/audit-logs") == of_one
        assert await actions(f"{made[0]}/audit-logs?action=api_key:updated") == [("updated", made[0])]
        assert await actions("audit-logs") == [of_one[0], of_one[1], ("created", made[1]), of_one[2]]
        assert await actions("audit-logs?action=api_key:created") == [("created", made[1]), ("created", made[0])]
        assert await actions(f"audit-logs?api_key_id={made[1]}") == [("created", made[1])]
        assert await actions("audit-logs?action=user:created") == []
        assert await actions(f"{ObjectId()}/audit-logs") == []

    async def test_are_paged(self, client: AsyncClient) -> None:
        admin = (await make_api_key("admin")).headers
        for name in ("one", "two", "three"):
            await client.post("/api/v1/api-keys", json={"name": name, "scopes": ["read"]}, headers=admin)

        first = await client.get("/api/v1/api-keys/audit-logs?limit=2", headers=admin)
        second = await client.get(first.links["next"]["url"], headers=admin)

        assert [len(first.json()), len(second.json())] == [2, 1]
        assert "next" not in second.links

    async def test_malformed_id_is_none_that_exists(self, client: AsyncClient) -> None:
        admin = (await make_api_key("admin")).headers

        assert (await client.get("/api/v1/api-keys/x/audit-logs", headers=admin)).status_code == 404
