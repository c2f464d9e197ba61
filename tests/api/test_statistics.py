"""What administrators see of the last days: what was done through the API, moved to the day that it is for."""

import asyncio
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient

from app.core.clock import utc_now
from app.core.scopes import Role
from app.crud import crud_statistics
from app.db.mongo import get_database
from app.models.audit_event import AuditEvent
from app.models.daily_statistics import Counts, DailyStatistics
from app.models.job import Job
from app.services import refusal_service, statistics_service
from app.services.statistics_service import Refreshed
from tests.factories import PASSWORD, make_api_key, make_conversation, make_signed_in, make_user, sign_in
from tests.test_architecture import Profile, profile

__all__ = ["profile"]  # the fixture
STATS = "/api/v1/admin/stats"
# Long ago, so that nothing that a test does is on one of these days before it was moved there.
TODAY = date(2026, 3, 10)
YESTERDAY = date(2026, 3, 9)
BEFORE = date(2026, 3, 8)
NOTHING = {"users": 0, "active_users": 0, "messages": 0, "keys": 0, "uploads": 0, "failures": 0}
Headers = dict[str, str]


@pytest.fixture(autouse=True)
async def admin(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> Headers:  # noqa: ARG001 - the database
    """It is noon of that day for the job, which nobody runs but the test."""
    let_it_be(monkeypatch, datetime.combine(TODAY, time(12), UTC))
    await Job(id="refresh_statistics", due_at=utc_now().replace(year=2100)).insert()
    return (await make_signed_in(role=Role.ADMIN)).headers


def let_it_be(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    monkeypatch.setattr(statistics_service, "utc_now", lambda: moment)


async def move_to(day: date) -> None:
    """Let everything that was done until now, and not moved yet, have been done on that day."""
    database, noon = get_database(), datetime.combine(day, time(12), UTC)
    recent = datetime.combine(TODAY, time(23), UTC) + timedelta(days=30)
    await database["audit_events"].update_many({"time": {"$gt": recent}}, {"$set": {"time": noon}})
    kept_until = datetime.combine(day, time(), UTC) + timedelta(days=400)
    counters = {"day": {"$gt": f"{recent:%Y-%m-%d}"}}
    await database["usage_counters"].update_many(counters, {"$set": {"day": str(day), "expires_at": kept_until}})
    async for message in database["messages"].find({"_id": {"$gt": ObjectId.from_datetime(recent)}}):
        await database["messages"].delete_one({"_id": message["_id"]})
        moved = ObjectId(int(noon.timestamp()).to_bytes(4, "big") + message["_id"].binary[4:])
        await database["messages"].insert_one(message | {"_id": moved})


async def event_on(moment: datetime, **more: Any) -> None:
    await AuditEvent(
        **{
            "time": moment,
            "actor": {"kind": "system", "id": None, "name": "test"},
            "action": "user:created",
            "target": {"kind": "user", "id": None},
            "outcome": "success",
            "ip": None,
            "user_agent": None,
            "request_id": None,
            "details": {},
            **more,
        }
    ).insert()


async def stats(client: AsyncClient, admin: Headers, days: int) -> Any:
    response = await client.get(STATS, params={"days": days}, headers=admin)
    assert response.status_code == 200, response.text
    return response.json()


async def users_on(client: AsyncClient, admin: Headers, *days: date) -> list[int]:
    series = {row["day"]: row["users"] for row in (await stats(client, admin, 30))["series"]}
    return [series[str(day)] for day in days]


async def done(response: Any) -> Any:
    response = await response
    assert response.is_success, response.text
    return response.json() if response.content else None


async def spend_the_first_day(client: AsyncClient) -> tuple[Any, str, str]:
    """Two accounts, three messages of two users, a key, four refusals. The session, the conversation and the key."""
    for name in ("ada", "bob"):
        body = {"email": f"{name}@example.com", "username": name, "password": PASSWORD}
        await done(client.post("/api/v1/users", json=body))
    session = await done(client.post("/api/v1/auth/login", json={"username": "ada", "password": PASSWORD}))
    ada = {"Authorization": f"Bearer {session['access_token']}"}
    conversation = (await done(client.post("/api/v1/conversations", json={"title": "Tea"}, headers=ada)))["id"]
    for _ in range(2):
        url = f"/api/v1/conversations/{conversation}/messages"
        await done(client.post(url, json={"content": "Hello"}, headers=ada))
    carl = await make_signed_in()  # without having signed in here
    url = f"/api/v1/conversations/{(await make_conversation(carl)).id}/messages"
    await done(client.post(url, json={"content": "Hello"}, headers=carl.headers))
    key = await done(client.post("/api/v1/api-keys", json={"name": "ci", "scopes": ["read"]}, headers=ada))
    wrong = {"username": "ada", "password": "turnip-Lantern-42-wrong"}
    assert (await client.post("/api/v1/auth/login", json=wrong)).status_code == 401
    for _ in range(3):
        assert (await client.get("/api/v1/users/me", headers={"Authorization": "Bearer x"})).status_code == 401
    await refusal_service.flush()
    return session, conversation, key["id"]


async def spend_the_last_day(client: AsyncClient, session: Any, conversation: str, key_id: str) -> Headers:
    """One session goes on; a key is rotated, a file comes in, and a service writes."""
    renewed = await done(client.post("/api/v1/auth/refresh", json={"refresh_token": session["refresh_token"]}))
    ada = {"Authorization": f"Bearer {renewed['access_token']}"}
    await done(client.post(f"/api/v1/api-keys/{key_id}/rotate", json={}, headers=ada))
    await done(client.post("/api/v1/uploads", files={"file": ("tea.txt", b"Tea is a drink.")}, headers=ada))
    service = await make_api_key("write")
    url = f"/api/v1/conversations/{conversation}/messages"
    await done(client.post(url, json={"content": "Hi", "role": "assistant"}, headers=service.headers))
    return ada


class TestStatistics:
    async def test_are_exact_and_stay_so_whatever_is_deleted(
        self, client: AsyncClient, admin: Headers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun = await spend_the_first_day(client)
        await move_to(BEFORE)
        ada = await spend_the_last_day(client, *begun)
        await move_to(TODAY)

        assert (await stats(client, admin, 3))["uncounted_days"] == 3
        await statistics_service.refresh()
        seen = await stats(client, admin, 3)

        first = {"users": 2, "active_users": 2, "messages": 3, "keys": 1, "uploads": 0, "failures": 4}
        last = {"users": 0, "active_users": 1, "messages": 1, "keys": 1, "uploads": 1, "failures": 0}
        assert seen["series"] == [
            {"day": "2026-03-08", **first},
            {"day": "2026-03-09", **NOTHING},
            {"day": "2026-03-10", **last},
        ]
        assert seen["totals"] == {"users": 2, "active_users": 2, "messages": 4, "keys": 2, "uploads": 1, "failures": 4}
        assert seen["present"] == {"users": 4, "messages": 4, "keys": 3, "uploads": 1}
        assert (seen["first_day"], seen["last_day"]) == ("2026-03-08", "2026-03-10")
        assert (seen["refreshed_at"], seen["uncounted_days"]) == ("2026-03-10T12:00:00Z", 0)

        await done(client.delete(f"/api/v1/conversations/{begun[1]}", headers=ada))
        body = {"current_password": PASSWORD}
        assert (await client.request("DELETE", "/api/v1/users/me", headers=ada, json=body)).status_code == 204
        await get_database()["messages"].delete_many({})
        await get_database()["usage_counters"].delete_many({})
        let_it_be(monkeypatch, datetime.combine(TODAY, time(13), UTC))
        await statistics_service.refresh()

        assert (await stats(client, admin, 3))["series"] == seen["series"]
        assert (await stats(client, admin, 1))["series"] == seen["series"][2:]
        assert (await stats(client, admin, 1))["refreshed_at"] == "2026-03-10T13:00:00Z"

    async def test_are_of_one_to_365_days(self, client: AsyncClient, admin: Headers) -> None:
        for days in ("0", "366", "-1", "1.5", "many", ""):
            response = await client.get(STATS, params={"days": days}, headers=admin)

            assert (days, response.status_code, response.json()["code"]) == (days, 422, "validation_error")
            assert response.json()["errors"][0]["loc"] == ["query", "days"]

    async def test_show_days_before_there_was_anything_with_zeros(self, client: AsyncClient, admin: Headers) -> None:
        await statistics_service.refresh()

        year, month = await stats(client, admin, 365), (await client.get(STATS, headers=admin)).json()

        assert (len(year["series"]), year["series"][0]) == (365, {"day": "2025-03-11", **NOTHING})
        assert (len(month["series"]), month["series"][0]) == (30, {"day": "2026-02-09", **NOTHING})
        assert (year["totals"], year["uncounted_days"]) == (NOTHING, 0)

    async def test_of_one_user_who_was_active_often_count_it_once(self, client: AsyncClient, admin: Headers) -> None:
        ada = await sign_in(await make_user())
        for hour in (0, 12, 23):
            moment = datetime.combine(YESTERDAY, time(hour, 59, 59), UTC)
            actor = {"kind": "user", "id": ada.id, "name": "ada"}
            await event_on(moment, actor=actor, action="session:refreshed")

        await statistics_service.refresh()

        assert [row["active_users"] for row in (await stats(client, admin, 3))["series"]] == [0, 1, 0]

    async def test_take_users_for_active_whose_messages_a_service_key_writes(
        self, client: AsyncClient, admin: Headers
    ) -> None:
        ada, bob = await make_user(), await make_user()
        conversation, key = await make_conversation(ada, bob), await make_api_key("write")
        for body in ({"user_id": str(ada.id)}, {"user_id": str(bob.id)}, {"role": "assistant"}):
            path = f"/api/v1/conversations/{conversation.id}/messages"
            written = await client.post(path, json={"content": "Tea", **body}, headers=key.headers)
            assert written.status_code == 201, written.text
        await move_to(TODAY)

        await statistics_service.refresh()

        assert (await stats(client, admin, 1))["totals"]["active_users"] == 2


class TestRefreshing:
    async def test_goes_on_where_it_was_cut_off(
        self, client: AsyncClient, admin: Headers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for day in (BEFORE, YESTERDAY, TODAY):
            await event_on(datetime.combine(day, time(1), UTC))
        count = crud_statistics.count

        async def die_at_the_second(day: date) -> Counts:
            if day == YESTERDAY:
                raise asyncio.CancelledError
            return await count(day)

        monkeypatch.setattr(crud_statistics, "count", die_at_the_second)
        with pytest.raises(asyncio.CancelledError):
            await statistics_service.refresh()
        assert await users_on(client, admin, BEFORE, YESTERDAY, TODAY) == [0, 0, 1]

        monkeypatch.setattr(crud_statistics, "count", count)
        assert await statistics_service.refresh() == Refreshed(counted=3, left=0)
        assert await users_on(client, admin, BEFORE, YESTERDAY, TODAY) == [1, 1, 1]
        assert await statistics_service.refresh() == Refreshed(counted=1, left=0)

    async def test_fills_an_old_database_in_bounded_steps(
        self, client: AsyncClient, admin: Headers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(statistics_service, "_STEPS", 2)
        for day in (BEFORE, TODAY):
            await event_on(datetime.combine(day, time(1), UTC))

        assert await statistics_service.refresh() == Refreshed(counted=2, left=1)
        assert (await stats(client, admin, 365))["uncounted_days"] == 1
        assert await statistics_service.refresh() == Refreshed(counted=2, left=0)
        assert await users_on(client, admin, BEFORE, YESTERDAY, TODAY) == [1, 0, 1]

    async def test_twice_at_once_counts_once(self, client: AsyncClient, admin: Headers) -> None:
        for day in (BEFORE, TODAY):
            await event_on(datetime.combine(day, time(1), UTC))

        await asyncio.gather(*(statistics_service.refresh() for _ in range(3)))
        stale = datetime.combine(BEFORE, time(), UTC)
        await crud_statistics.keep({TODAY: Counts()}, counted_at=stale)  # by one who stood still meanwhile

        assert await users_on(client, admin, BEFORE, YESTERDAY, TODAY) == [1, 0, 1]
        assert (await stats(client, admin, 3))["refreshed_at"] == "2026-03-10T12:00:00Z"

    async def test_counts_what_came_late_until_a_day_after_its_end(
        self, client: AsyncClient, admin: Headers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        moments = ["10T23:58", "11T00:09", "11T00:10", "12T00:59", "12T01:00", "13T12:00"]
        for moment in moments:
            await event_on(datetime.combine(TODAY, time(23, 57), UTC))
            let_it_be(monkeypatch, datetime.fromisoformat(f"2026-03-{moment}:00+00:00"))
            await statistics_service.refresh()
            seen += await users_on(client, admin, TODAY)

        assert seen == [1, 1, 3, 3, 5, 5]

    async def test_looks_through_an_index_at_the_day_alone(
        self, client: AsyncClient, admin: Headers, profile: Profile
    ) -> None:
        await spend_the_first_day(client)
        await move_to(BEFORE)
        for name, field in (("audit_events", "time"), ("usage_counters", "expires_at"), ("messages", "")):
            raw = profile.database[name].find_one() or {}
            long_ago = {field: datetime(2024, 1, 1, tzinfo=UTC)} if field else {}
            ids = [ObjectId.from_datetime(datetime(2024, 1, 1, 0, 0, second, tzinfo=UTC)) for second in range(50)]
            profile.database[name].insert_many(
                [raw | long_ago | {"_id": each, "user_id": each, "conversation_id": each} for each in ids]
            )
        profile.database.command("profile", 2)
        await statistics_service.refresh()
        profile.database.command("profile", 0)

        counted = {"audit_events", "usage_counters", "messages"}
        plans = list(profile.database["system.profile"].find({"planSummary": {"$exists": True}}))
        plans = [plan for plan in plans if plan["ns"].partition(".")[2] in counted]
        looked_at = [max(plan.get("docsExamined", 0), plan.get("keysExamined", 0)) for plan in plans]
        assert {plan["planSummary"].partition(" ")[0] for plan in plans} == {"IXSCAN", "COUNT_SCAN"}
        assert max(looked_at) <= 12
        assert await users_on(client, admin, BEFORE) == [2]


async def test_hold_nothing_of_anybody(client: AsyncClient) -> None:
    await spend_the_first_day(client)
    await move_to(BEFORE)
    await statistics_service.refresh()

    raw = await DailyStatistics.get_pymongo_collection().find_one({"_id": "2026-03-08"})
    assert raw is not None
    assert {name: type(value) for name, value in raw.items()} == {
        "_id": str,
        "counted_at": datetime,
        **dict.fromkeys(NOTHING, int),
    }
