"""Running jobs: each when it is due, in one process at a time however many there are.

A lease in the database says who is at a job. Its holder prolongs it; when the holder dies, another process takes the
job over as soon as the lease has run out. So a job may be cut off anywhere, and must be one that can go on from there.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from apscheduler.triggers.base import BaseTrigger

from app.core.exceptions import AppError
from app.core.logging_config import get_logger
from app.core.meanwhile import prolong_until_lost
from app.core.metrics import JOB_SECONDS
from app.core.principal import Principal
from app.core.tasks import is_cancelled
from app.crud import crud_job
from app.db.mongo import after_commit, transactional
from app.models.enums import AuditAction, JobOutcome
from app.services import audit_service

# Whoever dies is followed by another after the lease and one look: within 30 s.
LEASE: Final = timedelta(seconds=20)
LOOK_EVERY: Final = timedelta(seconds=5)

_log = get_logger(__name__)


class Done(Protocol):
    """What a job has done, as numbers for an administrator: any named tuple."""

    def _asdict(self) -> dict[str, Any]: ...


class JobType(NamedTuple):
    """A kind of work, and when it is due."""

    name: str
    description: str
    schedule: str
    trigger: BaseTrigger
    run: Callable[[], Awaitable[Done]]


class _Awoken:
    """The event that lets the runner of this process look at once, while there is one."""

    event: asyncio.Event | None = None


async def request(name: str) -> None:
    """Have a job run as soon as somebody is free for it: once more when it is running."""
    after_commit(_wake)
    await crud_job.make_due(name)


@transactional
async def run_now(name: str, *, by: Principal) -> None:
    """The same, for an administrator."""
    await request(name)
    await audit_service.record(AuditAction.JOB_REQUESTED, by=by, target=("job", None), name=name)


async def run_jobs(types: Sequence[JobType]) -> None:
    """Run each job when it is due, unless another process does, until cancelled. What is under way is cut off then."""
    runner = _Runner(types)
    _Awoken.event = asyncio.Event()
    try:
        while not is_cancelled():
            await _until_next_look(_Awoken.event)
            await runner.look()
    finally:
        _Awoken.event = None
        await runner.stop()


async def _until_next_look(awoken: asyncio.Event) -> None:
    """By the clock of the event loop: a wall clock that is put back by an hour would have nobody look for an hour."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_EVERY.total_seconds()):
            await awoken.wait()
    awoken.clear()


class _Runner:
    def __init__(self, types: Sequence[JobType]) -> None:
        self._types = {each.name: each for each in types}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._is_complete = False
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"  # a container is always process 1

    async def look(self) -> None:
        """Begin what is due. A database that is away is tried again at the next look."""
        try:
            if not self._is_complete:
                await crud_job.add_missing(list(self._types))
                self._is_complete = True
            due = await crud_job.due()
        except Exception as error:  # noqa: BLE001 - the database is away, say
            _log.warning("jobs_not_seen", error=type(error).__name__)
            return
        for name in due:
            if name in self._types and name not in self._running:
                task = asyncio.create_task(run_job(self._types[name], self._holder), name=f"job {name}")
                self._running[name] = task
                task.add_done_callback(partial(self._forget, name))

    def _forget(self, name: str, _: asyncio.Task[None]) -> None:
        del self._running[name]

    async def stop(self) -> None:
        """Cut off what is under way. Its leases are given back, so that others go on at once."""
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=LEASE.total_seconds() / 4)


async def run_job(kind: JobType, holder: str) -> None:
    """Run it, when it is due and nobody else is at it, and note how that went."""
    try:
        asked_at = time.monotonic()
        if (claimed := await crud_job.claim(kind.name, holder, LEASE)) is None or claimed.started_at is None:
            return
        begun_at = time.monotonic()
        outcome, result, error = await _outcome_of(kind, holder, asked_at)
        JOB_SECONDS.observe(time.monotonic() - asked_at, kind.name, outcome)
        now = claimed.started_at + timedelta(seconds=time.monotonic() - begun_at)
        next_at = None if outcome is JobOutcome.INTERRUPTED else kind.trigger.get_next_fire_time(now, now)
        await crud_job.finish(kind.name, holder, outcome, due_at=next_at, result=result, error=error)
    except Exception as error:  # noqa: BLE001 - the lease runs out, and somebody tries again
        _log.warning("job_not_noted", job=kind.name, error=type(error).__name__)


async def _outcome_of(kind: JobType, holder: str, asked_at: float) -> tuple[JobOutcome, dict[str, Any], str | None]:
    work: asyncio.Task[Done] = asyncio.ensure_future(kind.run())
    keeper = asyncio.create_task(_keep_lease(kind.name, holder, asked_at, work))
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        work.cancel()
        await asyncio.wait([work])
    finally:
        keeper.cancel()
    if work.cancelled():
        return JobOutcome.INTERRUPTED, {}, None
    if (error := work.exception()) is not None:
        is_told = isinstance(error, AppError)  # its message says all there is
        _log.error("job_failed", job=kind.name, reason=str(error), exc_info=None if is_told else error)
        return JobOutcome.FAILURE, {}, type(error).__name__
    is_cut_short = work.cancelling() > 0  # it may have ended by itself when it was told to
    return JobOutcome.INTERRUPTED if is_cut_short else JobOutcome.SUCCESS, work.result()._asdict(), None


async def _keep_lease(name: str, holder: str, asked_at: float, work: "asyncio.Task[Any]") -> None:
    """Prolong the lease while the work goes on; end the work when the lease is lost: somebody else is at it then."""
    prolong = partial(crud_job.prolong, name, holder, LEASE)
    await prolong_until_lost(prolong, seconds=LEASE.total_seconds(), asked_at=asked_at)
    _log.warning("job_lease_lost", job=name)
    work.cancel()


def _wake() -> None:
    if _Awoken.event is not None:
        _Awoken.event.set()
