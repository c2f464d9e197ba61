"""Keys that come to their end: listed, warned of, and deactivated."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient
from structlog.testing import capture_logs

from app.core.clock import utc_now
from app.core.scopes import Role
from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from app.models.outgoing_mail import OutgoingMail
from app.services import key_expiry_service, mail_service
from app.services.jobs import JOBS
from tests.api.test_api_keys import API_KEYS, stored, url_of, verdict
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import PASSWORD, StoredKey, StoredUser, make_api_key, make_signed_in, make_user
from tests.mailbox import Mailbox, text_of

EXPIRING = f"{API_KEYS}/expiring"
CLEANUP = f"{API_KEYS}/cleanup-expired"


@pytest.fixture
async def master(client: AsyncClient) -> StoredKey:  # noqa: ARG001 - documents need the application's database
    return await make_api_key("admin")


def within(**time: float) -> datetime:
    return utc_now() + timedelta(**time)


class TestExpiring:
    async def test_shows_active_keys_the_first_to_expire_first(self, client: AsyncClient, master: StoredKey) -> None:
        await make_api_key(name="off", expires_at=within(days=1), is_active=False)
        await make_api_key(name="over", expires_at=within(days=-1))
        await make_api_key(name="rotated", expires_at=within(days=1), grace_until=within(days=1))
        await make_api_key(name="late", expires_at=within(days=8))
        await make_api_key(name="second", expires_at=within(days=6.9), owner=await make_user())
        await make_api_key(name="first", expires_at=within(hours=1))

        week = await client.get(EXPIRING, headers=master.headers)
        day = await client.get(f"{EXPIRING}?days=1", headers=master.headers)
        year = await client.get(f"{EXPIRING}?days=365", headers=master.headers)

        assert [[key["name"] for key in page.json()] for page in (week, day, year)] == [
            ["first", "second"],
            ["first"],
            ["first", "second", "late"],
        ]

    async def test_pages_without_repeating_or_losing_any(self, client: AsyncClient, master: StoredKey) -> None:
        same = within(days=3)
        made = [await make_api_key(name=f"k{number}", expires_at=same) for number in range(5)]
        url, names = f"{EXPIRING}?limit=2", []
        while url:
            page = await client.get(url, headers=master.headers)
            names += [key["name"] for key in page.json()]
            url = page.links["next"]["url"] if "next" in page.links else ""

        assert names == [key.document.name for key in made]

    @pytest.mark.parametrize("days", ["0", "366", "-1", "soon", "1.5"])
    async def test_refuses_a_bad_time(self, client: AsyncClient, master: StoredKey, days: str) -> None:
        response = await client.get(f"{EXPIRING}?days={days}", headers=master.headers)

        assert verdict(response) == (422, "validation_error")

    @pytest.mark.parametrize("cursor", ["x", "bnVsbA"])
    async def test_refuses_a_bad_cursor(self, client: AsyncClient, master: StoredKey, cursor: str) -> None:
        response = await client.get(f"{EXPIRING}?cursor={cursor}", headers=master.headers)

        assert verdict(response) == (400, "invalid_cursor")


class TestCleanup:
    async def test_deactivates_what_has_expired(
        self, client: AsyncClient, master: StoredKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(key_expiry_service, "_BATCH", 2)
        over = [await make_api_key(expires_at=within(seconds=-number)) for number in range(1, 6)]
        good = [await make_api_key(), await make_api_key(expires_at=within(minutes=5))]

        first = await client.post(CLEANUP, headers=master.headers)
        second = await client.post(CLEANUP, headers=master.headers)

        assert (first.status_code, first.json()) == (
            200,
            {"deactivated_count": 5, "message": "5 expired keys were deactivated."},
        )
        assert second.json()["deactivated_count"] == 0
        assert [(await stored(key) or {})["is_active"] for key in over + good] == [False] * 5 + [True] * 2

    async def test_is_recorded_for_each_key(self, client: AsyncClient, master: StoredKey) -> None:
        over = [await make_api_key(expires_at=within(seconds=-1)) for _ in range(2)]

        await client.post(CLEANUP, headers=master.headers)

        events = await AuditEvent.find_all().to_list()
        assert {event.target.id for event in events} == {key.document.id for key in over}
        assert {(event.action, event.actor.id, event.details["reason"]) for event in events} == {
            ("api_key:deactivated", master.document.id, "expired")
        }

    async def test_does_nothing_that_can_not_be_recorded(self, client: AsyncClient, master: StoredKey) -> None:
        key = await make_api_key(expires_at=within(seconds=-1))

        async with no_event_can_be_written():
            assert verdict(await client.post(CLEANUP, headers=master.headers)) == (500, "internal_error")

        assert (await stored(key) or {})["is_active"] is True

    async def test_counts_each_key_once_when_several_clean_up(self, client: AsyncClient, master: StoredKey) -> None:
        for _ in range(6):
            await make_api_key(expires_at=within(seconds=-1))

        answers = await asyncio.gather(*(client.post(CLEANUP, headers=master.headers) for _ in range(3)))

        assert sum(answer.json()["deactivated_count"] for answer in answers) == 6
        assert await AuditEvent.count() == 6

    async def test_is_also_a_job(self, client: AsyncClient) -> None:  # noqa: ARG002 - with its database
        key = await make_api_key(expires_at=within(seconds=-1))
        (job,) = [job for job in JOBS if job.name == "expire_keys"]

        assert (await job.run())._asdict() == {"deactivated": 1}

        assert (await stored(key) or {})["is_active"] is False
        [event] = await AuditEvent.find_all().to_list()
        assert (event.actor.kind, event.actor.name) == ("system", "expire_keys")

    async def test_takes_a_rotated_key_whose_grace_is_over(self, client: AsyncClient, master: StoredKey) -> None:
        key = await make_api_key()
        await client.post(f"{url_of(key)}/rotate", json={"grace_seconds": 1}, headers=master.headers)
        await ApiKey.find_one({"_id": key.document.id}).update({"$set": {"expires_at": within(seconds=-1)}})

        assert (await client.post(CLEANUP, headers=master.headers)).json()["deactivated_count"] == 1


class Calendar:
    """Days that pass for the warnings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.begun = utc_now()

    async def warn(self, **after: float) -> int:
        now = self.begun + timedelta(**after)
        self.monkeypatch.setattr(key_expiry_service, "utc_now", lambda: now)
        return (await key_expiry_service.warn()).mails


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    return Calendar(monkeypatch)


@pytest.mark.usefixtures("client")
class TestWarning:
    @pytest.fixture(autouse=True)
    def mails_stay_in_the_outbox(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def send_nothing(_: object) -> bool:
            return False

        monkeypatch.setattr(mail_service, "send_next", send_nothing)

    async def make(self, *, days: float, **more: Any) -> StoredKey:
        ends_at = within(days=days)
        return await make_api_key(expires_at=ends_at, created_at=ends_at - timedelta(days=400), **more)

    async def test_is_given_14_and_7_and_1_days_before(self, calendar: Calendar) -> None:
        await self.make(days=29.9, owner=await make_user())

        given = [(hours, await calendar.warn(hours=hours)) for hours in range(0, 31 * 24, 6)]

        assert [hours for hours, mails in given for _ in range(mails)] == [16 * 24, 23 * 24, 29 * 24]

    async def test_is_given_once_when_some_were_missed(self, calendar: Calendar) -> None:
        await self.make(days=0.5, owner=await make_user())

        assert [await calendar.warn(), await calendar.warn(), await calendar.warn(hours=1)] == [1, 0, 0]

    async def test_is_given_once_when_several_processes_are_at_it(self, calendar: Calendar) -> None:
        await self.make(days=5, owner=await make_user())

        assert sum(await asyncio.gather(*(calendar.warn() for _ in range(4)))) == 1

    async def test_is_not_given_of_what_was_made_for_so_short_a_time(self, calendar: Calendar) -> None:
        await make_api_key(expires_at=within(days=3), owner=await make_user())

        assert [await calendar.warn(), await calendar.warn(days=2.5)] == [0, 1]

    async def test_is_given_anew_for_another_expiry(self, client: AsyncClient, calendar: Calendar) -> None:
        ada = await make_signed_in()
        key = await self.make(days=5, owner=ada)
        assert await calendar.warn() == 1

        changes = {"expires_at": within(days=6).isoformat()}
        assert (await client.patch(url_of(key), json=changes, headers=ada.headers)).status_code == 200

        assert [await calendar.warn(), await calendar.warn()] == [1, 0]

    async def test_is_not_given_again_of_the_key_in_its_place(self, client: AsyncClient, calendar: Calendar) -> None:
        ada = await make_signed_in()
        key = await self.make(days=5, owner=ada)
        assert await calendar.warn() == 1

        body = {"grace_seconds": 600_000}
        assert (await client.post(f"{url_of(key)}/rotate", json=body, headers=ada.headers)).status_code == 200

        assert await calendar.warn() == 0

    @pytest.mark.parametrize("change", [{"is_active": False}, {"grace_until": utc_now()}, {"expires_at": None}])
    async def test_is_for_keys_in_use_that_end(self, calendar: Calendar, change: dict[str, Any]) -> None:
        key = await self.make(days=5, owner=await make_user())
        await key.document.set(change)

        assert await calendar.warn() == 0

    @pytest.mark.parametrize("is_personal", [False, True])
    async def test_is_not_for_who_is_gone(self, client: AsyncClient, calendar: Calendar, *, is_personal: bool) -> None:
        ada = await make_signed_in()
        owner: StoredUser | None = ada if is_personal else None
        key = await self.make(days=5, owner=owner, created_by=ada.id)
        body = {"current_password": PASSWORD}
        assert (await client.request("DELETE", "/api/v1/users/me", headers=ada.headers, json=body)).status_code == 204
        await key.document.set({"is_active": True})

        assert await calendar.warn() == 0

    async def make_by_key(self, *, days: float = 5) -> StoredKey:
        maker = await make_api_key("admin")
        return await self.make(days=days, created_by=maker.document.id)

    async def test_of_a_key_that_a_key_made_is_for_administrators(self, calendar: Calendar) -> None:
        managers = [await make_user(role=role) for role in (Role.ADMIN, Role.SUPERUSER)]
        await make_user(role=Role.SUPERUSER, is_active=False)
        for role in (Role.SUPPORT, Role.USER, Role.GUEST):
            await make_user(role=role)
        await self.make_by_key()

        assert [await calendar.warn(), await calendar.warn(), await calendar.warn(days=4.5)] == [2, 0, 2]

        assert await recipients() == {user.id for user in managers}
        assert await AuditEvent.count() == 0

    async def test_is_for_ten_administrators_at_most(self, calendar: Calendar) -> None:
        admins = [await make_user(role=Role.ADMIN, created_at=within(days=-days)) for days in range(12)]
        await self.make_by_key()

        assert await calendar.warn() == 10

        assert await recipients() == {user.id for user in admins[2:]}

    @pytest.mark.parametrize("change", [{"is_active": False}, {"role": Role.USER}])
    async def test_is_for_administrators_when_the_maker_is_none_any_more(
        self, calendar: Calendar, change: dict[str, Any]
    ) -> None:
        maker, other = await make_user(role=Role.ADMIN), await make_user(role=Role.ADMIN)
        await self.make(days=5, created_by=maker.id)
        await maker.document.set(change)

        assert await calendar.warn() == 1

        assert await recipients() == {other.id}

    async def test_is_for_the_maker_alone_while_it_administers(self, calendar: Calendar) -> None:
        maker, _ = await make_user(role=Role.ADMIN), await make_user(role=Role.SUPERUSER)
        await self.make(days=5, created_by=maker.id)

        assert await calendar.warn() == 1

        assert await recipients() == {maker.id}

    async def test_is_an_event_and_a_line_of_the_log_when_there_is_nobody(
        self, client: AsyncClient, master: StoredKey, calendar: Calendar
    ) -> None:
        key = await self.make_by_key()

        with capture_logs() as lines:
            assert [await calendar.warn(), await calendar.warn()] == [0, 0]

        (event,) = (await client.get(f"{API_KEYS}/audit-logs", headers=master.headers)).json()
        assert (event["action"], event["target"]["id"], event["details"]) == (
            "api_key:expiry_noticed",
            str(key.document.id),
            {"days": 7},
        )
        assert (event["actor"]["kind"], event["actor"]["name"]) == ("system", "warn_of_expiring_keys")
        unwarned = [line for line in lines if line["event"] == "key_expires_unwarned"]
        assert [(line["log_level"], line["api_key_id"], line["days"]) for line in unwarned] == [
            ("warning", str(key.document.id), 7)
        ]

    async def test_is_no_event_of_a_personal_key(self, calendar: Calendar) -> None:
        key = await self.make(days=5)
        await key.document.set({"owner_id": ObjectId()})

        assert await calendar.warn() == 0

        assert await AuditEvent.count() == 0


async def recipients() -> set[ObjectId | None]:
    return {mail.user_id for mail in await OutgoingMail.find_all().to_list()}


class TestEnd:
    """A job that is cancelled ends after the key that it is at, where the driver swallows the cancellation."""

    @pytest.mark.parametrize(
        ("step", "run", "field"),
        [
            ("_deactivate_some", key_expiry_service.deactivate_expired, "is_active"),
            ("_warn_of", key_expiry_service.warn, "noticed_days"),
        ],
        ids=["of deactivating", "of warning"],
    )
    @pytest.mark.usefixtures("client")
    async def test_comes_at_once(
        self, monkeypatch: pytest.MonkeyPatch, step: str, run: Callable[[], Coroutine[Any, Any, Any]], field: str
    ) -> None:
        monkeypatch.setattr(key_expiry_service, "_BATCH", 2 if step == "_warn_of" else 1)
        days = 0.5 if step == "_warn_of" else -1
        keys = [await make_api_key(expires_at=within(days=days), created_at=within(days=-400)) for _ in range(5)]
        before = [(await stored(key) or {})[field] for key in keys]
        work, begun = getattr(key_expiry_service, step), asyncio.Event()

        async def swallow(*arguments: Any) -> Any:
            begun.set()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0 if running.cancelling() else 10)
            return await work(*arguments)

        monkeypatch.setattr(key_expiry_service, step, swallow)
        running: asyncio.Task[Any] = asyncio.create_task(run())
        await asyncio.wait_for(begun.wait(), 5)

        running.cancel()
        await asyncio.wait_for(asyncio.wait([running]), 5)

        after = [(await stored(key) or {})[field] for key in keys]
        assert sum(new != old for new, old in zip(after, before, strict=True)) == 1


class TestMail:
    @pytest.fixture
    async def client(self, serve: Serve, mailbox: Mailbox) -> AsyncIterator[AsyncClient]:
        async with serve(smtp_url=mailbox.url) as client:
            yield client

    @pytest.mark.parametrize("is_personal", [False, True])
    @pytest.mark.usefixtures("client")
    async def test_says_which_key_and_when(self, mailbox: Mailbox, *, is_personal: bool) -> None:
        ada = await make_user(role=Role.ADMIN)
        ends_at = within(days=5)
        holder: dict[str, Any] = {"owner": ada} if is_personal else {"created_by": ada.id}
        created_at = within(days=-40)
        key = await make_api_key(name="ci", expires_at=ends_at, created_at=created_at, **holder)

        assert await key_expiry_service.warn() == (1,)

        mail = await mailbox.next("An API key expires soon")
        assert mail["To"] == ada.document.email
        assert "\u201cci\u201d" in text_of(mail)
        assert f"{ends_at:%d %B %Y, %H:%M} UTC" in text_of(mail)
        assert key.text not in mail.as_string()
