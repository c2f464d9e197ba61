"""The second factor: setting it up, signing in with it, losing it."""

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET

import bson
import pytest
import segno
from cryptography.fernet import Fernet
from httpx import AsyncClient, Response
from pymongo import MongoClient

from app.core.clock import utc_now
from app.models.session import Session
from app.models.user import User
from tests.api.signing_in import (
    AUTH,
    WRONG,
    bearer,
    enrol,
    events,
    log_in,
    outcome,
    prepare,
    refresh,
    warmed,
    who_am_i,
)
from tests.conftest import ENCRYPTION_KEY, SECRET, Serve
from tests.factories import SignedInUser, make_api_key, make_signed_in, make_user, sign_in
from tests.mailbox import Mailbox, text_of

TOTP = f"{AUTH}/mfa/totp"
CONFIRM = f"{TOTP}/confirm"
RECOVERY = f"{AUTH}/mfa/recovery-codes"
NOON = datetime(2026, 3, 1, 12, 0, 10, tzinfo=UTC)  # ten seconds into a step
NEW_KEY = "b0ZkUnVwN3hqS2RyWm9XcE1hVHlGc0xlQ3ZJZ0hpUUI="
OTHER_SECRET = "Wq7Zr3Tn9Xk5Vb1Mj8Hd4Gs6Fp2Lc0Ya"
Raw = dict[str, Any]
Act = Callable[..., Awaitable[Response]]


class Clock:
    """What the service takes for the time when it looks at codes."""

    def __init__(self) -> None:
        self.now = NOON

    def at(self, **span: float) -> datetime:
        return self.now + timedelta(**span)

    def advance(self, **span: float) -> None:
        self.now += timedelta(**span)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("app.core.totp.utc_now", lambda: clock.now)
    return clock


async def confirm(client: AsyncClient, user: SignedInUser, code: str) -> Response:
    return await client.post(CONFIRM, json={"otp": code}, headers=user.headers)


async def turn_off(client: AsyncClient, user: SignedInUser, **body: str) -> Response:
    return await client.request("DELETE", TOTP, json=body, headers=user.headers)


async def renew(client: AsyncClient, user: SignedInUser, **body: str) -> Response:
    return await client.post(RECOVERY, json=body, headers=user.headers)


async def is_on(client: AsyncClient, user: SignedInUser) -> bool:
    profile = (await client.get("/api/v1/users/me", headers=user.headers)).json()
    return bool(profile["mfa_enabled"])


class TestSetUp:
    async def test_gives_the_secret_as_text_and_as_link(self, client: AsyncClient) -> None:
        ada = await make_signed_in(email="ada@example.com")

        response = await client.post(TOTP, json={"current_password": ada.password}, headers=ada.headers)

        answer = response.json()
        link = urlsplit(answer["otpauth_uri"])
        assert (response.status_code, answer.keys()) == (200, {"secret", "otpauth_uri", "qr_svg"})
        assert len(base64.b32decode(answer["secret"])) == 20
        assert (link.scheme, link.netloc, unquote(link.path)) == ("otpauth", "totp", "/octopus:ada@example.com")
        assert parse_qs(link.query) == {"secret": [answer["secret"]], "issuer": ["octopus"]}

    async def test_draws_the_link_as_a_qr_code(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        answer = (await client.post(TOTP, json={"current_password": ada.password}, headers=ada.headers)).json()

        assert dark_modules(answer["qr_svg"]) == dark_modules_of(segno.make(answer["otpauth_uri"], error="m"))

    async def test_names_the_service_as_its_settings_do(self, serve: Serve) -> None:
        async with serve(jwt_issuer="harbour") as client:
            ada = await make_signed_in()
            answer = (await client.post(TOTP, json={"current_password": ada.password}, headers=ada.headers)).json()

        assert "issuer=harbour" in answer["otpauth_uri"]

    async def test_gives_another_secret_each_time_and_forgets_the_one_before(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        first, second = await prepare(client, ada), await prepare(client, ada)

        assert first.secret != second.secret
        assert outcome(await confirm(client, ada, first.code())) == (401, "invalid_otp")
        assert outcome(await confirm(client, ada, second.code())) == (200, None)

    async def test_changes_nothing_before_it_is_confirmed(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        await prepare(client, ada)

        assert not await is_on(client, ada)
        assert outcome(await log_in(client, ada)) == (200, None)

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({"current_password": WRONG}, (401, "invalid_credentials")),
            ({"current_password": ""}, (401, "invalid_credentials")),
            ({}, (422, "validation_error")),
            ({"current_password": None}, (422, "validation_error")),
        ],
    )
    async def test_needs_the_password(self, client: AsyncClient, body: Raw, expected: tuple[int, str]) -> None:
        ada = await make_signed_in()

        assert outcome(await client.post(TOTP, json=body, headers=ada.headers)) == expected

    async def test_is_refused_while_it_is_on(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        phone = await enrol(client, ada)

        response = await client.post(TOTP, json={"current_password": ada.password}, headers=ada.headers)

        assert outcome(response) == (409, "conflict")
        assert outcome(await log_in(client, ada, otp=phone.recovery_codes[0])) == (200, None)

    async def test_is_recorded_without_the_secret(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        phone = await prepare(client, ada)

        (event,) = await events("mfa:prepared")
        assert (event.actor.id, event.target.id) == (ada.id, ada.id)
        assert phone.secret not in event.model_dump_json()


class TestConfirm:
    async def test_turns_it_on_and_gives_ten_recovery_codes(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        phone = await prepare(client, ada)

        response = await confirm(client, ada, phone.code())

        codes = response.json()["recovery_codes"]
        assert (response.status_code, response.json().keys()) == (200, {"recovery_codes"})
        assert len(set(codes)) == len(codes) == 10
        assert all(re.fullmatch("[2-9a-hjkmnp-z]{6}-[2-9a-hjkmnp-z]{6}", code) for code in codes)
        assert await is_on(client, ada)

    @pytest.mark.parametrize("code", ["000000", "12345", "1234567", "zebra", "١٢٣٤٥٦"])
    async def test_refuses_a_wrong_code(self, client: AsyncClient, code: str) -> None:
        ada = await make_signed_in()
        phone = await prepare(client, ada)

        response = await confirm(client, ada, code)

        assert outcome(response) == (401, "invalid_otp")
        assert not await is_on(client, ada)
        assert outcome(await confirm(client, ada, phone.code())) == (200, None)

    @pytest.mark.parametrize("code", ["", "0" * 65, None, 123456])
    async def test_refuses_what_is_no_code(self, client: AsyncClient, code: object) -> None:
        ada = await make_signed_in()
        await prepare(client, ada)

        response = await client.post(CONFIRM, json={"otp": code}, headers=ada.headers)

        assert outcome(response) == (422, "validation_error")

    async def test_refuses_the_code_of_two_steps_ago(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_signed_in()
        phone = await prepare(client, ada)

        response = await confirm(client, ada, phone.code(clock.at(seconds=-60)))

        assert outcome(response) == (401, "invalid_otp")

    async def test_takes_a_code_with_the_space_that_phones_show(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_signed_in()
        code = (await prepare(client, ada)).code(clock.now)

        assert outcome(await confirm(client, ada, f"{code[:3]} {code[3:]}")) == (200, None)

    async def test_needs_a_set_up(self, client: AsyncClient) -> None:
        assert outcome(await confirm(client, await make_signed_in(), "123456")) == (409, "conflict")

    async def test_belongs_to_the_session_that_set_it_up(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)
        phone = await prepare(client, ada)

        answers = [await confirm(client, elsewhere, code) for code in [phone.code(), *["000000"] * 6]]
        unprepared = await confirm(client, await make_signed_in(), "000000")

        assert {outcome(answer) for answer in answers} == {(409, "conflict")}
        assert answers[0].json()["detail"] == unprepared.json()["detail"]
        assert not await is_on(client, ada)
        assert outcome(await confirm(client, ada, phone.code())) == (200, None)

    @pytest.mark.parametrize(("minutes", "expected"), [(59, (200, None)), (61, (409, "conflict"))])
    async def test_comes_within_an_hour(
        self, client: AsyncClient, minutes: int, expected: tuple[int, str | None]
    ) -> None:
        ada = await make_signed_in()
        phone = await prepare(client, ada)
        begun = {"$set": {"pending_mfa.created_at": utc_now() - timedelta(minutes=minutes)}}
        await User.get_pymongo_collection().update_one({"_id": ada.id}, begun)

        assert outcome(await confirm(client, ada, phone.code())) == expected

    async def test_works_once_also_at_the_same_moment(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        phone = await prepare(client, ada)

        responses = await asyncio.gather(*[confirm(client, ada, phone.code()) for _ in range(5)])

        won = [response for response in responses if response.is_success]
        assert len(won) == 1
        assert {outcome(response) for response in responses if response.is_error} == {(409, "conflict")}
        code = won[0].json()["recovery_codes"][0]
        assert outcome(await log_in(client, ada, otp=code)) == (200, None)

    async def test_ends_the_other_sessions_at_once(self, client: AsyncClient) -> None:
        await warmed(client)
        ada = await make_signed_in()
        elsewhere, bob = await sign_in(ada), await make_signed_in()
        assert (await who_am_i(client, elsewhere.access_token)).status_code == 200

        await enrol(client, ada)

        assert outcome(await who_am_i(client, elsewhere.access_token)) == (401, "token_revoked")
        assert outcome(await refresh(client, elsewhere.refresh_token)) == (401, "token_revoked")
        assert (await who_am_i(client, ada.access_token)).status_code == 200
        assert (await who_am_i(client, bob.access_token)).status_code == 200

    async def test_marks_the_session_in_use_as_one_with_a_second_factor(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        await enrol(client, ada)

        (session,) = (await client.get(f"{AUTH}/sessions", headers=ada.headers)).json()
        assert session["has_mfa"] is True

    async def test_is_told_and_recorded(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url, address="192.0.2.44") as client:
            ada = await make_signed_in(email="ada@example.com")
            await enrol(client, ada)

            mail = await mailbox.next()
            (event,) = await events("mfa:enabled")

        assert (mail["To"], mail["Subject"]) == ("ada@example.com", "Two-factor authentication is on")
        assert (event.actor.id, event.target.id, event.outcome) == (ada.id, ada.id, "success")


class TestLogIn:
    async def test_asks_for_a_code_once_the_password_is_right(self, client: AsyncClient) -> None:
        ada = await make_user()
        await enrol(client, ada)
        before = await Session.count()

        assert outcome(await log_in(client, ada)) == (401, "mfa_required")
        assert outcome(await log_in(client, ada, WRONG)) == (401, "invalid_credentials")
        assert outcome(await log_in(client, ada, WRONG, otp="000000")) == (401, "invalid_credentials")
        assert await Session.count() == before

    async def test_takes_a_code_of_the_phone(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_user()
        phone = await enrol(client, ada, clock.now)
        clock.advance(seconds=30)

        response = await log_in(client, ada, otp=phone.code(clock.now))

        assert response.status_code == 200
        rows = (await client.get(f"{AUTH}/sessions", headers=bearer(response.json()["access_token"]))).json()
        assert [row["has_mfa"] for row in rows if row["is_current"]] == [True]

    async def test_needs_no_code_without_a_second_factor_and_minds_none(self, client: AsyncClient) -> None:
        ada = await make_user()

        assert outcome(await log_in(client, ada, otp="000000")) == (200, None)

    @pytest.mark.parametrize("code", ["000000", "0", "zebra", "2222-2222-2222", "١٢٣٤٥٦", "-", " "])
    async def test_refuses_a_wrong_code(self, client: AsyncClient, code: str) -> None:
        ada = await make_user()
        await enrol(client, ada)

        response = await log_in(client, ada, otp=code)

        assert outcome(response) == (401, "invalid_otp")
        assert "zebra" not in response.text

    @pytest.mark.parametrize("code", ["", "0" * 65, 123456, {"$gt": ""}])
    async def test_refuses_what_is_no_code(self, client: AsyncClient, code: object) -> None:
        ada = await make_user()
        await enrol(client, ada)

        assert outcome(await log_in(client, ada, otp=code)) == (422, "validation_error")

    async def test_does_not_take_the_code_that_turned_it_on(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_user()
        phone = await enrol(client, ada, clock.now)

        assert outcome(await log_in(client, ada, otp=phone.code(clock.now))) == (401, "invalid_otp")

    async def test_does_not_take_a_code_twice(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_user()
        phone = await enrol(client, ada, clock.now)
        clock.advance(seconds=30)

        answers = [outcome(await log_in(client, ada, otp=phone.code(clock.now))) for _ in range(2)]

        assert answers == [(200, None), (401, "invalid_otp")]

    async def test_does_not_take_a_code_twice_at_the_same_moment(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_user()
        phone = await enrol(client, ada, clock.now)
        clock.advance(seconds=30)

        responses = await asyncio.gather(*[log_in(client, ada, otp=phone.code(clock.now)) for _ in range(4)])

        assert sorted(map(outcome, responses), key=str) == [(200, None), *[(401, "invalid_otp")] * 3]
        assert len(await events("session:created")) == 1

    async def test_does_not_take_an_earlier_code_after_a_later_one(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_user()
        phone = await enrol(client, ada, clock.now)
        clock.advance(minutes=5)

        later = await log_in(client, ada, otp=phone.code(clock.at(seconds=30)))
        earlier = [await log_in(client, ada, otp=phone.code(clock.at(seconds=-30 * back))) for back in (0, 1)]

        assert outcome(later) == (200, None)
        assert [outcome(response) for response in earlier] == [(401, "invalid_otp")] * 2

    @pytest.mark.parametrize("seconds", [-30, 30])
    async def test_takes_a_clock_that_is_half_a_minute_off(
        self, client: AsyncClient, clock: Clock, seconds: int
    ) -> None:
        ada = await make_user()
        phone = await enrol(client, ada, clock.now)
        clock.advance(minutes=5)

        assert outcome(await log_in(client, ada, otp=phone.code(clock.at(seconds=seconds)))) == (200, None)

    @pytest.mark.parametrize("seconds", [-60, 60, -3600, 3600])
    async def test_does_not_take_a_clock_that_is_further_off(
        self, client: AsyncClient, clock: Clock, seconds: int
    ) -> None:
        ada = await make_user()
        phone = await enrol(client, ada, clock.now)
        clock.advance(hours=5)

        response = await log_in(client, ada, otp=phone.code(clock.at(seconds=seconds)))

        assert outcome(response) == (401, "invalid_otp")

    async def test_does_not_take_the_code_of_another(self, client: AsyncClient, clock: Clock) -> None:
        ada, bob = await make_user(), await make_user()
        await enrol(client, ada, clock.now)
        phone = await enrol(client, bob, clock.now)
        clock.advance(seconds=30)

        for code in (phone.code(clock.now), phone.recovery_codes[0]):
            assert outcome(await log_in(client, ada, otp=code)) == (401, "invalid_otp")

    async def test_leaves_a_code_good_that_let_nobody_in(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_user()
        phone = await enrol(client, ada, clock.now)
        clock.advance(seconds=30)
        code = phone.code(clock.now)

        await log_in(client, ada, WRONG, otp=code)

        assert outcome(await log_in(client, ada, otp=code)) == (200, None)


class TestTokenForm:
    async def test_takes_a_code_beside_the_password(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_user(username="ada")
        phone = await enrol(client, ada, clock.now)
        clock.advance(seconds=30)
        form = {"grant_type": "password", "username": "ada", "password": ada.password}

        without = await client.post(f"{AUTH}/token", data=form)
        wrong = await client.post(f"{AUTH}/token", data={**form, "otp": "000000"})
        right = await client.post(f"{AUTH}/token", data={**form, "otp": phone.code(clock.now)})

        assert outcome(without) == (401, "mfa_required")
        assert outcome(wrong) == (401, "invalid_otp")
        assert outcome(right) == (200, None)


class TestRecoveryCode:
    async def test_signs_in_once_each(self, client: AsyncClient) -> None:
        ada = await make_user()
        phone = await enrol(client, ada)

        answers = [outcome(await log_in(client, ada, otp=code)) for code in phone.recovery_codes for _ in range(2)]

        assert answers == [(200, None), (401, "invalid_otp")] * 10

    async def test_signs_in_once_also_at_the_same_moment(self, client: AsyncClient) -> None:
        ada = await make_user()
        phone = await enrol(client, ada)

        responses = await asyncio.gather(*[log_in(client, ada, otp=phone.recovery_codes[0]) for _ in range(4)])

        assert sorted(map(outcome, responses), key=str) == [(200, None), *[(401, "invalid_otp")] * 3]

    async def test_is_read_as_people_write_it(self, client: AsyncClient) -> None:
        ada = await make_user()
        codes = (await enrol(client, ada)).recovery_codes

        written = [codes[0].upper(), codes[1].replace("-", ""), codes[2].replace("-", " "), f" {codes[3]} "]

        assert [outcome(await log_in(client, ada, otp=code)) for code in written] == [(200, None)] * 4

    async def test_is_told_and_recorded_with_how_many_are_left(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            ada = await make_user(email="ada@example.com")
            phone = await enrol(client, ada)
            await log_in(client, ada, otp=phone.recovery_codes[0])

            mail = await mailbox.next("A recovery code was used")
            (event,) = await events("recovery_code:used")

        assert mail["To"] == "ada@example.com"
        assert "9" in text_of(mail)
        assert phone.recovery_codes[0] not in text_of(mail)
        assert (event.target.id, event.details) == (ada.id, {"left": 9})

    async def test_works_while_the_secret_of_the_service_is_a_previous_one(self, serve: Serve) -> None:
        async with serve() as client:
            ada = await make_user()
            phone = await enrol(client, ada)
        async with serve(secret_key=OTHER_SECRET, previous_secret_keys=SECRET) as client:
            answers = [outcome(await log_in(client, ada, otp=phone.recovery_codes[0])) for _ in range(2)]

        assert answers == [(200, None), (401, "invalid_otp")]


class TestRenewal:
    async def test_gives_ten_new_codes_and_voids_the_old(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        old = (await enrol(client, ada)).recovery_codes

        response = await renew(client, ada, current_password=ada.password, otp=old[0])

        new = response.json()["recovery_codes"]
        assert (response.status_code, len(set(new))) == (200, 10)
        assert not set(new) & set(old)
        assert outcome(await log_in(client, ada, otp=old[1])) == (401, "invalid_otp")
        assert outcome(await log_in(client, ada, otp=new[0])) == (200, None)

    async def test_leaves_the_phone_as_it_is(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_signed_in()
        phone = await enrol(client, ada, clock.now)
        clock.advance(seconds=30)
        assert (await renew(client, ada, current_password=ada.password, otp=phone.code(clock.now))).is_success
        clock.advance(seconds=30)

        assert outcome(await log_in(client, ada, otp=phone.code(clock.now))) == (200, None)

    async def test_is_recorded(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        phone = await enrol(client, ada)

        await renew(client, ada, current_password=ada.password, otp=phone.recovery_codes[0])

        (event,) = await events("recovery_codes:renewed")
        assert (event.actor.id, event.target.id) == (ada.id, ada.id)

    async def test_is_told_without_the_codes(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url, address="192.0.2.44") as client:
            ada = await make_signed_in(email="ada@example.com")
            phone = await enrol(client, ada)
            codes = (await renew(client, ada, current_password=ada.password, otp=phone.recovery_codes[0])).json()

            mail = await mailbox.next("You have new recovery codes")

        assert mail["To"] == "ada@example.com"
        assert "192.0.2.44" in text_of(mail)
        assert not [code for code in codes["recovery_codes"] if code in text_of(mail)]


@pytest.mark.parametrize("act", [turn_off, renew])
class TestPasswordAndCode:
    async def test_are_both_needed(self, client: AsyncClient, act: Act) -> None:
        ada = await make_signed_in()
        phone = await enrol(client, ada)
        code = phone.recovery_codes[0]

        assert outcome(await act(client, ada, otp=code)) == (422, "validation_error")
        assert outcome(await act(client, ada, current_password=WRONG, otp=code)) == (401, "invalid_credentials")
        assert outcome(await act(client, ada, current_password=ada.password)) == (401, "mfa_required")
        assert outcome(await act(client, ada, current_password=ada.password, otp="000000")) == (401, "invalid_otp")
        assert await is_on(client, ada)
        assert (await act(client, ada, current_password=ada.password, otp=code)).is_success

    async def test_are_tried_five_times(self, client: AsyncClient, act: Act) -> None:
        ada = await make_signed_in()
        phone = await enrol(client, ada)

        tries = [await act(client, ada, current_password=ada.password, otp="000000") for _ in range(5)]
        right = await act(client, ada, current_password=ada.password, otp=phone.recovery_codes[0])

        assert {outcome(response) for response in tries} == {(401, "invalid_otp")}
        assert outcome(right) == (429, "account_locked")
        assert await is_on(client, ada)

    async def test_are_not_tried_more_often_with_the_help_of_the_password_alone(
        self, client: AsyncClient, act: Act
    ) -> None:
        ada = await make_signed_in()
        await enrol(client, ada)
        for _ in range(4):
            await act(client, ada, current_password=ada.password, otp="000000")
        body = {"email": "countess@example.com", "current_password": ada.password}
        refused = await client.patch("/api/v1/users/me", json=body, headers=ada.headers)
        assert outcome(refused) == (401, "mfa_required")

        await act(client, ada, current_password=ada.password, otp="000000")

        response = await act(client, ada, current_password=ada.password, otp="000000")
        assert outcome(response) == (429, "account_locked")

    async def test_are_refused_where_it_is_not_on(self, client: AsyncClient, act: Act) -> None:
        ada = await make_signed_in()

        assert outcome(await act(client, ada, current_password=ada.password, otp="000000")) == (409, "conflict")


class TestTurnOff:
    async def test_goes_back_to_the_password_alone(self, client: AsyncClient, clock: Clock) -> None:
        ada = await make_signed_in()
        phone = await enrol(client, ada, clock.now)
        clock.advance(seconds=30)

        response = await turn_off(client, ada, current_password=ada.password, otp=phone.code(clock.now))

        assert (response.status_code, response.content) == (204, b"")
        assert not await is_on(client, ada)
        assert outcome(await log_in(client, ada)) == (200, None)
        rows = (await client.get(f"{AUTH}/sessions", headers=ada.headers)).json()
        assert {row["has_mfa"] for row in rows} == {False}

    async def test_leaves_nothing_of_it_behind(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        phone = await enrol(client, ada)

        await turn_off(client, ada, current_password=ada.password, otp=phone.recovery_codes[0])

        stored = await User.get_pymongo_collection().find_one({"_id": ada.id})
        assert stored is not None
        assert (stored["mfa"], stored["pending_mfa"]) == (None, None)

    async def test_lets_another_phone_be_set_up(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        old = await enrol(client, ada)
        await turn_off(client, ada, current_password=ada.password, otp=old.recovery_codes[0])

        new = await enrol(client, ada)

        assert outcome(await log_in(client, ada, otp=old.recovery_codes[1])) == (401, "invalid_otp")
        assert outcome(await log_in(client, ada, otp=new.recovery_codes[1])) == (200, None)

    async def test_is_told_and_recorded(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            ada = await make_signed_in(email="ada@example.com")
            phone = await enrol(client, ada)
            await turn_off(client, ada, current_password=ada.password, otp=phone.recovery_codes[0])

            mail = await mailbox.next("Two-factor authentication is off")
            (event,) = await events("mfa:disabled")

        assert mail["To"] == "ada@example.com"
        assert (event.actor.id, event.target.id) == (ada.id, ada.id)


class TestWhoMay:
    REQUESTS = (
        ("POST", TOTP, {"current_password": "zebra"}),
        ("POST", CONFIRM, {"otp": "000000"}),
        ("DELETE", TOTP, {"current_password": "zebra", "otp": "000000"}),
        ("POST", RECOVERY, {"current_password": "zebra", "otp": "000000"}),
    )

    @pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
    async def test_is_only_who_is_signed_in(self, client: AsyncClient, method: str, path: str, body: Raw) -> None:
        personal, service = await make_api_key("admin", owner=await make_user()), await make_api_key("admin")

        nobody = await client.request(method, path, json=body)
        keys = [await client.request(method, path, json=body, headers=key.headers) for key in (personal, service)]

        assert outcome(nobody) == (401, "not_authenticated")
        assert [outcome(response) for response in keys] == [(403, "forbidden")] * 2


class TestStorage:
    async def test_holds_nothing_that_shows_codes(
        self, client: AsyncClient, mongodb: MongoClient[Raw], database_url: str
    ) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        phone, pending = await enrol(client, ada), await prepare(client, bob)
        await log_in(client, ada, otp=phone.recovery_codes[0])

        database = mongodb[urlsplit(database_url).path[1:]]
        stored = b"".join(
            bson.encode(row) for name in database.list_collection_names() for row in database[name].find()
        ).lower()

        readable = [code for full in phone.recovery_codes for code in (full, full.replace("-", ""))]
        assert str(ada.document.email).encode() in stored
        for secret in (phone.secret, pending.secret):
            assert secret.lower().encode() not in stored
            assert base64.b32decode(secret).lower() not in stored
        assert not [code for code in readable if code.encode() in stored]

    async def test_is_bound_to_the_encryption_key(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        phone = await enrol(client, ada)

        user = await User.find_one({"_id": ada.id})

        assert user is not None
        assert user.mfa is not None
        assert Fernet(ENCRYPTION_KEY).decrypt(user.mfa.encrypted_secret).decode() == phone.secret


class TestChangeOfTheEncryptionKey:
    async def test_keeps_the_phones_that_were_set_up_under_the_old_one(self, serve: Serve, clock: Clock) -> None:
        async with serve() as client:
            ada = await make_user()
            phone = await enrol(client, ada, clock.now)
        clock.advance(seconds=30)
        async with serve(encryption_keys=[NEW_KEY, ENCRYPTION_KEY]) as client:
            response = await log_in(client, ada, otp=phone.code(clock.now))

        assert outcome(response) == (200, None)

    async def test_sets_new_phones_up_under_the_new_one(self, serve: Serve, clock: Clock) -> None:
        async with serve(encryption_keys=[NEW_KEY, ENCRYPTION_KEY]) as client:
            ada = await make_user()
            phone = await enrol(client, ada, clock.now)
        clock.advance(seconds=30)
        async with serve(encryption_keys=[NEW_KEY]) as client:
            response = await log_in(client, ada, otp=phone.code(clock.now))

        assert outcome(response) == (200, None)


Modules = set[tuple[int, int]]
_STROKE = re.compile(r"([Mmh])(-?[\d.]+)(?:[ ,]?(-?[\d.]+))?")


def dark_modules(svg: str) -> Modules:
    """Where a QR code that is drawn as strokes one module high is dark; the outermost ones are at 0."""
    root = ET.fromstring(svg)  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    (path,) = root.iter("{http://www.w3.org/2000/svg}path")
    return moved_to_the_corner(set(drawn(path.attrib["d"])))


def drawn(path: str) -> Iterator[tuple[int, int]]:
    x = y = 0.0
    for command, first, second in _STROKE.findall(path):
        if command == "h":
            yield from ((int(x) + number, int(y)) for number in range(int(first)))
            x += int(first)
        elif command == "M":
            x, y = float(first), float(second)
        else:
            x, y = x + float(first), y + float(second)


def dark_modules_of(code: segno.QRCode) -> Modules:
    rows = enumerate(code.matrix)
    return moved_to_the_corner({(x, y) for y, row in rows for x, bit in enumerate(row) if bit})


def moved_to_the_corner(modules: Modules) -> Modules:
    left, top = min(x for x, _ in modules), min(y for _, y in modules)
    return {(x - left, y - top) for x, y in modules}
