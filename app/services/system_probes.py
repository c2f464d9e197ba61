"""How each part of the system is asked how it is. None is what a part says that is not configured.

An error of whatever kind says that the part is away. Nobody here waits for long: `system_service` calls it off.
"""

import asyncio
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import aiosmtplib
import psutil

from app.core import shared_rate_limit
from app.core.circuit_breaker import CircuitOpenError
from app.core.clock import utc_now
from app.core.config import Settings, get_settings
from app.core.smtp_server import SmtpServer
from app.crud import crud_audit_event, crud_job, crud_queue
from app.models.enums import JobOutcome
from app.services.external_api import get_api
from app.services.scanner import scanner_of
from app.services.storage import get_storage

R = TypeVar("R")
Facts = dict[str, Any]


class _Group(NamedTuple):
    """Where a version of control groups says what a container may use, what it does, and how much of that is cache."""

    limit: str
    used: str
    statistics: str
    cache: str


_GROUPS: Final = (
    _Group("memory.max", "memory.current", "memory.stat", "inactive_file"),
    _Group(
        *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        *("memory/memory.stat", "total_inactive_file"),
    ),
)

# Of their own, so that a disk that hangs takes no thread away from anything else.
_threads: Final = ThreadPoolExecutor(2, thread_name_prefix="system")
_SMTP_SECONDS: Final = 2.0
_CONTROL_GROUP: Final = Path("/sys/fs/cgroup")


async def storage() -> Facts:
    await get_storage().check()
    settings = get_settings()
    if settings.azure_storage_connection_string is not None or settings.azure_storage_account_url is not None:
        return {"kind": "azure"}
    space = await _in_thread(lambda: shutil.disk_usage(_existing(settings.data_dir / "uploads")))
    return {"kind": "folder", "total_bytes": space.total, "free_bytes": space.free}


async def scanner() -> Facts | None:
    said = await scanner_of(get_settings()).version()
    if said is None:
        return None
    version, _, signatures = said.partition("/")
    number, _, made = signatures.partition("/")
    return {"version": version, "signatures": number or None, "signatures_of": made or None}


async def mail() -> Facts:
    """A server that greets is there. No password is shown to it: that would be one more log-in every few minutes."""
    url = get_settings().smtp_url
    if url is None:
        folder = get_settings().data_dir / "outbox"
        if not await _in_thread(lambda: os.access(_existing(folder), os.W_OK)):
            raise PermissionError
        return {"kind": "folder"}
    server = SmtpServer.parse(url.get_secret_value())
    client = aiosmtplib.SMTP(
        hostname=server.host, port=server.port, use_tls=server.is_tls, start_tls=False, timeout=_SMTP_SECONDS
    )
    try:
        await client.connect()
    finally:
        client.close()
    return {"kind": "smtp"}


async def outbox() -> Facts:
    waiting, failed = await asyncio.gather(crud_queue.mails_waiting(), crud_queue.mails_failed())
    return {"waiting": waiting.number, "oldest_waiting_at": waiting.since, "failed": failed}


async def rate_limits() -> Facts:
    settings = get_settings()
    if not settings.has_shared_rate_limits:
        return {"kind": "memory", "latency_ms": None}
    await shared_rate_limit.ping(settings.rate_limit_storage_url.get_secret_value())
    return {"kind": "redis"}


async def assistant() -> Facts | None:
    """It is not asked, since each answer would cost: what it did for the requests of this process tells enough."""
    settings = get_settings()
    if settings.assistant_base_url is None or settings.assistant_model is None:
        return None
    circuit = get_api().circuit_of(settings.assistant_base_url)
    faults = {"status": "unavailable", "error": CircuitOpenError.__name__} if circuit == "open" else {}
    return {"model": settings.assistant_model, "circuit": circuit, "latency_ms": None, **faults}


async def process() -> Facts:
    """Not in a thread, which might be waited for: the kernel answers at once, whatever the disk does."""
    return _this_process(get_settings())


async def disk() -> Facts:
    space = await _in_thread(lambda: shutil.disk_usage(_existing(get_settings().data_dir)))
    return {"total_bytes": space.total, "used_bytes": space.used, "free_bytes": space.free}


async def jobs(names: frozenset[str]) -> Facts:
    known = sorted((await crud_job.by_name(names)).items())
    return {
        "running": [name for name, state in known if state.is_held],
        "failed": [name for name, state in known if state.job.outcome is JobOutcome.FAILURE],
        "overdue": [name for name, state in known if state.is_overdue],
    }


async def audit() -> Facts:
    oldest = await crud_audit_event.unsealed(limit=1)
    return {"unsealed_since": oldest[0]["_id"].generation_time if oldest else None}


def _this_process(settings: Settings) -> Facts:
    me = psutil.Process()
    limit, used = _memory()
    with me.oneshot():
        started_at = datetime.fromtimestamp(int(me.create_time()), UTC)
        spent = me.cpu_times()
        return {
            "pid": me.pid,
            "workers": settings.workers,
            "started_at": started_at,
            "uptime_seconds": int((utc_now() - started_at).total_seconds()),
            "cpu_seconds": round(spent.user + spent.system, 2),
            "threads": me.num_threads(),
            "memory_bytes": me.memory_info().rss,
            "memory_used_bytes": used,
            "memory_limit_bytes": limit,
            "memory_free_bytes": psutil.virtual_memory().available,
        }


def _memory() -> tuple[int, int]:
    """What all processes of the container may use together, and what they do; of the host where it has no limit."""
    host = psutil.virtual_memory()
    for group in _GROUPS:
        limit = _text_of(group.limit)
        if limit.isdigit() and int(limit) < host.total:  # or it says `max`, or more than there is
            kept = dict(line.split() for line in _text_of(group.statistics).splitlines())
            return int(limit), int(_text_of(group.used)) - int(kept.get(group.cache, 0))
    return host.total, host.total - host.available


def _text_of(name: str) -> str:
    path = _CONTROL_GROUP / name
    return path.read_text().strip() if path.exists() else ""


def _existing(folder: Path) -> Path:
    """The folder, or the one in which it will be made."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


async def _in_thread(work: Callable[[], R]) -> R:
    return await asyncio.get_running_loop().run_in_executor(_threads, work)
