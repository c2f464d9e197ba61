"""Who was turned away is in the audit trail."""

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from httpx import AsyncClient
from pymongo.errors import AutoReconnect
from structlog.testing import capture_logs

from app.core import tasks
from app.core.clock import utc_now
from app.core.context import RequestContext, set_context
from app.core.principal import ANONYMOUS
from app.crud import crud_audit_event
from app.db import mongo
from app.models.audit_event import AuditEvent
from app.services import refusal_service
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import PASSWORD, make_api_key, make_conversation, make_item, make_signed_in, make_user

USERS = "/api/v1/users"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def counts() -> None:
    """Nothing is left of another test."""
    refusal_service._counts.clear()
    refusal_service._State.slice = ()


async def refusals() -> list[AuditEvent]:
    return await AuditEvent.find({"outcome": "failure"}).sort("_id").to_list()


async def counted() -> list[tuple[str, str | None, int]]:
    """What is written of those that nobody is known of: code, address, count."""
    await refusal_service.flush()
    events = await AuditEvent.find({"action": "requests:refused"}).to_list()
    assert {(event.actor.kind, event.actor.id, event.request_id, event.outcome) for event in events} <= {
        ("anonymous", None, None, "failure")
    }
    return [(event.details["code"], event.ip, event.details["count"]) for event in events]


class TestOfSomebody:
    async def test_is_an_event_before_the_answer(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(username="ada"), await make_user()
        headers = ada.headers | {"X-Request-ID": "r-1", "User-Agent": "probe"}

        answer = await client.get(f"{USERS}/{ben.id}", headers=headers)

        (event,) = await refusals()
        assert answer.status_code == 403
        assert (event.action, event.outcome) == ("request:refused", "failure")
        assert (event.actor.kind, event.actor.id, event.actor.name) == ("user", ada.id, "ada")
        assert (event.target.kind, event.target.id) == ("request", None)
        assert (event.ip, event.user_agent, event.request_id) == ("127.0.0.1", "probe", "r-1")
        assert event.details == {"code": answer.json()["code"], "method": "GET", "route": "/api/v1/users/{user_id}"}

    async def test_is_an_event_for_a_scope_that_is_not_held(self, client: AsyncClient) -> None:
        key = await make_api_key("items:read")

        await client.post("/api/v1/items", json={"title": "Tea"}, headers=key.headers)

        (event,) = await refusals()
        assert (event.actor.kind, event.actor.id) == ("api_key", key.document.id)
        assert event.details == {"code": "insufficient_scope", "method": "POST", "route": "/api/v1/items"}

    async def test_is_an_event_for_a_key_used_from_elsewhere(self, client: AsyncClient) -> None:
        key = await make_api_key("read", allowed_ips=["192.0.2.1"])

        answer = await client.get("/api/v1/items", headers=key.headers)

        (event,) = await refusals()
        assert answer.json()["code"] == "ip_not_allowed"
        assert (event.actor.id, event.ip, event.details["code"]) == (key.document.id, "127.0.0.1", "ip_not_allowed")

    async def test_is_an_event_for_a_service_that_refuses(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_user()
        conversation = await make_conversation(ada, ben)
        body = {"content": "Hello", "user_id": str(ben.id)}

        answer = await client.post(f"/api/v1/conversations/{conversation.id}/messages", json=body, headers=ada.headers)

        (event,) = await refusals()
        assert answer.status_code == 403
        assert event.details["route"] == "/api/v1/conversations/{conversation_id}/messages"

    async def test_is_one_event_where_the_refusal_records_itself(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        answer = await client.request("DELETE", f"{USERS}/me", json={"current_password": "wrong"}, headers=ada.headers)

        (event,) = await refusals()
        assert answer.status_code == 401
        assert event.action == "session:refused"
        assert await counted() == []

    async def test_is_no_event_where_nothing_was_refused(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        conversation = await make_conversation(ben)
        for path in (f"conversations/{conversation.id}", "items/x", "items?limit=0"):
            assert (await client.get(f"/api/v1/{path}", headers=ada.headers)).status_code in {404, 422}

        assert await refusals() == []
        assert await counted() == []

    async def test_is_not_lost_when_it_can_not_be_written_at_once(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        async with no_event_can_be_written():
            answer = await client.get(USERS, headers=ada.headers)
            await refusal_service.flush()

        assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
        assert await refusals() == []
        await refusal_service.flush()
        (event,) = await refusals()
        assert (event.action, event.actor.id) == ("requests:refused", ada.id)
        assert (event.details["code"], event.details["count"]) == ("insufficient_scope", 1)

    async def test_who_asks_too_often_is_counted(self, serve: Serve) -> None:
        async with serve(rate_limit_authenticated="3/hour") as client:
            ada = await make_signed_in()
            codes = [(await client.get("/api/v1/items", headers=ada.headers)).status_code for _ in range(8)]
            at_once = await refusals()
            await refusal_service.flush()
            events = await refusals()

        assert codes == [200] * 3 + [429] * 5
        assert at_once == []
        assert {(event.action, event.actor.id) for event in events} == {("requests:refused", ada.id)}
        assert sum(event.details["count"] for event in events) == 5  # two events when a minute ends meanwhile

    async def test_who_has_used_up_its_quota_is_counted(self, client: AsyncClient) -> None:
        key = await make_api_key("read", quota={"limit": 1, "period": "month"})
        codes = [(await client.get("/api/v1/items", headers=key.headers)).status_code for _ in range(4)]
        at_once = await refusals()
        await refusal_service.flush()
        events = await refusals()

        assert codes == [200] + [429] * 3
        assert at_once == []
        told = {(event.action, event.actor.id, event.details["code"]) for event in events}
        assert told == {("requests:refused", key.document.id, "quota_exceeded")}
        assert sum(event.details["count"] for event in events) == 3  # two events when a minute ends meanwhile

    async def test_who_has_used_up_its_plan_is_not(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"max_conversations": 0})

        answer = await client.post("/api/v1/conversations", json={}, headers=ada.headers)
        await refusal_service.flush()

        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        assert await refusals() == []


class TestOfNobody:
    async def test_is_counted_by_code_and_address(self, serve: Serve) -> None:
        async with serve(address="198.51.100.1") as one, serve(address="198.51.100.2") as two:
            for client, times in ((one, 3), (two, 2)):
                for _ in range(times):
                    await client.get("/api/v1/items")
            await one.get("/api/v1/items", headers={"Authorization": "Bearer x"})
            await one.get("/api/v1/items", headers={"Octopus-API-Key": "octopus_x"})

            assert await AuditEvent.find().count() == 0
            totals: dict[tuple[str, str | None], int] = {}
            for code, ip, count in await counted():
                totals[code, ip] = totals.get((code, ip), 0) + count

        assert totals == {
            ("invalid_api_key", "198.51.100.1"): 1,
            ("invalid_token", "198.51.100.1"): 1,
            ("not_authenticated", "198.51.100.1"): 3,
            ("not_authenticated", "198.51.100.2"): 2,
        }

    async def test_is_counted_when_it_asks_too_often(self, serve: Serve) -> None:
        async with serve(rate_limit_anonymous="2/hour") as client:
            for _ in range(6):
                await client.get("/api/v1/items")
            totals: dict[str, int] = {}
            for code, _, count in await counted():
                totals[code] = totals.get(code, 0) + count

        assert totals == {"not_authenticated": 2, "rate_limited": 4}

    async def test_failed_sign_in_is_the_event_it_always_was(self, client: AsyncClient) -> None:
        ada = await make_user()

        await client.post("/api/v1/auth/login", json={"email": ada.document.email, "password": "wrong"})

        (event,) = await refusals()
        assert (event.action, event.target.id) == ("session:refused", ada.id)
        assert await counted() == []

    async def test_flood_is_few_events(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        assert client is not None
        monkeypatch.setattr(refusal_service, "_TOLD_APART", 5)
        for number in range(1000):
            set_context(RequestContext(client_ip=f"192.0.2.{number % 250}"))
            refusal_service._count("invalid_token", ANONYMOUS)
        assert len(refusal_service._counts) <= 7

        found = await counted()

        assert sum(count for _, _, count in found) == 1000
        assert any(ip is None for _, ip, _ in found)

    async def test_is_written_when_the_service_stops(self, serve: Serve) -> None:
        async with serve() as client:
            await client.get("/api/v1/items")
            assert await AuditEvent.find().count() == 0

        async with serve():
            assert [event.details["code"] for event in await refusals()] == ["not_authenticated"]

    async def test_is_written_after_some_seconds(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(refusal_service, "FLUSH_EVERY", 0.05)
        async with serve() as client:
            await client.get("/api/v1/items")
            async with asyncio.timeout(10):
                while not (events := await refusals()):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.02)

        assert events[0].details["count"] == 1


def count_some(number: int) -> None:
    """As many kinds, one refusal of each."""
    for each in range(number):
        set_context(RequestContext(client_ip=f"192.0.2.{each}"))
        refusal_service._count("invalid_token", ANONYMOUS)


async def fail(_: Sequence[AuditEvent]) -> None:
    raise AutoReconnect


class TestWhileTheDatabaseIsAway:
    @pytest.mark.usefixtures("client")
    async def test_memory_stays_as_small_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(refusal_service, "_TOLD_APART", 5)
        monkeypatch.setattr(refusal_service, "_SLICE", 3)
        begun = utc_now()
        with monkeypatch.context() as away:
            away.setattr(crud_audit_event, "add", fail)
            for minute in range(200):
                away.setattr(refusal_service, "utc_now", lambda minute=minute: begun + timedelta(minutes=minute))
                set_context(RequestContext(client_ip=f"192.0.2.{minute}"))
                for code in ("invalid_token", "rate_limited"):
                    refusal_service._count(code, ANONYMOUS)
                await refusal_service.flush()
                assert len(refusal_service._counts) <= 5 + 2

        found = await counted()

        assert sum(count for _, _, count in found) == 400
        assert {code for code, ip, count in found if ip is None and count > 190} == {"invalid_token", "rate_limited"}
        assert len(found) <= 3 + 5 + 2

    @pytest.mark.usefixtures("client")
    async def test_what_was_written_of_it_is_written_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(refusal_service, "_SLICE", 2)
        count_some(5)
        add, sizes = crud_audit_event.add, []

        async def fail_at_the_second(events: Sequence[AuditEvent]) -> None:
            sizes.append(len(events))
            await add(events)
            if len(sizes) == 2:
                raise AutoReconnect

        monkeypatch.setattr(crud_audit_event, "add", fail_at_the_second)
        assert await refusal_service.flush() is False
        assert len(await refusals()) == 2

        assert await refusal_service.flush() is True

        assert [event.ip for event in await refusals()] == [f"192.0.2.{each}" for each in range(5)]
        assert sizes == [2, 2, 2, 1]

    @pytest.mark.usefixtures("client")
    async def test_what_it_had_written_unheard_is_there_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        until_committed = mongo._until_committed

        async def lose_the_answer(*arguments: Any) -> None:
            await until_committed(*arguments)
            raise AutoReconnect

        count_some(3)
        with capture_logs() as lines:
            with monkeypatch.context() as away:
                away.setattr(mongo, "_until_committed", lose_the_answer)
                assert await refusal_service.flush() is False
            assert len(await refusals()) == 3
            assert await refusal_service.flush() is True
            assert await refusal_service.flush() is True

        events = await refusals()
        assert [event.details["count"] for event in events] == [1, 1, 1]
        told = [line["event.id"] for line in lines if line["event"] == "requests:refused"]
        assert told == [str(event.id) for event in events]

    @pytest.mark.usefixtures("client")
    async def test_flush_that_is_cancelled_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        count_some(3)
        begun = asyncio.Event()

        async def hang(_: Sequence[AuditEvent]) -> None:
            begun.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as away:
            away.setattr(crud_audit_event, "add", hang)
            flushing = asyncio.create_task(refusal_service.flush())
            await asyncio.wait_for(begun.wait(), 5)
            flushing.cancel()
            await asyncio.wait([flushing])

        assert sum(count for _, _, count in await counted()) == 3

    async def test_last_flush_tries_again(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        add, tries = crud_audit_event.add, []

        async def fail_twice(events: Sequence[AuditEvent]) -> None:
            tries.append(len(events))
            if len(tries) < 3:
                raise AutoReconnect
            await add(events)

        monkeypatch.setattr(crud_audit_event, "add", fail_twice)
        async with serve() as client:
            await client.get("/api/v1/items")

        async with serve():
            assert [event.details["count"] for event in await refusals()] == [1]
        assert tries == [1, 1, 1]

    @pytest.mark.usefixtures("client")
    async def test_last_flush_says_what_is_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "LAST_SECONDS", 0.3)
        monkeypatch.setattr(refusal_service, "_SLICE", 2)
        count_some(5)

        with monkeypatch.context() as away, capture_logs() as lines:
            away.setattr(crud_audit_event, "add", fail)
            await asyncio.wait_for(refusal_service.flush_last(), 5)

        assert [(line["count"], line["log_level"]) for line in lines if line["event"] == "refusals_lost"] == [
            (5, "error")
        ]
        assert await counted() == []

    async def test_flushing_ends_though_the_driver_swallows_the_cancellation(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(refusal_service, "FLUSH_EVERY", 0)
        begun = asyncio.Event()

        async def swallow_one() -> bool:
            is_first = not begun.is_set()
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not is_first:
                    raise
            return False

        monkeypatch.setattr(refusal_service, "flush", swallow_one)
        flushing = asyncio.create_task(refusal_service.keep_flushing())
        await asyncio.wait_for(begun.wait(), 5)

        flushing.cancel()

        done, _ = await asyncio.wait([flushing], timeout=5)
        flushing.cancel()
        assert done == {flushing}


ELSEWHERE = {"ecs.version", "log.level", "log.logger", "service.name", "service.version"}


class TestLog:
    """Every event is a line of the log, in the names of the Elastic Common Schema."""

    def audit_lines(self, capfd: Captured) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        return [line for line in lines if line.get("event.dataset") == "octopus.audit"]

    async def test_has_what_a_siem_looks_for(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            ada = await make_signed_in(username="ada")
            headers = ada.headers | {"User-Agent": "probe/1", "X-Request-ID": "r-7"}
            await client.patch(f"{USERS}/me", json={"full_name": "Ada L"}, headers=headers)
            (event,) = await AuditEvent.find({"action": "user:updated"}).to_list()

        (line,) = self.audit_lines(capfd)
        assert {name: value for name, value in line.items() if "." in name and name not in ELSEWHERE} == {
            "event.kind": "event",
            "event.dataset": "octopus.audit",
            "event.category": ["iam"],
            "event.type": ["change"],
            "event.action": "user:updated",
            "event.outcome": "success",
            "event.id": str(event.id),
            "user.id": str(ada.id),
            "user.name": "ada",
            "user.target.id": str(ada.id),
            "source.ip": "127.0.0.1",
            "user_agent.original": "probe/1",
            "http.request.id": "r-7",
            "octopus.actor.kind": "user",
            "octopus.target.kind": "user",
            "octopus.target.id": str(ada.id),
            "octopus.details": {"fields": ["full_name"]},
        }
        assert (line["log.level"], line["message"], line["@timestamp"][-1]) == ("info", "user:updated", "Z")

    async def test_has_sign_ins_as_such(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            ada = await make_user()
            for password in ("wrong", PASSWORD):
                await client.post("/api/v1/auth/login", json={"email": ada.document.email, "password": password})

        told = [(line["event.category"], line["event.type"], line["event.outcome"]) for line in self.audit_lines(capfd)]
        assert told == [
            (["authentication"], ["start"], "failure"),
            (["authentication", "session"], ["start"], "success"),
        ]

    async def test_has_no_line_of_what_was_not_committed(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            ada = await make_signed_in()
            async with no_event_can_be_written():
                answer = await client.post("/api/v1/items", json={"title": "Tea"}, headers=ada.headers)

        assert answer.status_code == 500
        assert self.audit_lines(capfd) == []

    async def test_has_one_line_however_often_the_transaction_was_run(self, serve: Serve, capfd: Captured) -> None:
        async with serve() as client:
            ada = await make_signed_in()
            item = await make_item(ada)
            changes = [
                client.patch(f"/api/v1/items/{item.id}", json={"title": f"Tea {number}"}, headers=ada.headers)
                for number in range(8)
            ]
            answers = await asyncio.gather(*changes)
            events = await AuditEvent.find({"action": "item:updated"}).to_list()

        assert {answer.status_code for answer in answers} == {200}
        told = [line["event.id"] for line in self.audit_lines(capfd)]
        assert sorted(told) == sorted(str(event.id) for event in events)
        assert len(told) == 8
