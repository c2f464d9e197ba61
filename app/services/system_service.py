"""How every part of the system is: all are asked at once, and each has the same short time to answer."""

import asyncio
import platform
import time
from collections.abc import Callable, Coroutine
from functools import cache, partial
from importlib.metadata import version
from typing import Any, Final, TypeVar

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.version import VERSION
from app.crud import crud_system
from app.schemas import system as sections
from app.schemas.system import Section, SystemRead, SystemVersions
from app.services import system_probes as probes
from app.services.system_probes import Facts

S = TypeVar("S", bound=Section)
Probe = Callable[[], Coroutine[Any, Any, Facts | None]]

PATIENCE: Final = 2.0  # seconds
_LIBRARIES: Final = ("beanie", "fastapi", "pydantic", "pymongo", "starlette", "uvicorn")


async def inspect(job_names: frozenset[str]) -> SystemRead:
    """The whole of it, within the time that one part has."""
    asked = {
        "process": _ask(sections.ProcessSection, probes.process),
        "database": _ask(sections.DatabaseSection, crud_system.facts),
        "storage": _ask(sections.StorageSection, probes.storage),
        "scanner": _ask(sections.ScannerSection, probes.scanner),
        "mail": _ask(sections.MailSection, probes.mail),
        "outbox": _ask(sections.OutboxSection, probes.outbox),
        "rate_limits": _ask(sections.RateLimitSection, probes.rate_limits),
        "assistant": _ask(sections.AssistantSection, probes.assistant),
        "disk": _ask(sections.DiskSection, probes.disk),
        "jobs": _ask(sections.JobsSection, partial(probes.jobs, job_names)),
        "audit": _ask(sections.AuditSection, probes.audit),
    }
    found: dict[str, Any] = dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
    return SystemRead(
        environment=get_settings().environment,
        time=utc_now(),
        versions=SystemVersions(
            octopus=VERSION,
            python=platform.python_version(),
            mongodb=found["database"].version,
            libraries=_libraries(),
        ),
        **found,
    )


async def _ask(kind: type[S], probe: Probe) -> S:
    """What a part says. That of one that is away tells which kind of error it was, and no more: not where it is."""
    begun_at = time.monotonic()
    try:
        facts = await _within_patience(probe())
    except Exception as error:  # noqa: BLE001 - whatever it is, the part is away
        return _section(kind, {"status": "unavailable", "error": type(error).__name__})
    if facts is None:
        return _section(kind, {"status": "off"})
    latency = round((time.monotonic() - begun_at) * 1000, 2)
    return _section(kind, {"status": "ok", "latency_ms": latency, **facts})


async def _within_patience(work: Coroutine[Any, Any, Facts | None]) -> Facts | None:
    """Not by a time-out in the task itself: the driver may swallow the cancellation, and go on waiting."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(_hear)
    try:
        await asyncio.wait({task}, timeout=PATIENCE)
    finally:
        task.cancel()
    if not task.done():
        raise TimeoutError
    return task.result()


def _hear(task: "asyncio.Task[Any]") -> None:
    """Of one that is late nobody else hears how it ended."""
    if not task.cancelled():
        task.exception()


def _section(kind: type[S], facts: Facts) -> S:
    return kind(**{**dict.fromkeys(kind.model_fields), **facts})


@cache
def _libraries() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}
