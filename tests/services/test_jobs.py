"""Jobs run when they are due, in one process at a time, and go on when that process is gone."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import NamedTuple

import pytest
from apscheduler.triggers.interval import IntervalTrigger

from app.core.clock import utc_now
from app.crud import crud_job
from app.db.mongo import connected
from app.models.enums import JobOutcome
from app.models.job import Job
from app.services import job_service
from app.services.job_service import JobType, run_job, run_jobs
from app.services.jobs import JOBS
from tests.test_project_files import ROOT

HANGS = """
import asyncio, sys
from datetime import timedelta
from app.core.config import Settings, use_settings
from app.db.mongo import connected
from app.services import job_service
from tests.services.test_jobs import kind_of

async def hang():
    print("running", flush=True)
    await asyncio.Event().wait()

async def main():
    use_settings(Settings(_env_file=None, environment="test"))
    job_service.LEASE = job_service.LOOK_EVERY = timedelta(seconds=1)
    async with connected(sys.argv[1]):
        await job_service.request("tidy")
        await job_service.run_jobs([kind_of(hang)])

asyncio.run(main())
"""


class Tidied(NamedTuple):
    tidied: int


Work = Callable[[], Awaitable[Tidied]]


def kind_of(run: Work) -> JobType:
    return JobType("tidy", "Tidies up.", "every hour", IntervalTrigger(hours=1), run)


class Counted:
    """Work that counts its runs, and waits each time until it is let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()
        self.was_cut_off = False

    async def __call__(self) -> Tidied:
        self.runs += 1
        self.begun.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.was_cut_off = True
            raise
        return Tidied(self.runs)


@pytest.fixture(autouse=True)
async def database(database_url: str) -> AsyncIterator[None]:
    async with connected(database_url):
        yield


@pytest.fixture
async def work() -> Counted:
    return Counted()


async def stored() -> Job:
    job = await Job.get("tidy")
    assert job is not None
    return job


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await is_so():  # noqa: ASYNC110 - it is the database that changes
            await asyncio.sleep(0.01)


async def is_done() -> bool:
    return (await stored()).outcome is not None


class TestRun:
    async def test_is_noted_with_what_it_did_and_when_it_is_due_again(self, work: Counted) -> None:
        await job_service.request("tidy")
        work.let_go.set()
        before = utc_now()

        await run_job(kind_of(work), "here")

        job = await stored()
        assert (job.outcome, job.result, job.error) == (JobOutcome.SUCCESS, {"tidied": 1}, None)
        assert (job.holder, job.leased_until) == (None, None)
        assert job.started_at is not None
        assert job.finished_at is not None
        assert job.started_at <= job.finished_at
        assert job.duration_ms is not None
        assert 0 <= job.duration_ms < 5000
        assert timedelta(minutes=59) < job.due_at - before < timedelta(minutes=61)

    async def test_is_left_alone_while_it_is_not_due(self, work: Counted) -> None:
        await job_service.request("tidy")
        work.let_go.set()
        await run_job(kind_of(work), "here")

        await run_job(kind_of(work), "here")

        assert work.runs == 1

    async def test_is_one_of_many_who_try_at_once(self, work: Counted) -> None:
        await job_service.request("tidy")
        work.let_go.set()

        await asyncio.gather(*(run_job(kind_of(work), f"host {number}") for number in range(20)))

        assert work.runs == 1

    async def test_that_fails_says_what_kind_of_error_it_was_and_is_due_again_later(self) -> None:
        async def fail() -> Tidied:
            raise ValueError("with a secret in it")

        await job_service.request("tidy")

        await run_job(kind_of(fail), "here")

        job = await stored()
        assert (job.outcome, job.result, job.error) == (JobOutcome.FAILURE, {}, "ValueError")
        assert job.due_at > utc_now() + timedelta(minutes=59)

    async def test_that_ends_because_it_was_told_to_is_not_done(self, work: Counted) -> None:
        async def end() -> Tidied:
            try:
                return await work()
            except asyncio.CancelledError:  # as the driver may swallow it
                return Tidied(7)

        await job_service.request("tidy")
        running = asyncio.create_task(run_job(kind_of(end), "here"))
        await asyncio.wait_for(work.begun.wait(), 5)

        running.cancel()
        await asyncio.wait([running], timeout=5)

        job = await stored()
        assert (job.outcome, job.result) == (JobOutcome.INTERRUPTED, {"tidied": 7})
        assert await crud_job.due() == ["tidy"]

    async def test_is_due_at_once_when_it_was_asked_for_meanwhile(self, work: Counted) -> None:
        await job_service.request("tidy")
        running = asyncio.create_task(run_job(kind_of(work), "here"))
        await asyncio.wait_for(work.begun.wait(), 5)

        await job_service.request("tidy")
        assert await crud_job.due() == []  # somebody is at it
        work.let_go.set()
        await running

        assert await crud_job.due() == ["tidy"]


class TestLease:
    def test_lets_another_take_over_within_thirty_seconds(self) -> None:
        assert timedelta(seconds=30) >= job_service.LEASE + job_service.LOOK_EVERY

    async def test_is_prolonged_while_the_work_goes_on(self, work: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(job_service, "LEASE", timedelta(seconds=0.4))
        await job_service.request("tidy")
        running = asyncio.create_task(run_job(kind_of(work), "here"))
        await asyncio.wait_for(work.begun.wait(), 5)
        first = (await stored()).leased_until
        assert first is not None

        async def is_past_the_first_lease() -> bool:
            now = (await stored()).leased_until
            return now is not None and now > first + timedelta(seconds=0.4)

        await until(is_past_the_first_lease)
        await run_job(kind_of(work), "another")
        work.let_go.set()
        await running

        assert (work.runs, (await stored()).outcome) == (1, JobOutcome.SUCCESS)

    async def test_that_was_lost_ends_the_work_and_leaves_the_job_to_the_other(
        self, work: Counted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job_service, "LEASE", timedelta(seconds=0.4))
        await job_service.request("tidy")
        running = asyncio.create_task(run_job(kind_of(work), "here"))
        await asyncio.wait_for(work.begun.wait(), 5)

        later = utc_now() + timedelta(minutes=1)
        await Job.find_one({"_id": "tidy"}).update({"$set": {"holder": "another", "leased_until": later}})
        await asyncio.wait_for(running, 5)

        assert work.was_cut_off
        job = await stored()
        assert (job.holder, job.outcome) == ("another", None)

    async def test_is_as_long_as_the_database_says_however_late_it_says_so(
        self, work: Counted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job_service, "LEASE", timedelta(seconds=0.4))
        claim, asked = crud_job.claim, []

        async def claim_slowly(name: str, holder: str, lease: timedelta) -> Job | None:
            job = await claim(name, holder, lease)
            await until(lambda: _is_due("tidy"))  # the answer is that long on its way
            return job

        async def prolong(*_: object) -> bool:
            asked.append(1)
            return True

        monkeypatch.setattr(crud_job, "claim", claim_slowly)
        monkeypatch.setattr(crud_job, "prolong", prolong)
        await job_service.request("tidy")

        await asyncio.wait_for(run_job(kind_of(work), "here"), 5)

        assert (work.was_cut_off or work.runs == 0, asked) == (True, [])

    async def test_ends_in_time_also_when_nothing_answers(self, work: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
        async def hang(*_: object) -> bool:
            await asyncio.Event().wait()
            return True

        monkeypatch.setattr(job_service, "LEASE", timedelta(seconds=0.4))
        monkeypatch.setattr(crud_job, "prolong", hang)
        await job_service.request("tidy")

        await asyncio.wait_for(run_job(kind_of(work), "here"), 5)

        assert work.was_cut_off

    async def test_that_ran_out_is_free(self, work: Counted) -> None:
        await job_service.request("tidy")
        assert await crud_job.claim("tidy", "dead", timedelta(milliseconds=1)) is not None

        await until(lambda: _is_due("tidy"))
        work.let_go.set()
        await run_job(kind_of(work), "here")

        assert (work.runs, (await stored()).outcome) == (1, JobOutcome.SUCCESS)


async def _is_due(name: str) -> bool:
    return name in await crud_job.due()


class TestRunner:
    async def test_runs_what_is_due_and_what_is_asked_for(self, work: Counted) -> None:
        work.let_go.set()
        runner = asyncio.create_task(run_jobs([kind_of(work)]))
        await until(_is_listening)
        for number in (1, 2, 3):
            await job_service.request("tidy")
            await until(lambda number=number: _has_run(number))  # type: ignore[misc]

        runner.cancel()
        await asyncio.wait_for(asyncio.wait([runner]), 5)

        assert work.runs == 3

    async def test_looks_by_itself(self, work: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(job_service, "LOOK_EVERY", timedelta(seconds=1))
        work.let_go.set()

        runner = asyncio.create_task(run_jobs([kind_of(work)]))  # which the database has not heard of
        await asyncio.wait_for(work.begun.wait(), 5)

        runner.cancel()
        await asyncio.wait_for(asyncio.wait([runner]), 5)

    async def test_that_stops_gives_its_leases_back(self, work: Counted) -> None:
        runner = asyncio.create_task(run_jobs([kind_of(work)]))
        await until(_is_listening)
        await job_service.request("tidy")
        await asyncio.wait_for(work.begun.wait(), 5)

        runner.cancel()
        await asyncio.wait_for(asyncio.wait([runner]), 5)

        job = await stored()
        assert (work.was_cut_off, job.outcome, job.leased_until) == (True, JobOutcome.INTERRUPTED, None)
        assert await crud_job.due() == ["tidy"]

    async def test_that_is_killed_is_followed_by_another(
        self, database_url: str, work: Counted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed = subprocess.Popen(  # noqa: ASYNC220, S603 - our own code
            [sys.executable, "-c", HANGS, database_url], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert killed.stdout is not None
        assert await asyncio.to_thread(killed.stdout.readline) == "running\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        killed.stdout.close()
        assert (await stored()).holder is not None

        monkeypatch.setattr(job_service, "LOOK_EVERY", timedelta(seconds=1))
        work.let_go.set()
        runner = asyncio.create_task(run_jobs([kind_of(work)]))
        await until(is_done)
        runner.cancel()
        await asyncio.wait_for(asyncio.wait([runner]), 5)

        assert (work.runs, (await stored()).outcome) == (1, JobOutcome.SUCCESS)


async def _is_listening() -> bool:
    return job_service._Awoken.event is not None


async def _has_run(times: int) -> bool:
    job = await Job.get("tidy")
    return job is not None and job.outcome is not None and job.result == {"tidied": times}


def test_every_job_has_a_name_of_its_own_and_a_description() -> None:
    assert len({kind.name for kind in JOBS}) == len(JOBS) > 0
    assert all(kind.description.endswith(".") for kind in JOBS)
