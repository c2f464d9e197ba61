"""A look at the system every few minutes, for what is away and what soon will be: a warning in the log for each."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from app.core.logging_config import get_logger
from app.schemas.system import DiskSection, Section, SystemRead
from app.services import system_service

JOB: Final = "system_check"
_FULL: Final = 0.9
_MAILS_WAIT: Final = timedelta(minutes=15)
_EVENTS_WAIT: Final = timedelta(minutes=5)  # they are sealed every five seconds

_log = get_logger(__name__)

Finding = tuple[str, dict[str, Any]]


class Checked(NamedTuple):
    """What was found, in the words of the log; nothing when all is well."""

    findings: list[str]


async def check(job_names: frozenset[str]) -> Checked:
    """Tell of everything that needs somebody's attention."""
    system = await system_service.inspect(job_names)
    findings = [*_away(system), *_nearly_full(system), *_waiting(system), *_jobs(system)]
    for finding, facts in findings:
        _log.warning("system_check", finding=finding, **facts)
    return Checked([finding for finding, _ in findings])


def _away(system: SystemRead) -> Iterator[Finding]:
    for name in SystemRead.model_fields:
        section = getattr(system, name)
        if isinstance(section, Section) and section.status == "unavailable":
            yield f"{name}_unavailable", {"error": section.error}


def _nearly_full(system: SystemRead) -> Iterator[Finding]:
    disk, process = system.disk, system.process
    if _share(disk) > _FULL:
        yield "disk_nearly_full", {"free_bytes": disk.free_bytes, "total_bytes": disk.total_bytes}
    if (process.memory_used_bytes or 0) > _FULL * (process.memory_limit_bytes or float("inf")):
        yield "memory_nearly_full", {"bytes": process.memory_used_bytes, "limit_bytes": process.memory_limit_bytes}


def _share(disk: DiskSection) -> float:
    """How much of it is taken, of what this account may take."""
    used, free = disk.used_bytes or 0, disk.free_bytes or 0
    return used / (used + free) if used + free else 0.0


def _waiting(system: SystemRead) -> Iterator[Finding]:
    if _is_older(system.outbox.oldest_waiting_at, _MAILS_WAIT, system):
        yield "mails_waiting", {"count": system.outbox.waiting, "since": str(system.outbox.oldest_waiting_at)}
    if _is_older(system.audit.unsealed_since, _EVENTS_WAIT, system):
        yield "audit_unsealed", {"since": str(system.audit.unsealed_since)}


def _jobs(system: SystemRead) -> Iterator[Finding]:
    """But for this job itself: it is running."""
    for name in set(system.jobs.failed or ()) - {JOB}:
        yield "job_failed", {"job": name}
    for name in set(system.jobs.overdue or ()) - {JOB}:
        yield "job_overdue", {"job": name}


def _is_older(moment: datetime | None, age: timedelta, system: SystemRead) -> bool:
    return moment is not None and moment < system.time - age
