"""What administrators see of the system when all is well, and when everything is away at once."""

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from bson import ObjectId
from httpx import AsyncClient
from structlog.testing import capture_logs

from app.core.clock import utc_now
from app.core.scopes import Role
from app.db import change_feed
from app.db.mongo import get_database
from app.models.audit_event import AuditEvent
from app.models.enums import JobOutcome, MailKind
from app.models.job import Job
from app.models.outgoing_mail import OutgoingMail
from app.services import system_check_service, system_probes
from app.services.external_api import ExternalApiError, get_api
from app.services.jobs import JOB_NAMES
from tests.api.test_errors import OwnMongod, own_mongod
from tests.clamd_server import ClamdServer, clamd, running_clamd
from tests.conftest import SECRET, Serve
from tests.factories import make_signed_in
from tests.mailbox import Mailbox
from tests.redis_server import RedisServer, redis_server

__all__ = ["clamd", "own_mongod", "redis_server", "running_clamd"]  # the fixtures
SYSTEM = "/api/v1/admin/system"
ASSISTANT = {"assistant_base_url": "http://127.0.0.1:9/v1", "assistant_model": "parrot-1"}
FUTURE = utc_now().replace(year=2100, microsecond=0)
PARTS: tuple[str, ...] = (
    "process",
    "database",
    "storage",
    "scanner",
    "mail",
    "outbox",
    "rate_limits",
    "assistant",
    "disk",
)
PARTS = (*PARTS, "jobs", "audit")


MB, GB = 10**6, 10**9


class Usage(NamedTuple):
    total: int
    used: int
    free: int


async def system(client: AsyncClient, headers: dict[str, str]) -> Any:
    response = await client.get(SYSTEM, headers=headers)
    assert response.status_code == 200, response.text
    for hidden in (SECRET, "127.0.0.1", "smtp://", "redis://", "mongodb://", "/dev/shm", "pass-word"):  # noqa: S108
        assert hidden not in response.text
    return response.json()


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def statuses(shown: Any) -> dict[str, str]:
    return {name: shown[name]["status"] for name in PARTS}


def id_of(age: timedelta) -> ObjectId:
    return ObjectId.from_datetime(utc_now() - age)


async def let_things_wait() -> None:
    """A mail for an hour, an event for ten minutes; another mail was given up, one job has failed, one never began."""
    mail = {"kind": MailKind.PASSWORD_CHANGED, "due_at": FUTURE}
    await OutgoingMail(id=id_of(timedelta(hours=1)), **mail).insert()
    await OutgoingMail(id=id_of(timedelta(minutes=1)), **mail).insert()
    await OutgoingMail(id=id_of(timedelta(days=2)), **(mail | {"due_at": None}), failed_at=utc_now()).insert()
    await Job(id="seal_audit", due_at=FUTURE, outcome=JobOutcome.FAILURE).save()
    held = {"holder": "host:1", "leased_until": FUTURE}
    await Job(id="prune_logs", due_at=utc_now() - timedelta(hours=1), **held).save()
    await Job(id="of_an_older_version", due_at=utc_now() - timedelta(days=9), outcome=JobOutcome.FAILURE).insert()
    event = await AuditEvent.find_one({})
    assert event is not None
    raw = event.model_dump(exclude={"id"}) | {"_id": id_of(timedelta(minutes=10))}
    await get_database()["audit_events"].insert_one(raw)


def let_the_assistant_fail() -> None:
    with suppress(ExternalApiError), get_api()._attempt(httpx.URL(ASSISTANT["assistant_base_url"])):
        raise ExternalApiError("it does not answer")


@pytest.fixture
def silence() -> Iterator[int]:
    """A port at which somebody takes connections and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=20)) as server:
        yield server.getsockname()[1]


class TestSystem:
    async def test_shows_every_part_that_is_well(
        self, serve: Serve, mailbox: Mailbox, redis_server: RedisServer, clamd: ClamdServer
    ) -> None:
        scanner = {"clamav_host": "127.0.0.1", "clamav_port": clamd.port}
        async with serve(
            smtp_url=mailbox.url, rate_limit_storage_url=redis_server.url, **scanner, **ASSISTANT
        ) as client:
            admin = await make_signed_in(role=Role.ADMIN)
            await client.get(SYSTEM, headers=(await make_signed_in()).headers)  # a refusal, for an event
            await let_things_wait()
            shown = await system(client, admin.headers)

        assert statuses(shown) == dict.fromkeys(PARTS, "ok")
        assert shown["environment"] == "test"
        assert shown["versions"]["python"].startswith("3.")
        assert shown["versions"]["mongodb"] == shown["database"]["version"]
        assert shown["versions"]["libraries"]["pymongo"] == "4.20.0"
        assert (shown["database"]["state"], shown["database"]["members"]) == ("primary", 1)
        assert shown["database"]["connections"] > 0
        assert shown["database"]["index_bytes"] > shown["database"]["data_bytes"] > 0
        assert shown["scanner"]["version"].startswith("ClamAV ")
        assert (shown["mail"]["kind"], shown["rate_limits"]["kind"]) == ("smtp", "redis")
        assert (shown["outbox"]["waiting"], shown["outbox"]["failed"]) == (2, 1)
        assert utc_now() - timedelta(minutes=70) < moment(shown["outbox"]["oldest_waiting_at"])
        assert moment(shown["outbox"]["oldest_waiting_at"]) < utc_now() - timedelta(minutes=59)
        assert (shown["assistant"]["circuit"], shown["assistant"]["model"]) == ("closed", "parrot-1")
        assert shown["jobs"]["failed"] == ["seal_audit"]
        assert (shown["jobs"]["running"], shown["jobs"]["overdue"]) == (["prune_logs"], [])
        assert moment(shown["audit"]["unsealed_since"]) < utc_now() - timedelta(minutes=9)
        process = shown["process"]
        assert (process["pid"], process["workers"]) == (psutil.Process().pid, 1)
        assert 50_000_000 < process["memory_bytes"] < process["memory_limit_bytes"]
        assert 50_000_000 < process["memory_used_bytes"] < process["memory_limit_bytes"]
        assert 0 < shown["disk"]["free_bytes"] < shown["disk"]["total_bytes"]
        assert shown["storage"]["total_bytes"] == shown["disk"]["total_bytes"]

    async def test_says_within_its_time_what_is_away_and_shows_the_rest(
        self,
        serve: Serve,
        silence: int,
        redis_server: RedisServer,
        own_mongod: OwnMongod,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        away = {"clamav_host": "127.0.0.1", "clamav_port": silence, "database_url": own_mongod.url}
        away |= {"smtp_url": f"smtp://octopus:pass-word@127.0.0.1:{silence}?starttls=1"}
        async with serve(rate_limit_storage_url=redis_server.url, **away, **ASSISTANT) as client:
            admin = await make_signed_in(role=Role.ADMIN)
            # Who asks is known still. Else it is 503, as everything is without a database.
            monkeypatch.setattr(change_feed, "_SILENCE_SECONDS", 60)
            await asyncio.sleep(0.1)
            assert (await client.get("/api/v1/users/me", headers=admin.headers)).status_code == 200
            (tmp_path / "uploads").write_text("no folder")
            for _ in range(5):
                let_the_assistant_fail()
            redis_server.freeze()
            with own_mongod.frozen():
                started = time.monotonic()
                shown = await system(client, admin.headers)
                seconds = time.monotonic() - started
            redis_server.thaw()

        gone = {"database", "storage", "scanner", "mail", "outbox", "rate_limits", "assistant", "jobs", "audit"}
        assert {name for name, status in statuses(shown).items() if status == "unavailable"} == gone
        assert {name for name, status in statuses(shown).items() if status == "ok"} == {"process", "disk"}
        assert (shown["scanner"]["error"], shown["storage"]["error"]) == ("TimeoutError", "StorageUnavailableError")
        assert (shown["assistant"]["error"], shown["assistant"]["circuit"]) == ("CircuitOpenError", "open")
        assert (shown["database"]["connections"], shown["versions"]["mongodb"]) == (None, None)
        assert shown["process"]["pid"] > 0
        assert seconds < 5

    async def test_shows_the_process_while_the_disk_hangs(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admin = await make_signed_in(role=Role.ADMIN)
        existing, mended = system_probes._existing, threading.Event()
        monkeypatch.setattr(system_probes, "_existing", lambda folder: mended.wait(20) and existing(folder))
        for _ in range(2):
            shown = await system(client, admin.headers)
            away = {name for name, status in statuses(shown).items() if status == "unavailable"}
            assert away == {"storage", "mail", "disk"}
        mended.set()

        assert shown["process"]["pid"] > 0

    async def test_shows_what_is_not_configured_as_off(self, client: AsyncClient) -> None:
        shown = await system(client, (await make_signed_in(role=Role.ADMIN)).headers)

        assert {name for name, status in statuses(shown).items() if status == "off"} == {"scanner", "assistant"}
        assert (shown["mail"]["kind"], shown["rate_limits"]["kind"]) == ("folder", "memory")


class TestSystemCheck:
    async def test_warns_of_what_needs_somebody_and_is_shown_among_the_jobs(
        self, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admin = await make_signed_in(role=Role.ADMIN)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 89, 11))
        assert await system_check_service.check(JOB_NAMES) == system_check_service.Checked([])
        await client.get(SYSTEM, headers=(await make_signed_in()).headers)  # a refusal, for an event
        await let_things_wait()
        await Job(id="prune_audit", due_at=utc_now() - timedelta(minutes=5)).save()
        (tmp_path / "uploads").write_text("no folder")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 91, 9))
        with capture_logs() as lines:
            checked = await system_check_service.check(JOB_NAMES)

        expected = ["storage_unavailable", "disk_nearly_full", "mails_waiting", "audit_unsealed"]
        expected += ["job_failed", "job_overdue"]
        assert checked.findings == expected
        told = [line for line in lines if line["event"] == "system_check"]
        assert [line["finding"] for line in told] == expected
        assert {line["log_level"] for line in told} == {"warning"}
        assert [line["job"] for line in told[-2:]] == ["seal_audit", "prune_audit"]

        run = await client.post("/api/v1/admin/jobs/system_check/run", headers=admin.headers)
        assert run.status_code == 202
        async with asyncio.timeout(10):
            while not (job := await shown_job(client, admin.headers))["outcome"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert job["outcome"] == "success"
        assert {"storage_unavailable", "disk_nearly_full", "mails_waiting"} <= set(job["result"]["findings"])

    @pytest.mark.usefixtures("client")
    @pytest.mark.parametrize(("available", "findings"), [(11, []), (9, ["memory_nearly_full"])])
    async def test_warns_of_a_host_whose_memory_many_processes_fill(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, available: int, findings: list[str]
    ) -> None:
        monkeypatch.setattr(system_probes, "_CONTROL_GROUP", tmp_path)
        host = psutil.virtual_memory()._replace(total=100 * GB, available=available * GB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: host)

        assert (await system_check_service.check(JOB_NAMES)).findings == findings

    @pytest.mark.usefixtures("client")
    @pytest.mark.parametrize(("used", "findings"), [(91, []), (93, ["memory_nearly_full"])])
    @pytest.mark.parametrize(
        ("cache", "names"),
        [
            ("inactive_file", ["memory.max", "memory.current", "memory.stat"]),
            ("total_inactive_file", [f"memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat")]),
        ],
    )
    async def test_warns_of_a_container_by_its_own_limit_and_leaves_out_what_is_only_cache(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        cache: str,
        names: list[str],
        used: int,
        findings: list[str],
    ) -> None:
        monkeypatch.setattr(system_probes, "_CONTROL_GROUP", tmp_path)
        (tmp_path / "memory").mkdir()
        for name, content in zip(names, (100 * MB, used * MB, f"anon 7\n{cache} {2 * MB}"), strict=True):
            (tmp_path / name).write_text(f"{content}\n")

        assert (await system_check_service.check(JOB_NAMES)).findings == findings


async def shown_job(client: AsyncClient, headers: dict[str, str]) -> Any:
    listed = (await client.get("/api/v1/admin/jobs", headers=headers)).json()
    return next(job for job in listed if job["name"] == "system_check")
