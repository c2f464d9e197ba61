"""The clock of the host jumps by an hour, forwards and backwards, while clients go on as they were."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest
from httpx import AsyncClient

from app.core.scopes import Role
from app.models.job import Job
from app.models.message import Message
from app.services import job_service
from tests.api.test_errors import assert_problem
from tests.conftest import Serve
from tests.factories import SignedInUser, make_conversation, make_signed_in
from tests.scraping import scrape
from tests.services.test_jobs import Tidied, kind_of

HOUR = timedelta(hours=1)
Jump = Callable[[timedelta], None]


class _IsDatetime(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, datetime)


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Let everything that reads the wall clock here read one that is so far off."""
    off = timedelta()

    class Clock(metaclass=_IsDatetime):
        @staticmethod
        def now(tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + off

    def to(by: timedelta) -> None:
        nonlocal off
        off = by

    monkeypatch.setattr("app.core.clock.datetime", Clock)
    monkeypatch.setattr("jwt.api_jwt.datetime", Clock)
    return to


async def tokens_of(client: AsyncClient, user: SignedInUser) -> dict[str, Any]:
    account = {"email": user.document.email, "password": user.password}
    answer = await client.post("/api/v1/auth/login", json=account)
    assert answer.status_code == 200
    tokens: dict[str, Any] = answer.json()
    return tokens


async def refresh(client: AsyncClient, tokens: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert answer.status_code == 200, answer.text
    fresh: dict[str, Any] = answer.json()
    return fresh


async def who(client: AsyncClient, tokens: dict[str, Any]) -> Any:
    return await client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})


class TestTokens:
    async def test_are_refreshed_across_jumps(self, serve: Serve, jump: Jump) -> None:
        async with serve(auth_cache_seconds=0) as client:
            tokens = await tokens_of(client, await make_signed_in())

            jump(HOUR)
            assert_problem(await who(client, tokens), 401, "token_expired")
            ahead = await refresh(client, tokens)
            assert (await who(client, ahead)).status_code == 200

            jump(timedelta())
            assert_problem(await who(client, ahead), 401, "invalid_token")  # it is of a time to come
            now = await refresh(client, ahead)
            assert (await who(client, now)).status_code == 200

            jump(-HOUR)
            behind = await refresh(client, now)
            assert (await who(client, behind)).status_code == 200

    async def test_of_a_host_that_is_four_seconds_ahead_are_good(self, client: AsyncClient, jump: Jump) -> None:
        jump(timedelta(seconds=4))
        tokens = await tokens_of(client, await make_signed_in())

        jump(timedelta())
        assert (await who(client, tokens)).status_code == 200

    async def test_that_were_spent_are_known_as_stolen_after_the_clock_was_put_back(
        self, client: AsyncClient, jump: Jump
    ) -> None:
        tokens = await tokens_of(client, await make_signed_in())
        await refresh(client, tokens)

        jump(-HOUR)
        again = await client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})

        assert_problem(again, 401, "token_revoked")


class TestWriting:
    async def test_goes_on_in_order_and_once(self, client: AsyncClient, jump: Jump) -> None:
        ada = await make_signed_in()
        path = f"/api/v1/conversations/{(await make_conversation(ada)).id}"
        answers = []
        for at, by in enumerate((timedelta(), HOUR, -HOUR, timedelta())):
            jump(by)
            for _ in range(2):  # of which the second is a repetition
                headers = {**ada.headers, "Idempotency-Key": f"key-{at}"}
                answers.append(await client.post(f"{path}/messages", json={"content": f"cup {at}"}, headers=headers))
            jump(timedelta())
            headers = {**ada.headers, "Idempotency-Key": f"key-{at}"}
            answers.append(await client.post(f"{path}/messages", json={"content": f"cup {at}"}, headers=headers))

        rows, url = [], f"{path}/messages?limit=1"
        while url:
            page = await client.get(url, headers=ada.headers)
            rows += page.json()
            url = page.links.get("next", {}).get("url", "")

        assert [answer.status_code for answer in answers] == [201] * 12
        assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"] * 4
        assert [row["seq"] for row in rows] == [1, 2, 3, 4]
        assert [row["content"] for row in rows] == ["cup 0", "cup 1", "cup 2", "cup 3"]
        assert await Message.count() == 4

    async def test_leaves_the_trail_whole(self, client: AsyncClient, jump: Jump) -> None:
        superuser = await make_signed_in(role="superuser")
        for at, by in enumerate((timedelta(), HOUR, -HOUR)):
            jump(by)
            created = await client.post("/api/v1/items", json={"title": f"cup {at}"}, headers=superuser.headers)
            assert created.status_code == 201
        jump(timedelta())

        rows, url = [], "/api/v1/admin/audit-events?action=item:created&limit=1"
        while url:
            page = await client.get(url, headers=superuser.headers)
            assert page.status_code == 200
            rows += page.json()
            url = page.links.get("next", {}).get("url", "")

        times = [row["time"] for row in rows]
        assert len({row["id"] for row in rows}) == len(rows) == 3
        assert times == sorted(times, reverse=True)


@pytest.mark.usefixtures("client")
class TestJobs:
    @pytest.mark.parametrize("by", [HOUR, -HOUR])
    async def test_are_due_by_the_clock_of_the_database(self, jump: Jump, by: timedelta) -> None:
        async def tidy() -> Tidied:
            return Tidied(1)

        jump(by)
        await job_service.request("tidy")
        await job_service.run_job(kind_of(tidy), "a host whose clock is off")

        job = await Job.get("tidy")
        assert job is not None
        assert timedelta(minutes=59) < job.due_at - datetime.now(UTC) < timedelta(minutes=61)

    @pytest.mark.parametrize("by", [HOUR, -HOUR])
    async def test_are_shown_by_the_clock_of_the_database(
        self, serve: Serve, jump: Jump, by: timedelta, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job_service, "LOOK_EVERY", HOUR)  # or what is due would be begun
        now, minute = datetime.now(UTC), timedelta(minutes=1)
        held = {"holder": "host:1", "leased_until": now + minute}
        async with serve(auth_cache_seconds=0) as client:
            await Job(id="prune_logs", due_at=now - 5 * minute, **held).insert()
            await Job(id="prune_audit", due_at=now + minute).insert()
            await Job(id="expire_keys", due_at=now - 5 * minute).insert()
            await Job(id="seal_audit", due_at=now - minute).insert()
            await Job(id="of_an_older_version", due_at=now - 5 * minute, succeeded_at=now).insert()
            jump(by)
            admin = (await make_signed_in(role=Role.ADMIN)).headers
            listed = (await client.get("/api/v1/admin/jobs", headers=admin)).json()
            shown = (await client.get("/api/v1/admin/system", headers=admin)).json()["jobs"]
            metrics = await scrape(client)

        assert [job["name"] for job in listed if job["is_running"]] == ["prune_logs"]
        assert (shown["running"], shown["overdue"]) == (["prune_logs"], ["expire_keys"])
        assert metrics.value("octopus_jobs_due") == 2
        assert metrics.labels("octopus_job_last_success_timestamp_seconds", "task") == set()
