import asyncio

from httpx import AsyncClient

from app.core.clock import utc_now
from app.core.scopes import Role
from app.models.audit_event import AuditEvent
from app.models.deleted_user import DeletedUser
from app.models.job import Job
from tests.factories import archive, make_signed_in, make_user

JOBS = "/api/v1/admin/jobs"


class TestList:
    async def test_shows_what_there_is_before_anything_ran(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)

        listed = (await client.get(JOBS, headers=admin.headers)).json()

        (purge,) = [job for job in listed if job["name"] == "purge_deleted_users"]
        assert purge["schedule"] == "every 10 minutes"
        assert (purge["is_running"], purge["outcome"], purge["result"]) == (False, None, {})

    async def test_shows_who_is_at_it(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)
        later = utc_now().replace(year=2100)
        await Job(id="purge_deleted_users", due_at=utc_now(), holder="host:1", leased_until=later).insert()

        listed = (await client.get(JOBS, headers=admin.headers)).json()

        (purge,) = [job for job in listed if job["name"] == "purge_deleted_users"]
        assert (purge["is_running"], purge["holder"]) == (True, "host:1")


class TestRun:
    async def test_begins_at_once_and_is_shown_when_it_is_done(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)
        await archive(await make_user(), days_ago=30)

        asked = await client.post(f"{JOBS}/purge_deleted_users/run", headers=admin.headers)
        assert (asked.status_code, asked.json()["name"]) == (202, "purge_deleted_users")
        async with asyncio.timeout(10):
            while not (purge := (await client.get(JOBS, headers=admin.headers)).json()[0])["outcome"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        assert (purge["outcome"], purge["result"], purge["error"]) == ("success", {"purged": 1, "interrupted": 0}, None)
        assert await DeletedUser.count() == 0

    async def test_is_recorded(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)

        await client.post(f"{JOBS}/purge_deleted_users/run", headers=admin.headers)

        (event,) = await AuditEvent.find({"action": "job:requested"}).to_list()
        assert (event.actor.id, event.target.kind, event.details) == (admin.id, "job", {"name": "purge_deleted_users"})

    async def test_of_what_is_no_job_is_not_found(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)

        response = await client.post(f"{JOBS}/indexes/run", headers=admin.headers)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert await Job.count() == 0
