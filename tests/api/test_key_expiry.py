"""Keys that come to their end: listed, warned of, and deactivated."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from httpx import AsyncClient

from app.core.clock import utc_now
from app.core.scopes import Role
from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from app.services import key_expiry_service
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

    async def test_is_not_for_the_key_that_made_a_key(self, calendar: Calendar) -> None:
        maker = await make_api_key("admin")
        await self.make(days=5, created_by=maker.document.id)

        assert await calendar.warn() == 0


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
