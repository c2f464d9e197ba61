"""What a scrape answers: what all workers have counted, what waits in each, and what waits in the database."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import accumulate
from pathlib import Path
from platform import python_version
from typing import Final

import psutil
from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from app.core import background, metrics
from app.core.logging_config import get_logger
from app.core.meters import Counter, Histogram, Meter, Rows
from app.core.shared_answer import SharedAnswer
from app.core.version import VERSION
from app.core.worker_metrics import Sum, WorkerMetrics
from app.crud import crud_job, crud_queue
from app.crud.crud_job import JobState
from app.db.pool import current_pool
from app.services import external_api, key_usage_service, refusal_service
from app.services.health_service import Checks
from app.services.jobs import JOB_NAMES

_PUBLISHED_EVERY_SECONDS: Final = 1.0
REMEMBERED_SECONDS = 2.0
_PATIENCE_SECONDS: Final = 3.0

_log = get_logger(__name__)


class Scraper:
    """Of one application."""

    def __init__(self, folder: Path | None, health: SharedAnswer[Checks]) -> None:
        self._workers = WorkerMetrics(metrics.METERS, folder)
        self._health = health
        self._stored = SharedAnswer(self._ask, seconds=REMEMBERED_SECONDS)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let the other workers see what this one counts, until the end of the block."""
        if not self._workers.is_shared:
            yield
            return
        await self._publish()
        publisher = asyncio.create_task(self._publish_forever(), name="metrics")
        try:
            yield
        finally:
            publisher.cancel()
            await asyncio.wait([publisher])
            with suppress(OSError):  # nobody is kept from stopping by a disk that is full
                await asyncio.to_thread(self._workers.close, self._counted())

    async def scrape(self, *, is_openmetrics: bool) -> bytes:
        stored, counted = await self._stored.get(), self._counted()
        return await asyncio.to_thread(self._written, counted, stored, is_openmetrics)

    async def _publish_forever(self) -> None:
        while True:
            await asyncio.sleep(_PUBLISHED_EVERY_SECONDS)
            await self._publish()

    async def _publish(self) -> None:
        try:
            await asyncio.to_thread(self._workers.publish, self._counted())
        except OSError as error:  # nobody is kept from serving by a disk that is full
            _log.warning("metrics_not_published", error=type(error).__name__)

    def _counted(self) -> dict[str, Rows]:
        _measure_levels()
        return self._workers.counted()

    def _written(self, counted: dict[str, Rows], stored: list[Family], is_openmetrics: bool) -> bytes:  # noqa: FBT001
        total = self._workers.sum(counted)
        registry = CollectorRegistry()
        registry.register(_Written([*_families(total), *stored, *_about_processes(total), _about_build()]))
        write = generate_openmetrics if is_openmetrics else generate_latest
        content: bytes = write(registry)
        return content

    async def _ask(self) -> list[Family]:
        """What the database knows. Without it the rest is answered all the same, and soon."""
        health = await self._health.get()
        up: list[Family] = [Gauge("octopus_database_up", "Whether the database answers.", health.database)]
        up.append(Gauge("octopus_storage_up", "Whether the storage of uploads answers.", health.storage))
        if not health.database:
            return up
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return up + await _queues()
        except Exception as error:  # noqa: BLE001 - of a scrape that finds no queues there is the rest
            _log.warning("queues_not_measured", error=type(error).__name__)
            return up


class _Written(Collector):
    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Sequence[Family]:
        return self._families


def _measure_levels() -> None:
    """What waits in this process. The rest of the levels are kept where they change."""
    metrics.KEY_USAGE.set(key_usage_service.pending())
    metrics.REFUSALS.set(refusal_service.waiting())
    metrics.BACKGROUND.set(background.count())
    pool = current_pool()
    metrics.POOL_IN_USE.set(pool.in_use)
    metrics.POOL_IDLE.set(pool.idle)
    metrics.POOL_AWAITED.set(pool.awaited)
    metrics.OPEN_CIRCUITS.set(external_api.get_api().has_open_circuit())


async def _queues() -> list[Family]:
    """One after the other: a scrape takes one connection of the pool, not all."""
    jobs = await crud_job.by_name(JOB_NAMES)
    return [
        Gauge("octopus_mails_due", "Mails that should be sent by now.", await crud_queue.mails_due()),
        Gauge("octopus_mails_failed", "Mails given up within 30 days.", await crud_queue.mails_failed()),
        Gauge("octopus_audit_events_unsealed", "Events without a place yet.", await crud_queue.unsealed_events()),
        *_about_jobs(jobs),
    ]


def _about_jobs(jobs: dict[str, JobState]) -> Iterator[Family]:
    due = sum(state.is_due for state in jobs.values())
    yield Gauge("octopus_jobs_due", "Jobs that should run and that nobody is at.", due)
    success = Gauge(
        "octopus_job_last_success_timestamp_seconds", "When a job has last gone well, anywhere.", labels=["task"]
    )
    took = Gauge("octopus_job_last_duration_seconds", "How long its last run took.", labels=["task"])
    for name, (job, *_) in jobs.items():
        if job.succeeded_at is not None:
            success.add_metric([name], job.succeeded_at.timestamp())
        if job.duration_ms is not None:
            took.add_metric([name], job.duration_ms / 1000)
    yield from (success, took)


def _families(total: Sum) -> Iterator[Family]:
    for meter in metrics.METERS:
        yield _family(meter, total.numbers.get(meter.name, {}))


def _family(meter: Meter, rows: Rows) -> Family:
    if isinstance(meter, Histogram):
        times = HistogramMetricFamily(meter.name, meter.meaning, labels=meter.labels)
        bounds = [*map(str, map(float, meter.bounds)), "+Inf"]
        for labels, row in rows.items():
            times.add_metric(labels, list(zip(bounds, accumulate(row[:-1]), strict=True)), row[-1])
        return times
    kind = CounterMetricFamily if isinstance(meter, Counter) else Gauge
    family = kind(meter.name, meter.meaning, labels=meter.labels)
    for labels, row in rows.items():
        family.add_metric(labels, row[0])
    return family


def _about_processes(total: Sum) -> Iterator[Family]:
    """Of each worker that lives. They are told apart by their processes, since a sum would shrink with one's end."""
    cpu = CounterMetricFamily("octopus_process_cpu_seconds", "Time of processors used.", labels=["pid"])
    memory = Gauge("octopus_process_resident_memory_bytes", "Memory in use.", labels=["pid"])
    files = Gauge("octopus_process_open_fds", "Open files and connections.", labels=["pid"])
    start = Gauge("octopus_process_start_time_seconds", "When it was started.", labels=["pid"])
    for pid in total.pids:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                cpu.add_metric([str(pid)], times.user + times.system)
                memory.add_metric([str(pid)], process.memory_info().rss)
                files.add_metric([str(pid)], process.num_fds())
                start.add_metric([str(pid)], process.create_time())
        except psutil.Error:  # it has just ended
            continue
    yield Gauge("octopus_workers", "Processes that answer requests.", len(total.pids))
    yield from (cpu, memory, files, start)


def _about_build() -> Family:
    info = Gauge("octopus_build_info", "What runs here.", labels=["version", "python"])
    info.add_metric([VERSION, python_version()], 1)
    return info
