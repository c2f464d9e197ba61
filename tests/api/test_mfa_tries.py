"""How often a code of the second factor may be tried, whatever else whoever tries knows."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from httpx import AsyncClient, Response

from app.core.clock import utc_now
from app.crud import crud_user
from app.models.login_throttle import LoginThrottle
from app.models.outgoing_mail import OutgoingMail
from tests.api.signing_in import AUTH, WRONG, Phone, enrol, events, let_pass, log_in, outcome, prepare
from tests.conftest import Serve
from tests.factories import SignedInUser, StoredUser, make_signed_in, make_user
from tests.mailbox import Mailbox, text_of, token_in

LOCKED = (429, "account_locked")
INVALID = (401, "invalid_otp")
NEW_PASSWORD = "quartz-Lemon-17-violin"
NOTICE = "Somebody is entering wrong codes for your account"
Try = Callable[[AsyncClient, SignedInUser, str], Awaitable[Response]]


async def sign_in_by_json(client: AsyncClient, user: StoredUser, code: str) -> Response:
    return await log_in(client, user, otp=code)


async def sign_in_by_form(client: AsyncClient, user: StoredUser, code: str) -> Response:
    form = {"grant_type": "password", "username": user.document.email, "password": user.password, "otp": code}
    return await client.post(f"{AUTH}/token", data=form)


async def turn_off(client: AsyncClient, user: SignedInUser, code: str) -> Response:
    body = {"current_password": user.password, "otp": code}
    return await client.request("DELETE", f"{AUTH}/mfa/totp", json=body, headers=user.headers)


async def renew(client: AsyncClient, user: SignedInUser, code: str) -> Response:
    body = {"current_password": user.password, "otp": code}
    return await client.post(f"{AUTH}/mfa/recovery-codes", json=body, headers=user.headers)


async def confirm(client: AsyncClient, user: SignedInUser, code: str) -> Response:
    return await client.post(f"{AUTH}/mfa/totp/confirm", json={"otp": code}, headers=user.headers)


async def enrolled(client: AsyncClient, **properties: Any) -> tuple[SignedInUser, Phone]:
    ada = await make_signed_in(**properties)
    return ada, await enrol(client, ada)


async def guess(client: AsyncClient, user: StoredUser, times: int = 5) -> None:
    """Sign in with the right password and wrong codes, one after the other."""
    for _ in range(times):
        assert outcome(await log_in(client, user, otp="000000")) == INVALID


async def reasons() -> Counter[str]:
    return Counter(event.details["reason"] for event in await events("session:refused"))


USES = [sign_in_by_json, sign_in_by_form, turn_off, renew]


class TestLock:
    @pytest.mark.parametrize("use", USES)
    async def test_comes_with_the_fifth_wrong_code(self, client: AsyncClient, use: Try) -> None:
        ada, phone = await enrolled(client)

        answers = [outcome(await use(client, ada, "000000")) for _ in range(5)]
        right = await use(client, ada, phone.recovery_codes[0])

        assert answers == [INVALID] * 5
        assert outcome(right) == LOCKED
        assert 55 <= int(right.headers["retry-after"]) <= 60
        assert "password" not in right.json()["detail"]

    async def test_comes_while_it_is_set_up_too(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        phone = await prepare(client, ada)

        answers = [outcome(await confirm(client, ada, "000000")) for _ in range(5)]
        right = await confirm(client, ada, phone.code())

        assert answers == [INVALID] * 5
        assert outcome(right) == LOCKED
        assert 55 <= int(right.headers["retry-after"]) <= 60
        await let_pass(seconds=61)
        assert outcome(await confirm(client, ada, phone.code())) == (200, None)
        assert await LoginThrottle.find({"tries": {"$gte": 5}}).count() == 0

    async def test_adds_up_the_tries_of_all_ways(self, client: AsyncClient) -> None:
        ada, phone = await enrolled(client)
        for use in (*USES, sign_in_by_json):
            assert outcome(await use(client, ada, "000000")) == INVALID

        assert {outcome(await use(client, ada, phone.recovery_codes[0])) for use in USES} == {LOCKED}

    async def test_does_not_lock_the_password(self, client: AsyncClient) -> None:
        ada, _ = await enrolled(client)
        await guess(client, ada)

        assert outcome(await log_in(client, ada)) == (401, "mfa_required")
        assert outcome(await log_in(client, ada, WRONG)) == (401, "invalid_credentials")
        assert await reasons() == {"wrong code": 5, "wrong password": 1}

    async def test_leaves_other_accounts_alone(self, client: AsyncClient) -> None:
        ada, _ = await enrolled(client)
        bob, phone = await enrolled(client)

        await guess(client, ada)

        assert outcome(await log_in(client, bob, otp=phone.recovery_codes[0])) == (200, None)

    async def test_doubles_up_to_an_hour(self, client: AsyncClient) -> None:
        ada, _ = await enrolled(client)
        await guess(client, ada, times=4)

        waits = []
        for _ in range(8):
            await guess(client, ada, times=1)
            waits.append(int((await log_in(client, ada, otp="000000")).headers["retry-after"]))
            await let_pass(seconds=waits[-1] + 1)

        expected = [60, 120, 240, 480, 960, 1920, 3600, 3600]
        assert all(0 <= full - wait <= 5 for wait, full in zip(waits, expected, strict=True))

    @pytest.mark.usefixtures("patience")
    async def test_lets_five_of_thirty_at_once_be_looked_at(self, client: AsyncClient) -> None:
        ada, phone = await enrolled(client)

        responses = await asyncio.gather(*[log_in(client, ada, otp=f"{number:06}") for number in range(30)])

        assert Counter(map(outcome, responses)) == {INVALID: 5, LOCKED: 25}
        assert (await reasons())["wrong code"] == 5
        assert len(await events("user:locked")) == 1
        assert outcome(await log_in(client, ada, otp=phone.recovery_codes[0])) == LOCKED

    async def test_lets_ten_right_codes_at_once_pass(self, client: AsyncClient) -> None:
        ada, phone = await enrolled(client)

        responses = await asyncio.gather(*[log_in(client, ada, otp=code) for code in phone.recovery_codes])

        assert {outcome(response) for response in responses} == {(200, None)}


class TestCount:
    async def test_is_cleared_by_a_right_code(self, client: AsyncClient) -> None:
        ada, phone = await enrolled(client)
        for code in phone.recovery_codes[:3]:
            await guess(client, ada, times=4)
            assert outcome(await log_in(client, ada, otp=code)) == (200, None)

        assert await LoginThrottle.count() == 0

    async def test_is_not_cleared_by_a_right_password(self, client: AsyncClient) -> None:
        ada, phone = await enrolled(client)
        await guess(client, ada, times=4)
        for _ in range(3):
            assert outcome(await log_in(client, ada)) == (401, "mfa_required")

        await guess(client, ada, times=1)

        assert outcome(await log_in(client, ada, otp=phone.recovery_codes[0])) == LOCKED

    async def test_is_not_cleared_by_a_password_reset(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            ada, phone = await enrolled(client, is_verified=True)
            await guess(client, ada)
            await client.post(f"{AUTH}/password/forgot", json={"email": ada.document.email})
            token = token_in(await mailbox.next("Reset your password"))
            ada.password = NEW_PASSWORD
            body = {"token": token, "password": NEW_PASSWORD}
            assert (await client.post(f"{AUTH}/password/reset", json=body)).status_code == 204

            assert outcome(await log_in(client, ada)) == (401, "mfa_required")
            assert outcome(await log_in(client, ada, otp=phone.recovery_codes[0])) == LOCKED

    @pytest.mark.parametrize(
        ("span", "answer"), [(timedelta(hours=23, minutes=59), LOCKED), (timedelta(hours=24, seconds=1), INVALID)]
    )
    async def test_is_forgotten_after_a_day_without_a_try(
        self, client: AsyncClient, span: timedelta, answer: tuple[int, str]
    ) -> None:
        ada, _ = await enrolled(client)
        await guess(client, ada, times=4)
        await let_pass(seconds=span.total_seconds())

        await guess(client, ada, times=1)

        assert outcome(await log_in(client, ada, otp="000000")) == answer

    async def test_is_cleared_by_staff(self, client: AsyncClient) -> None:
        staff = await make_signed_in(role="support", staff_level=2)
        ada, phone = await enrolled(client)
        await guess(client, ada)
        ada.password, right = WRONG, ada.password
        for _ in range(5):
            await turn_off(client, ada, "000000")
        ada.password = right

        response = await client.post(f"/api/v1/staff/users/{ada.id}/reset-limits", json={}, headers=staff.headers)

        assert response.is_success
        assert outcome(await log_in(client, ada, otp=phone.recovery_codes[0])) == (200, None)
        assert (await turn_off(client, ada, phone.recovery_codes[1])).is_success

    async def test_counts_no_codes_without_a_second_factor(self, client: AsyncClient) -> None:
        ada = await make_user()

        answers = [outcome(await log_in(client, ada, otp="000000")) for _ in range(7)]

        assert answers == [(200, None)] * 7


class TestNotice:
    async def test_is_mailed_to_the_owner(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url, address="192.0.2.44") as client:
            ada, _ = await enrolled(client, email="ada@example.com")
            await guess(client, ada)

            mail = await mailbox.next(NOTICE)

        assert mail["To"] == "ada@example.com"
        for said in ("5 wrong codes", "192.0.2.44", "knows your password", "change your password"):
            assert said in text_of(mail)

    async def test_is_mailed_once_a_day_as_long_as_the_guessing_goes_on(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.main.send_forever", asyncio.Event().wait)  # the mails stay in the outbox
        async with serve() as client:
            ada, _ = await enrolled(client)
            await guess(client, ada)
            mails = []
            for hours in (2, 21, 2, 2):
                await let_pass(hours=hours)
                await guess(client, ada, times=1)
                mails.append(await OutgoingMail.find({"kind": "second_factor_locked"}).count())

            assert mails == [1, 1, 2, 2]
            assert len(await events("user:locked")) == 1

    async def test_is_recorded(self, client: AsyncClient) -> None:
        ada, _ = await enrolled(client)

        await guess(client, ada)
        await log_in(client, ada, otp="000000")

        (event,) = await events("user:locked")
        assert (event.actor.kind, event.outcome, event.target.id) == ("anonymous", "failure", ada.id)
        assert event.details == {"count": "second factor", "tries": 5}
        assert await reasons() == {"wrong code": 5, "codes are locked": 1}


class TestRace:
    async def test_of_signing_in_with_turning_it_on_lets_no_code_be_looked_at_uncounted(
        self, client: AsyncClient
    ) -> None:
        ada = await make_user()
        as_it_was = await crud_user.require(ada.id)
        await enrol(client, ada)

        started = await crud_user.mark_logged_in(as_it_was, at=utc_now(), ip=None)

        assert started is None
