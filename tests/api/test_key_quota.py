"""A key with a quota makes that many requests in a day or a month, and no more."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from httpx import AsyncClient, Response

from app.core.quota import Quota, QuotaPeriod
from app.models.api_key_usage import ApiKeyQuota
from tests.api.test_api_keys import API_KEYS, ME, create, url_of, use, verdict
from tests.commands import Commands
from tests.conftest import Serve
from tests.factories import StoredKey, make_api_key, make_signed_in

DAILY = {"limit": 3, "period": "day"}
NOW = datetime(2026, 11, 30, 22, 30, 0, tzinfo=UTC)


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    monkeypatch.setattr("app.services.key_quota_service.utc_now", lambda: moment)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, NOW)


async def spend(client: AsyncClient, key: StoredKey, times: int) -> list[int]:
    return [(await use(client, key)).status_code for _ in range(times)]


async def remaining(client: AsyncClient, key: StoredKey) -> Any:
    master = await make_api_key("admin")
    return (await client.get(url_of(key), headers=master.headers)).json()["quota"]["remaining"]


@pytest.mark.usefixtures("now")
class TestQuota:
    async def test_is_shown_with_what_is_left(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        made = (await create(client, ada.headers, quota=DAILY)).json()
        assert made["quota"] == {"limit": 3, "period": "day", "remaining": 3, "resets_at": "2026-12-01T00:00:00Z"}

        await use(client, made["key"])

        for shown in (
            (await client.get(f"{API_KEYS}/{made['id']}", headers=ada.headers)).json(),
            (await client.get(API_KEYS, headers=ada.headers)).json()[0],
        ):
            assert shown["quota"] == {"limit": 3, "period": "day", "remaining": 2, "resets_at": "2026-12-01T00:00:00Z"}

    async def test_ends_the_requests_when_it_is_used_up(self, client: AsyncClient) -> None:
        key = await make_api_key("read", quota=DAILY)

        answers = [await use(client, key) for _ in range(5)]

        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        refused = answers[3]
        assert verdict(refused) == (429, "quota_exceeded")
        assert refused.headers["retry-after"] == "5400"
        assert "2026-12-01T00:00:00Z" in refused.json()["detail"]
        assert await remaining(client, key) == 0

    @pytest.mark.parametrize(
        ("period", "before", "after", "resets_at"),
        [
            ("day", NOW, datetime(2026, 12, 1, tzinfo=UTC), "2026-12-01T00:00:00Z"),
            ("month", datetime(2026, 12, 31, 23, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), "2027-01-01T00:00:00Z"),
            ("month", datetime(2028, 2, 1, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC), "2028-03-01T00:00:00Z"),
        ],
    )
    async def test_begins_anew(
        self,
        client: AsyncClient,
        monkeypatch: pytest.MonkeyPatch,
        period: str,
        before: datetime,
        after: datetime,
        resets_at: str,
    ) -> None:
        at(monkeypatch, before)
        key, master = await make_api_key("read", quota={"limit": 1, "period": period}), await make_api_key("admin")
        assert await spend(client, key, 2) == [200, 429]
        shown = (await client.get(url_of(key), headers=master.headers)).json()["quota"]
        assert shown == {"limit": 1, "period": period, "remaining": 0, "resets_at": resets_at}

        at(monkeypatch, after)

        assert await spend(client, key, 2) == [200, 429]

    @pytest.mark.usefixtures("patience")
    async def test_is_exact_when_all_ask_at_once(self, client: AsyncClient) -> None:
        key = await make_api_key("read", quota={"limit": 10, "period": "month"})

        answers = await asyncio.gather(*(use(client, key) for _ in range(40)))

        assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 30
        assert [row.used for row in await ApiKeyQuota.find_all().to_list()] == [10]

    async def test_is_raised_lowered_and_lifted(self, client: AsyncClient) -> None:
        key, master = await make_api_key("read", quota=DAILY), await make_api_key("admin")
        assert await spend(client, key, 4) == [200, 200, 200, 429]

        async def give(quota: Any) -> Response:
            return await client.patch(url_of(key), json={"quota": quota}, headers=master.headers)

        assert (await give({"limit": 5, "period": "day"})).json()["quota"]["remaining"] == 2
        assert await spend(client, key, 3) == [200, 200, 429]
        assert (await give({"limit": 1, "period": "day"})).json()["quota"]["remaining"] == 0
        assert await spend(client, key, 1) == [429]
        assert (await give(None)).json()["quota"] is None
        assert await spend(client, key, 1) == [200]

    async def test_is_drawn_on_by_optional_credentials_too(self, client: AsyncClient) -> None:
        key = await make_api_key("read", quota=DAILY)

        assert (await client.get("/api/v1/users/username/nobody", headers=key.headers)).status_code == 404

        assert await remaining(client, key) in {2, 3}


class TestWhatIsNotDrawn:
    async def test_is_what_fails_to_authenticate_or_to_reach(self, client: AsyncClient) -> None:
        key = await make_api_key("read", quota=DAILY, allowed_ips=["192.0.2.7"])
        forged = await make_api_key("read", quota=DAILY)
        await forged.document.set({"key_hash": b"other"})
        narrow = await make_api_key("items:read", quota=DAILY)

        assert verdict(await use(client, key)) == (403, "ip_not_allowed")
        assert verdict(await use(client, forged)) == (401, "invalid_api_key")
        assert verdict(await client.get(API_KEYS, headers=narrow.headers)) == (403, "insufficient_scope")

        assert await ApiKeyQuota.count() == 0

    async def test_is_what_the_rate_refuses(self, client: AsyncClient) -> None:
        key = await make_api_key("read", quota=DAILY, rate_limit="1/day")

        answers = [await use(client, key) for _ in range(2)]

        assert [verdict(answer) for answer in answers][1:] == [(429, "rate_limited")]
        assert await remaining(client, key) == 2

    async def test_is_what_the_rate_of_making_keys_refuses(self, serve: Serve) -> None:
        async with serve(rate_limit_key_create="1/day") as client:
            key = await make_api_key("admin", quota=DAILY)
            answers = [await create(client, key.headers, quota=DAILY) for _ in range(2)]

            assert [answer.status_code for answer in answers] == [201, 429]
            assert await remaining(client, key) == 2


class TestCost:
    async def test_is_one_write_for_a_key_with_a_quota_and_none_for_others(
        self, serve: Serve, commands: Commands
    ) -> None:
        async with serve(auth_cache_seconds=0) as client:
            limited, free = await make_api_key("read", quota=DAILY), await make_api_key("read")
            await use(client, limited)
            sent = []
            for key in (free, limited, limited, limited):
                commands.taken()
                await client.get(ME, headers=key.headers)
                sent.append([(command.name, command.collection) for command in commands.taken()])

        look_up, count = ("find", "api_keys"), ("findAndModify", "api_key_quotas")
        make = ("update", "api_key_quotas")
        assert sent == [[look_up], [look_up, count], [look_up, count], [look_up, count, make, count]]

    async def test_of_a_quota_that_is_used_up_is_nothing(self, serve: Serve, commands: Commands) -> None:
        async with serve(auth_cache_seconds=0) as client:
            key = await make_api_key("read", quota={"limit": 1, "period": "day"})
            assert await spend(client, key, 2) == [200, 429]
            commands.taken()
            assert await spend(client, key, 1) == [429]

            assert [command.collection for command in commands.taken()] == ["api_keys"]


class TestIsWithin:
    @pytest.mark.parametrize(
        ("inner", "outer", "is_within"),
        [
            ((5, "day"), (5, "day"), True),
            ((6, "day"), (5, "day"), False),
            ((5, "month"), (5, "month"), True),
            ((6, "month"), (5, "month"), False),
            ((5, "month"), (5, "day"), True),
            ((6, "month"), (5, "day"), False),
            ((1, "day"), (31, "month"), True),
            ((1, "day"), (30, "month"), False),
        ],
    )
    def test_compares_what_both_allow_in_any_time(
        self, inner: tuple[int, str], outer: tuple[int, str], *, is_within: bool
    ) -> None:
        one, two = (Quota(limit=limit, period=QuotaPeriod(period)) for limit, period in (inner, outer))

        assert one.is_within(two) is is_within
