"""What a key is used for is counted, written in batches, and shown by hour and by day."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from bson import ObjectId
from httpx import AsyncClient

from app.core import tasks
from app.core.key_usage import KeyUsage, gathered
from app.crud import crud_key_usage
from app.models.api_key import ApiKey
from app.models.api_key_usage import ApiKeyUsage, ApiKeyUsageBatch
from app.services import key_usage_service
from app.services.key_usage_service import flush
from tests.api.test_api_keys import API_KEYS, ME, url_of, use, verdict
from tests.conftest import Serve
from tests.factories import StoredKey, make_api_key

NOON = datetime(2026, 11, 21, 12, 34, 56, 789000, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _nothing_is_gathered() -> Iterator[None]:
    gathered.take(1_000_000)
    yield
    gathered.take(1_000_000)
    key_usage_service._State.batch = None


@pytest.fixture
async def master(client: AsyncClient) -> StoredKey:  # noqa: ARG001 - documents need the database
    return await make_api_key("admin")


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    monkeypatch.setattr("app.core.key_usage.utc_now", lambda: moment)


async def counted(key: StoredKey) -> list[tuple[datetime, int, int]]:
    rows = await ApiKeyUsage.find({"key_id": key.document.id}).sort("hour").to_list()
    return [(row.hour, row.requests, row.denied) for row in rows]


async def totals(key: StoredKey) -> tuple[int, int]:
    rows = await counted(key)
    return sum(row[1] for row in rows), sum(row[2] for row in rows)


async def shown(client: AsyncClient, key: StoredKey, master: StoredKey, **query: str) -> Any:
    response = await client.get(f"{url_of(key)}/usage", params=query, headers=master.headers)
    assert response.status_code == 200
    return response.json()


class TestCounting:
    async def test_counts_requests_and_refusals(self, client: AsyncClient) -> None:
        key = await make_api_key("items:read", rate_limit="4/day")

        answers = [
            await use(client, key),
            await client.get("/api/v1/items", headers=key.headers),
            await client.get(f"/api/v1/items/{ObjectId()}", headers=key.headers),
            await client.get(API_KEYS, headers=key.headers),
            await use(client, key),
        ]
        await flush()

        assert [answer.status_code for answer in answers] == [200, 200, 404, 403, 429]
        assert await totals(key) == (5, 2)

    async def test_counts_refusals_of_a_key_that_is_over_or_elsewhere(self, client: AsyncClient) -> None:
        keys = [
            await make_api_key("read", expires_at=NOON - timedelta(days=300)),
            await make_api_key("read", is_active=False),
            await make_api_key("read", allowed_ips=["192.0.2.7"]),
        ]

        answers = [await use(client, key) for key in keys]
        await flush()

        assert [answer.status_code for answer in answers] == [401, 401, 403]
        assert [await totals(key) for key in keys] == [(1, 1)] * 3

    async def test_counts_nothing_for_who_only_knows_the_public_part(self, client: AsyncClient) -> None:
        key = await make_api_key("read")
        await key.document.set({"key_hash": b"another"})

        assert (await use(client, key)).status_code == 401
        await flush()

        assert await ApiKeyUsage.count() == 0

    async def test_adds_up_by_the_hour(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        key = await make_api_key("read")
        for moment in (NOON, NOON + timedelta(minutes=25), NOON + timedelta(minutes=26), NOON + timedelta(hours=1)):
            at(monkeypatch, moment)
            await use(client, key)
            await flush()

        noon, one = datetime(2026, 11, 21, 12, tzinfo=UTC), datetime(2026, 11, 21, 13, tzinfo=UTC)
        assert await counted(key) == [(noon, 2, 0), (one, 2, 0)]

    async def test_is_written_at_the_end_of_the_process(self, serve: Serve) -> None:
        async with serve() as client:
            key = await make_api_key("read")
            assert [(await use(client, key)).status_code for _ in range(3)] == [200] * 3
            assert await ApiKeyUsage.count() == 0

        async with serve():
            assert await totals(key) == (3, 0)


class TestLastUse:
    async def test_is_shown(self, client: AsyncClient, master: StoredKey, monkeypatch: pytest.MonkeyPatch) -> None:
        at(monkeypatch, NOON)
        key = await make_api_key("read")
        before = (await client.get(url_of(key), headers=master.headers)).json()
        await use(client, key)
        await flush()

        after = (await client.get(url_of(key), headers=master.headers)).json()

        assert (before["last_used_at"], before["last_used_ip"]) == (None, None)
        assert (after["last_used_at"], after["last_used_ip"]) == ("2026-11-21T12:34:56.789000Z", "127.0.0.1")
        assert after["updated_at"] == before["updated_at"]

    async def test_is_none_of_what_was_refused(
        self, client: AsyncClient, master: StoredKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = await make_api_key("read")
        at(monkeypatch, NOON)
        await use(client, key)
        at(monkeypatch, NOON + timedelta(hours=3))
        assert verdict(await client.get(API_KEYS, headers=key.headers))[0] == 403
        await flush()

        shown = (await client.get(url_of(key), headers=master.headers)).json()
        assert shown["last_used_at"] == "2026-11-21T12:34:56.789000Z"

    async def test_never_goes_back(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        key = await make_api_key("read")
        for moment in (NOON, NOON - timedelta(hours=2)):
            at(monkeypatch, moment)
            await use(client, key)
            await flush()

        found = await ApiKey.get(key.document.id)
        assert found is not None
        assert found.last_used_at == NOON


class TestFlush:
    async def test_that_fails_is_made_up_for(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        key = await make_api_key("read")
        await use(client, key)

        async def fail(*_: Any) -> None:
            raise RuntimeError("the database is away")

        for name in ("open_hours", "add"):
            with monkeypatch.context() as away:
                away.setattr(crud_key_usage, name, fail)
                await flush()
            assert await totals(key) == (0, 0)
        await use(client, key)
        await flush()

        assert await totals(key) == (2, 0)

    async def test_that_went_well_unheard_counts_once(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = await make_api_key("read")
        for _ in range(3):
            await use(client, key)

        async def fail(*_: Any) -> None:
            raise RuntimeError("the database is away")

        with monkeypatch.context() as away:
            away.setattr(crud_key_usage, "note_last_uses", fail)  # what comes after the counts are there
            with structlog.testing.capture_logs() as logged:
                await flush()
        assert await totals(key) == (3, 0)
        await flush()
        await flush()

        assert [line["event"] for line in logged] == ["key_usage_not_written"]
        assert await totals(key) == (3, 0)
        found = await ApiKey.get(key.document.id)
        assert found is not None
        assert found.last_used_ip == "127.0.0.1"

    async def test_writes_all_of_a_batch_or_nothing(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = [await make_api_key("read") for _ in range(3)]
        for key in keys:
            await use(client, key)
        add = crud_key_usage.add

        async def break_off(*arguments: Any) -> None:
            await add(*arguments)
            raise RuntimeError("the database is away")

        with monkeypatch.context() as away:
            away.setattr(crud_key_usage, "add", break_off)
            await flush()
        assert [await totals(key) for key in keys] == [(0, 0)] * 3
        assert await ApiKeyUsageBatch.count() == 0

        await flush()
        assert [await totals(key) for key in keys] == [(1, 0)] * 3

    async def test_takes_more_than_one_batch(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(key_usage_service, "_BATCH", 2)
        keys = [await make_api_key("read") for _ in range(5)]
        for key in keys:
            await use(client, key)

        await flush()

        assert [await totals(key) for key in keys] == [(1, 0)] * 5
        assert await ApiKeyUsageBatch.count() == 3


class TestLastFlush:
    async def test_tries_again(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        add, tries = crud_key_usage.add, []

        async def fail_twice(*arguments: Any) -> None:
            tries.append(arguments)
            if len(tries) < 3:
                raise RuntimeError("the database is away")
            await add(*arguments)

        monkeypatch.setattr(crud_key_usage, "add", fail_twice)
        async with serve() as client:
            key = await make_api_key("read")
            await use(client, key)

        async with serve():
            assert await totals(key) == (1, 0)
        assert len(tries) == 3

    async def test_says_how_many_are_lost(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "LAST_SECONDS", 0.3)
        monkeypatch.setattr(key_usage_service, "_BATCH", 1)
        for requests in (2, 3):
            key = await make_api_key("read")
            for _ in range(requests):
                await use(client, key)

        async def fail(*_: Any) -> None:
            raise RuntimeError("the database is away")

        with monkeypatch.context() as away, structlog.testing.capture_logs() as logged:
            away.setattr(crud_key_usage, "add", fail)
            await key_usage_service.flush_last()
        await flush()

        lost = [line for line in logged if line["event"] == "key_usage_lost"]
        assert [(line["requests"], line["log_level"]) for line in lost] == [(5, "error")]
        assert sum([row.requests for row in await ApiKeyUsage.find_all().to_list()]) == 0

    async def test_writes_no_further_batch_once_the_time_is_over(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tasks, "LAST_SECONDS", 0.3)
        monkeypatch.setattr(key_usage_service, "_BATCH", 1)
        for _ in range(3):
            await use(client, await make_api_key("read"))

        batches = []

        async def swallow_one(batch: object) -> None:
            batches.append(batch)
            with suppress(*[asyncio.CancelledError] * (len(batches) == 1)):  # as the driver may
                await asyncio.Event().wait()

        monkeypatch.setattr(key_usage_service, "_add_once", swallow_one)
        with structlog.testing.capture_logs() as logged:
            await asyncio.wait_for(key_usage_service.flush_last(), 5)

        assert len(batches) == 1
        assert [line["requests"] for line in logged if line["event"] == "key_usage_lost"] == [2]


class TestGathering:
    def test_is_bounded_and_tells_what_was_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.core.key_usage.MAX_COUNTS", 2)
        usage, keys = KeyUsage(), [ObjectId() for _ in range(3)]

        for key in (keys[0], keys[0], keys[1], keys[2], keys[1]):
            usage.count(key, ip=None, is_denied=False)

        assert [(name.key_id, count.requests) for name, count in usage.take(9).items()] == [(keys[1], 2), (keys[2], 1)]
        assert (usage.take_lost(), usage.take_lost()) == (2, 0)

    async def test_that_loses_some_is_logged(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.core.key_usage.MAX_COUNTS", 1)
        for _ in range(2):
            await use(client, await make_api_key("read"))

        with structlog.testing.capture_logs() as logged:
            await flush()

        assert [(line["event"], line["requests"], line["log_level"]) for line in logged] == [
            ("key_usage_lost", 1, "warning")
        ]


class TestShowing:
    async def test_by_hour_has_idle_hours_too(self, client: AsyncClient, master: StoredKey) -> None:
        key = await make_api_key("read")
        for hour, requests, denied in ((9, 7, 0), (11, 3, 2), (12, 99, 99)):
            await ApiKeyUsage(
                key_id=key.document.id,
                hour=datetime(2026, 11, 20, hour, tzinfo=UTC),
                requests=requests,
                denied=denied,
            ).insert()

        span = {"from": "2026-11-20T08:30:00Z", "to": "2026-11-20T12:00:00Z"}
        rows = await shown(client, key, master, **span)

        assert rows == [
            {"start": "2026-11-20T08:00:00Z", "requests": 0, "denied": 0},
            {"start": "2026-11-20T09:00:00Z", "requests": 7, "denied": 0},
            {"start": "2026-11-20T10:00:00Z", "requests": 0, "denied": 0},
            {"start": "2026-11-20T11:00:00Z", "requests": 3, "denied": 2},
        ]

    async def test_by_day_adds_up_its_hours(self, client: AsyncClient, master: StoredKey) -> None:
        key, other = await make_api_key("read"), await make_api_key("read")
        for key_id in (key.document.id, other.document.id):
            for hour in (0, 23):
                moment = datetime(2026, 11, 19, hour, tzinfo=UTC)
                await ApiKeyUsage(key_id=key_id, hour=moment, requests=4, denied=1).insert()

        rows = await shown(client, key, master, **{"from": "2026-11-18", "to": "2026-11-20T00:00:01", "bucket": "day"})

        assert rows == [
            {"start": "2026-11-18T00:00:00Z", "requests": 0, "denied": 0},
            {"start": "2026-11-19T00:00:00Z", "requests": 8, "denied": 2},
            {"start": "2026-11-20T00:00:00Z", "requests": 0, "denied": 0},
        ]

    async def test_is_of_the_last_day_or_month_unless_it_is_said(self, client: AsyncClient, master: StoredKey) -> None:
        key = await make_api_key("read")
        await use(client, key)
        await flush()

        hours, days = await shown(client, key, master), await shown(client, key, master, bucket="day")

        assert (len(hours), hours[-1]["requests"]) == (25, 1)
        assert (len(days), days[-1]["requests"]) == (31, 1)

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ({"from": "2026-11-02", "to": "2026-11-02"}, "from"),
            ({"from": "2026-11-03", "to": "2026-11-02"}, "from"),
            ({"from": "2026-10-01T23:59:59Z", "to": "2026-11-02"}, "from"),
            ({"from": "2025-01-01", "to": "2026-11-02", "bucket": "day"}, "from"),
            ({"from": "soon"}, "from"),
            ({"to": "0001-01-01"}, "to"),
            ({"from": "9999-12-31T23:00:00", "to": "9999-12-31T23:59:59"}, "to"),
            ({"bucket": "week"}, "bucket"),
        ],
        ids=str,
    )
    async def test_refuses_a_bad_time(
        self, client: AsyncClient, master: StoredKey, query: dict[str, str], field: str
    ) -> None:
        response = await client.get(f"{url_of(master)}/usage", params=query, headers=master.headers)

        assert verdict(response) == (422, "validation_error")
        assert [error["loc"] for error in response.json()["errors"]] == [["query", field]]

    @pytest.mark.parametrize(("bucket", "days", "rows"), [("hour", 31, 744), ("day", 400, 400)])
    async def test_goes_as_far_as_that(
        self, client: AsyncClient, master: StoredKey, bucket: str, days: int, rows: int
    ) -> None:
        end = datetime(2026, 11, 2, tzinfo=UTC)
        span = {"from": (end - timedelta(days=days)).isoformat(), "to": end.isoformat(), "bucket": bucket}

        assert len(await shown(client, master, master, **span)) == rows


async def test_costs_a_request_no_query(client: AsyncClient) -> None:
    key = await make_api_key("read")
    for _ in range(5):
        assert (await client.get(ME, headers=key.headers)).status_code == 200

    assert len(gathered.take(10)) == 1
    assert await ApiKeyUsage.count() == 0
