"""The metrics, as Prometheus gets them from the application."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from bson import ObjectId
from httpx import AsyncClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from app import main
from app.core.clock import utc_now
from app.core.rate_limit import MemoryRateLimiter
from app.crud import crud_queue
from app.db.mongo import get_database
from app.models.audit_event import AuditEvent
from app.models.enums import MailKind
from app.models.outgoing_mail import OutgoingMail
from app.models.user import User
from app.services import job_service, metrics_service, refusal_service, system_probes
from app.services.jobs import JOBS
from tests.api.test_health import Road, road
from tests.assistant_server import open_assistant
from tests.clamd_server import ClamdServer, clamd, running_clamd
from tests.conftest import PRODUCTION, Serve
from tests.factories import make_api_key, make_conversation, make_messages, make_signed_in
from tests.scraping import Scrape, scrape
from tests.streams import opened
from tests.test_project_files import ROOT

__all__ = ["clamd", "road", "running_clamd"]  # the fixtures
TOKEN = "scrape-9f2b7c41d83e"
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
LIMITS = ("authenticated", "key's own")
# What no metric of ours is: what Prometheus adds to every scrape, and the words of its language.
FOREIGN = {"up"}
PAGES = ROOT / "docs" / "observability"


async def use_everything(client: AsyncClient, assistant: Any) -> None:
    """Some of all that is counted."""
    ada = await make_signed_in()
    chat = await make_conversation(ada)
    await make_messages(chat, by=ada)
    path = f"/api/v1/conversations/{chat.id}"
    for _ in range(3):
        assert (await client.get(path, headers=ada.headers)).status_code == 200
    assert (await client.get(f"/api/v1/items/{ObjectId()}", headers=ada.headers)).status_code == 404
    assert (await client.get("/api/v1/auth/me", headers={"Authorization": "Bearer nonsense"})).status_code == 401
    wrong = {"email": ada.document.email, "password": "not the right one"}
    assert (await client.post("/api/v1/auth/login", json=wrong)).status_code == 401
    for content, status in ((b"Tea", 201), (EICAR, 422)):
        sent = await client.post("/api/v1/uploads", headers=ada.headers, files={"file": ("tea.txt", content)})
        assert sent.status_code == status
    await User.find_one(User.id == ada.id).update({"$inc": {"credits": 9}})
    assert (await client.post(f"{path}/reply", headers=ada.headers)).status_code == 200
    assert len(assistant.exchanges) == 1
    for job in JOBS:
        await job_service.request(job.name)
        await job_service.run_job(job, "tests")
    await OutgoingMail(kind=MailKind.PASSWORD_CHANGED, user_id=ada.id, due_at=None, failed_at=utc_now()).insert()


@pytest.fixture
async def used(
    serve: Serve, clamd: ClamdServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Scrape, Scrape]]:
    """Scrapes before and after an application was used."""
    monkeypatch.setattr(metrics_service, "REMEMBERED_SECONDS", 0.0)
    async with (
        open_assistant() as assistant,
        serve(**assistant.settings, clamav_host="127.0.0.1", clamav_port=clamd.port) as client,
    ):
        before = await scrape(client)
        await use_everything(client, assistant)
        yield before, await scrape(client)


class TestScrape:
    async def test_tells_what_has_happened(self, used: tuple[Scrape, Scrape]) -> None:
        before, after = used

        def more(name: str, **labels: str) -> float:
            return after.value(name, **labels) - before.value(name, **labels)

        chat, item = "/api/v1/conversations/{conversation_id}", "/api/v1/items/{item_id}"
        assert more("octopus_http_requests_total", method="GET", route=chat, status="200") == 3
        assert more("octopus_http_requests_total", method="GET", route=item, status="404") == 1
        assert more("octopus_http_request_duration_seconds_count", route=chat, status="2xx") == 3
        assert more("octopus_http_request_duration_seconds_bucket", route=chat, le="+Inf") == 3
        assert 0 < more("octopus_http_request_duration_seconds_sum", route=chat) < 30
        assert more("octopus_rejected_credentials_total", kind="invalid_token") == 1
        assert more("octopus_rejected_credentials_total", kind="invalid_credentials") == 1
        assert more("octopus_upload_bytes_total") == 3 + 68
        assert (more("octopus_scans_total", result="clean"), more("octopus_scans_total", result="infected")) == (1, 1)
        assert more("octopus_assistant_replies_total", outcome="whole") == 1
        assert more("octopus_assistant_first_word_seconds_count") == 1
        assert more("octopus_database_command_duration_seconds_count", command="find") > 3
        assert after.value("octopus_http_requests_in_flight") == 1  # this one
        assert (after.value("octopus_database_up"), after.value("octopus_storage_up")) == (1, 1)
        assert after.value("octopus_database_connections_in_use") > 0
        assert after.value("octopus_mails_failed") == 1
        assert more("octopus_job_duration_seconds_count", task="seal_audit", outcome="success") >= 1
        succeeded_at = after.value("octopus_job_last_success_timestamp_seconds", task="seal_audit")
        assert abs(succeeded_at - utc_now().timestamp()) < 60
        assert after.value("octopus_build_info", version="0.1.0") == 1
        assert after.value("octopus_process_resident_memory_bytes") > 10_000_000

    async def test_holds_all_that_the_dashboard_and_the_alerts_ask_for(self, used: tuple[Scrape, Scrape]) -> None:
        _, after = used
        labels: dict[str, set[str]] = {}
        for name, own in after.samples:
            labels.setdefault(name, set()).update(dict(own))
        asked = {name: found for expression in [*of_dashboard(), *of_alerts()] for name, found in names_in(expression)}

        assert len(asked) > 35
        assert asked.keys() - after.described == FOREIGN
        unknown = {name: found - labels.get(name, set()) - {"job", "instance"} for name, found in asked.items()}
        assert {name: found for name, found in unknown.items() if found and name in labels} == {}

    async def test_is_in_the_newer_format_for_who_asks_for_it(self, client: AsyncClient) -> None:
        await client.get("/")
        response = await client.get(
            "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"}
        )

        families = {family.name: family.type for family in parse_openmetrics(response.text)}  # type: ignore[no-untyped-call]
        assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert families["octopus_http_requests"] == "counter"
        plain = await client.get("/metrics", headers={"Accept": "application/openmetrics; version=x, text/plain;q=a"})
        assert plain.headers["content-type"].startswith("text/plain; version=")

    async def test_counts_what_is_open_and_what_waits(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        chat = await make_conversation(ada)
        before = (await scrape(client)).value("octopus_event_streams")
        async with opened(client, chat.id, ada.headers):
            during = await scrape(client)
        after = await scrape(client)

        assert (before, during.value("octopus_event_streams")) == (0, 1)
        assert during.value("octopus_http_requests_in_flight") == 2
        assert after.value("octopus_event_streams") == 0

    async def test_says_which_limit_was_met(self, serve: Serve) -> None:
        limits = {"rate_limit_anonymous": "3/minute", "rate_limit_auth": "2/minute", "metrics_token": TOKEN}
        async with serve(**limits) as client:
            before = await scrape(client, authorization=f"Bearer {TOKEN}")
            for _ in range(5):
                await client.get("/")
            for _ in range(3):
                await client.get("/api/v1/auth/me", headers={"Authorization": "Bearer nonsense"})
            after = await scrape(client, authorization=f"Bearer {TOKEN}")

        met = {
            limit: after.value("octopus_rate_limited_requests_total", limit=limit)
            - before.value("octopus_rate_limited_requests_total", limit=limit)
            for limit in ("anonymous", "credentials")
        }
        assert met == {"anonymous": 2, "credentials": 1}

    async def test_says_which_of_two_limits_was_met_when_their_numbers_are_the_same(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 6000.0
        monkeypatch.setattr(main, "MemoryRateLimiter", lambda: MemoryRateLimiter(lambda: now))
        async with serve(rate_limit_authenticated="2/minute") as client:
            key = await make_api_key("read", owner=await make_signed_in(), rate_limit="2/hour")
            before = await scrape(client)
            for _ in range(2):
                assert (await client.get("/api/v1/items", headers=key.headers)).status_code == 200
            now += 60
            assert (await client.get("/api/v1/items", headers=key.headers)).status_code == 429
            after = await scrape(client)

        name = "octopus_rate_limited_requests_total"
        met = {limit: after.value(name, limit=limit) - before.value(name, limit=limit) for limit in LIMITS}
        assert met == {"authenticated": 0, "key's own": 1}

    async def test_tells_what_it_can_without_the_database(self, serve: Serve, road: tuple[Road, str]) -> None:
        way, url = road
        async with serve(database_url=url) as client:
            way.close()
            gone = await scrape(client)
            way.reopen()

        assert gone.value("octopus_database_up") == 0
        assert gone.value("octopus_storage_up") == 1
        assert "octopus_mails_due" not in gone.described
        assert gone.value("octopus_build_info") == 1


class TestQueues:
    @pytest.mark.usefixtures("client")
    async def test_are_measured_on_every_day_there_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(crud_queue, "utc_now", lambda: datetime(2028, 2, 29, 12, tzinfo=UTC))
        await OutgoingMail(
            kind=MailKind.PASSWORD_CHANGED, user_id=ObjectId(), due_at=None, failed_at=utc_now()
        ).insert()

        assert (await crud_queue.mails_due(), await crud_queue.mails_failed()) == (0, 1)

    @pytest.mark.usefixtures("client")
    async def test_are_counted_for_everybody_without_reading_a_mail(self) -> None:
        for moments in ({"due_at": utc_now() + timedelta(hours=1)}, {"due_at": None, "failed_at": utc_now()}):
            await OutgoingMail(kind=MailKind.PASSWORD_CHANGED, user_id=ObjectId(), **moments).insert()
        database = get_database()
        await database.command("profile", 2)
        shown = await system_probes.outbox()
        due, failed = await crud_queue.mails_due(), await crud_queue.mails_failed()
        await database.command("profile", 0)

        counts = await database["system.profile"].find({"command.aggregate": "outbox"}).to_list()
        await database.drop_collection("system.profile")

        assert (shown["waiting"], shown["failed"], due, failed) == (1, 1, 0, 1)
        assert [count["docsExamined"] for count in counts] == [0] * 4


class TestFolder:
    async def test_keeps_nobody_from_serving_when_nothing_can_be_written_there(
        self, serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "metrics").write_text("no folder")
        async with serve(metrics_dir=tmp_path / "metrics") as client:
            shown = await scrape(client)

        assert shown.value("octopus_workers") == 1
        assert "metrics_not_published" in capfd.readouterr().err


class TestEnd:
    async def test_is_kept_from_nobody_by_what_can_not_be_written(self, serve: Serve, tmp_path: Path) -> None:
        shared = tmp_path / "metrics"
        async with serve(metrics_dir=shared) as client:
            assert (await client.get("/metrics")).status_code == 200
            shutil.rmtree(shared)


class TestLabels:
    async def test_are_few_whatever_is_sent(self, client: AsyncClient) -> None:
        secret = "s3cret"
        await client.get("/")
        before = await scrape(client)
        known = before.labels("octopus_http_requests_total", "method")
        for number in range(40):
            await client.get(f"/{secret}/{number}")
            await client.request(f"BREW{number}", f"/api/v1/items/{secret}{number}")
            await client.get(f"/api/v1/users/username/{secret}{number}")
            await client.get("/", headers={"Host": f"{secret}{number}.example", "X-Request-ID": f"{secret}{number}"})
        response = await client.get("/metrics")
        after = await scrape(client)

        new = {own for name, own in after.samples if name == "octopus_http_requests_total"} - {
            own for name, own in before.samples if name == "octopus_http_requests_total"
        }
        assert len(new) <= 5
        assert after.value("octopus_http_requests_total", route="unmatched", status="404") >= 40
        assert after.value("octopus_http_requests_total", method="other") >= 40
        assert after.labels("octopus_http_requests_total", "method") - known <= {"GET", "other"}
        assert secret not in response.text


class TestGuard:
    async def test_lets_in_only_who_has_the_token(self, serve: Serve) -> None:
        async with serve(**PRODUCTION, metrics_token=TOKEN) as client:
            answers = [
                await client.get("/metrics", headers=headers)
                for headers in (
                    {"Authorization": f"Bearer {TOKEN}"},
                    {},
                    {"Authorization": f"Bearer {TOKEN}x"},
                    {"Authorization": f"Basic {TOKEN}"},
                    {"Authorization": TOKEN},
                )
            ]

        codes = [(answer.status_code, answer.json().get("code")) for answer in answers[1:]]
        assert answers[0].status_code == 200
        assert codes == [(401, "not_authenticated")] + [(401, "invalid_token")] * 3
        assert all(answer.headers["www-authenticate"].startswith("Bearer") for answer in answers[1:])

    @pytest.mark.parametrize("environment", ["production", "staging"])
    async def test_has_nothing_to_show_without_a_token(self, serve: Serve, environment: str) -> None:
        async with serve(**PRODUCTION | {"environment": environment}) as client:
            metrics, nothing = await client.get("/metrics"), await client.get("/nothing")

        assert (metrics.status_code, metrics.json()["detail"]) == (404, nothing.json()["detail"])

    async def test_spends_no_limit_and_records_nothing_for_who_scrapes(self, serve: Serve) -> None:
        limits = {"rate_limit_anonymous": "1/hour", "rate_limit_auth": "1/hour", "rate_limit_authenticated": "1/hour"}
        async with serve(metrics_token=TOKEN, **limits) as client:
            right = {"Authorization": f"Bearer {TOKEN}"}
            answers = [await client.get("/metrics", headers=right) for _ in range(5)]
            events = await AuditEvent.count()
            guesses = [await client.get("/metrics", headers={"Authorization": "Bearer guess"}) for _ in range(3)]
            still = await client.get("/metrics", headers=right)
            await refusal_service.flush()
            refused = await AuditEvent.find({"action": "requests:refused"}).to_list()

        assert [answer.status_code for answer in [*answers, still]] == [200] * 6
        assert "x-ratelimit-limit" not in answers[0].headers
        assert events == 0
        assert [answer.status_code for answer in guesses] == [401, 429, 429]
        assert sum(event.details["count"] for event in refused) == 3

    async def test_is_one_question_to_the_database_however_many_scrape(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metrics_service, "REMEMBERED_SECONDS", 600.0)
        async with serve() as client:
            before = await scrape(client)
            await asyncio.gather(*(scrape(client) for _ in range(20)))
            after = await scrape(client)

        name = "octopus_database_command_duration_seconds_count"
        asked = after.value(name, command="aggregate") - before.value(name, command="aggregate")
        assert asked <= 3  # as many as one scrape asks: the jobs of this time may ask too


class TestAlerts:
    def test_are_rules_that_prometheus_takes(self) -> None:
        rules = yaml.safe_load((PAGES / "alerts.yml").read_text())["groups"][0]["rules"]

        assert len({rule["alert"] for rule in rules}) == len(rules) > 10
        for rule in rules:
            assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert rule["annotations"].keys() == {"summary", "action"}
            assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
            assert_is_balanced(rule["expr"])
        if promtool := shutil.which("promtool"):
            subprocess.run([promtool, "check", "rules", PAGES / "alerts.yml"], check=True)  # noqa: S603


class TestDashboard:
    def test_is_one_that_grafana_takes(self) -> None:
        dashboard = json.loads((PAGES / "grafana-dashboard.json").read_text())
        panels = dashboard["panels"]

        assert dashboard["schemaVersion"] == 39
        assert len({panel["id"] for panel in panels}) == len(panels) > 15
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
        assert len(set(places)) == len(places)
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
        assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
        for expression in of_dashboard():
            assert_is_balanced(expression)


def of_dashboard() -> Iterator[str]:
    dashboard = json.loads((PAGES / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"label_values\((.*), \w+\)", r"max(\1)", variable["query"])


def of_alerts() -> list[str]:
    return [rule["expr"] for rule in yaml.safe_load((PAGES / "alerts.yml").read_text())["groups"][0]["rules"]]


def names_in(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics that an expression asks for, each with the labels that it chooses by, or groups by."""
    bare = re.sub(r"\[[^\]]*\]", "", expression)
    grouped = {label for listed in re.findall(r"\bby\s*\(([^)]*)\)", bare) for label in re.split(r"[\s,]+", listed)}
    bare = re.sub(r"\bby\s*\([^)]*\)", "", bare)
    for name, _, chosen in re.findall(r"\b([a-z]\w*)\b(?!\s*\()(\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', bare)):
        if name.startswith("octopus_") or name in FOREIGN:
            own = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", chosen))
            yield name, own | grouped - {"le"} if name.startswith("octopus_") else set()


def assert_is_balanced(expression: str) -> None:
    closing, waiting = {")": "(", "]": "[", "}": "{"}, []
    for character in re.sub(r'"[^"]*"', "", expression):
        if character in "([{":
            waiting.append(character)
        elif character in closing:
            assert waiting.pop() == closing[character], expression
    assert waiting == [], expression


def test_the_reading_of_expressions_finds_what_is_asked_for() -> None:
    expression = 'sum by (le, task) (rate(octopus_a_bucket{job="x", le!~"1"}[5m])) / max(octopus_b) > up'

    assert dict(names_in(expression)) == {
        "octopus_a_bucket": {"job", "le", "task"},
        "octopus_b": {"task"},
        "up": set(),
    }
