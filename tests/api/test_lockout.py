"""How often a password may be tried, from wherever, and what an attacker learns and spoils by trying."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from httpx import AsyncClient, Response

from app.core import passwords
from app.core.exceptions import DatabaseUnavailableError
from app.crud import crud_login_throttle
from app.models.login_throttle import LoginThrottle
from app.models.outgoing_mail import OutgoingMail
from app.models.session import Session
from app.services import credential_service, login_service, throttle_service
from tests.api.signing_in import AUTH, WRONG, enrol, events, let_pass, log_in, outcome
from tests.commands import Commands
from tests.conftest import SECRET, Serve
from tests.factories import PASSWORD, SignedInUser, StoredUser, make_signed_in, make_user, sign_in
from tests.mailbox import Mailbox, text_of, token_in
from tests.test_server import Server

LOCKED = (429, "account_locked")
REFUSED = (401, "invalid_credentials")
USERS = "/api/v1/users"
LOCK_MAIL = "Somebody is trying to sign in to your account"


async def fail(client: AsyncClient, user: StoredUser, times: int = 5) -> None:
    """Fail to sign in that often, one after the other."""
    for _ in range(times):
        assert outcome(await log_in(client, user, WRONG)) == REFUSED


async def reasons() -> Counter[str]:
    """Why sign-ins were refused, as the audit trail has it."""
    return Counter(event.details["reason"] for event in await events("session:refused"))


class TestLock:
    async def test_comes_with_the_fifth_failure_and_refuses_the_right_password_too(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada, times=5)

        response = await log_in(client, ada)

        assert outcome(response) == LOCKED
        assert 55 <= int(response.headers["retry-after"]) <= 60
        assert await Session.count() == 0

    async def test_does_not_come_with_the_fourth(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada, times=4)

        assert outcome(await log_in(client, ada)) == (200, None)

    async def test_holds_for_every_address(self, serve: Serve) -> None:
        async with serve(address="192.0.2.1") as here:
            ada = await make_user()
            await fail(here, ada)
        async with serve(address="198.51.100.7") as there:
            assert outcome(await log_in(there, ada)) == LOCKED

    async def test_adds_up_the_tries_of_every_address(self, serve: Serve) -> None:
        ada = None
        for number in range(5):
            async with serve(address=f"192.0.2.{number}") as client:
                ada = ada or await make_user()
                await fail(client, ada, times=1)
        async with serve() as client:
            assert ada is not None
            assert outcome(await log_in(client, ada)) == LOCKED

    async def test_leaves_other_accounts_alone(self, client: AsyncClient) -> None:
        ada, bob = await make_user(), await make_user()

        await fail(client, ada)

        assert outcome(await log_in(client, bob)) == (200, None)

    async def test_counts_every_name_of_an_account_for_the_same_account(self, client: AsyncClient) -> None:
        ada = await make_user(email="ada@example.com", username="ada")
        for account in ({"email": "ada@example.com"}, {"username": "ada"}, {"email": "ADA@example.com"}) * 2:
            await client.post(f"{AUTH}/login", json={**account, "password": WRONG})

        by_email = await log_in(client, ada)
        by_name = await client.post(f"{AUTH}/login", json={"username": "Ada", "password": ada.password})
        form = {"grant_type": "password", "username": "ada", "password": ada.password}
        by_form = await client.post(f"{AUTH}/token", data=form)

        assert outcome(by_email) == outcome(by_name) == outcome(by_form) == LOCKED

    async def test_counts_the_form_too(self, client: AsyncClient) -> None:
        ada = await make_user(username="ada")
        form = {"grant_type": "password", "username": "ada", "password": WRONG}
        for _ in range(5):
            assert outcome(await client.post(f"{AUTH}/token", data=form)) == REFUSED

        assert outcome(await log_in(client, ada)) == LOCKED

    async def test_looks_at_no_password_while_it_holds(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_user()
        await fail(client, ada)
        looked_at = count_checks(monkeypatch)

        for password in (ada.password, WRONG):
            assert outcome(await log_in(client, ada, password)) == LOCKED

        assert looked_at == []

    async def test_is_not_prolonged_by_tries_that_it_refuses(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada)
        await let_pass(seconds=30)

        for _ in range(3):
            response = await log_in(client, ada, WRONG)

        assert 20 <= int(response.headers["retry-after"]) <= 30
        await let_pass(seconds=31)
        assert outcome(await log_in(client, ada)) == (200, None)

    async def test_leaves_signed_in_devices_alone(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        await fail(client, ada)

        assert (await client.get(f"{AUTH}/me", headers=ada.headers)).status_code == 200
        renewed = await client.post(f"{AUTH}/refresh", json={"refresh_token": ada.refresh_token})
        assert renewed.status_code == 200

    async def test_doubles_up_to_an_hour(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada, times=4)

        waits = []
        for _ in range(9):
            await fail(client, ada, times=1)
            waits.append(int((await log_in(client, ada)).headers["retry-after"]))
            await let_pass(seconds=waits[-1] + 1)

        expected = [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
        assert all(0 <= full - wait <= 5 for wait, full in zip(waits, expected, strict=True))

    async def test_gives_one_try_when_it_has_passed(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada)
        await let_pass(seconds=61)

        await fail(client, ada, times=1)

        assert outcome(await log_in(client, ada)) == LOCKED

    async def test_starts_at_a_minute_again_after_a_success(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada)
        await let_pass(seconds=61)
        assert outcome(await log_in(client, ada)) == (200, None)

        await fail(client, ada)

        assert int((await log_in(client, ada)).headers["retry-after"]) <= 60

    async def test_ends_with_a_password_reset_by_mail(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            ada = await make_user()
            await fail(client, ada)
            await client.post(f"{AUTH}/password/forgot", json={"email": ada.document.email})
            token = token_in(await mailbox.next("Reset your password"))
            ada.password = "quartz-Lemon-17-violin"

            await client.post(f"{AUTH}/password/reset", json={"token": token, "password": ada.password})

            assert outcome(await log_in(client, ada)) == (200, None)


class TestWindow:
    async def test_forgets_failures_after_fifteen_minutes(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada, times=4)
        await let_pass(minutes=15, seconds=1)

        await fail(client, ada, times=4)

        assert outcome(await log_in(client, ada)) == (200, None)

    async def test_remembers_them_for_fourteen(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada, times=4)
        await let_pass(minutes=14)

        await fail(client, ada, times=1)

        assert outcome(await log_in(client, ada)) == LOCKED

    async def test_begins_behind_the_lock(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada)
        await let_pass(minutes=15)
        await fail(client, ada, times=1)
        assert int((await log_in(client, ada)).headers["retry-after"]) > 60

        await let_pass(minutes=17, seconds=1)
        await fail(client, ada, times=4)

        assert outcome(await log_in(client, ada)) == (200, None)

    async def test_is_forgotten_by_the_database_itself(self, client: AsyncClient) -> None:
        await fail(client, await make_user(), times=1)

        indexes = await LoginThrottle.get_pymongo_collection().index_information()

        assert (indexes["forgotten"]["key"], indexes["forgotten"]["expireAfterSeconds"]) == ([("forgotten_at", 1)], 0)


class TestSettings:
    async def test_say_how_many_failures_lock(self, serve: Serve) -> None:
        async with serve(lockout_attempts=2) as client:
            ada, bob = await make_user(), await make_user()
            await fail(client, ada, times=2)
            await fail(client, bob, times=1)

            assert outcome(await log_in(client, ada)) == LOCKED
            assert outcome(await log_in(client, bob)) == (200, None)

    async def test_may_lock_with_the_first(self, serve: Serve) -> None:
        async with serve(lockout_attempts=1) as client:
            ada = await make_user()
            assert outcome(await log_in(client, ada)) == (200, None)
            await fail(client, ada, times=1)

            assert outcome(await log_in(client, ada)) == LOCKED

    async def test_say_how_long_failures_are_remembered(self, serve: Serve) -> None:
        async with serve(lockout_window_minutes=1) as client:
            ada = await make_user()
            await fail(client, ada, times=4)
            await let_pass(seconds=61)
            await fail(client, ada, times=1)

            assert outcome(await log_in(client, ada)) == (200, None)


class TestUnknownAccount:
    @pytest.mark.parametrize("field", ["email", "username"])
    async def test_is_locked_like_a_known_one(self, client: AsyncClient, field: str) -> None:
        names = {"email": ("ada@example.com", "bob@example.com"), "username": ("ada", "bob")}[field]
        await make_user(email="ada@example.com", username="ada")

        courses = []
        for name in names:
            answers = [await client.post(f"{AUTH}/login", json={field: name, "password": WRONG}) for _ in range(7)]
            courses.append([(*outcome(answer), answer.json()["title"], sorted(answer.headers)) for answer in answers])
            assert all(55 <= int(answer.headers["retry-after"]) <= 60 for answer in answers[5:])

        assert courses[0] == courses[1]
        assert [course[:2] for course in courses[0]] == [REFUSED] * 5 + [LOCKED] * 2

    async def test_costs_the_database_the_same(self, commands: Commands, serve: Serve) -> None:
        async with serve() as client:
            ada = await make_user(email="ada@example.com", username="ada")
            for field, known, unknown in (("email", "ada@example.com", "bob@example.com"), ("username", "ada", "bob")):
                await LoginThrottle.find_all().delete()
                commands.taken()
                for number in range(7):
                    courses = []
                    for name in (known, unknown):
                        await client.post(f"{AUTH}/login", json={field: name, "password": WRONG})
                        courses.append(commands.taken())

                    assert courses[0] == courses[1]
                    assert sum(command[0] == "insert" for command in courses[0]) == (3 if number == 4 else 1)
            assert outcome(await log_in(client, ada)) == LOCKED

    async def test_counts_in_any_case_of_its_name(self, client: AsyncClient) -> None:
        for name in ("bob", "Bob", "BOB", "bOB", "boB"):
            await client.post(f"{AUTH}/login", json={"username": name, "password": WRONG})

        response = await client.post(f"{AUTH}/login", json={"username": "bob", "password": WRONG})

        assert outcome(response) == LOCKED

    async def test_leaves_no_name_in_the_count(self, client: AsyncClient) -> None:
        await client.post(f"{AUTH}/login", json={"username": "bob", "password": WRONG})

        stored = await LoginThrottle.get_pymongo_collection().find().to_list()

        assert len(stored) == 1
        assert "bob" not in str(stored)

    async def test_locks_nobody_who_takes_the_name_later(self, client: AsyncClient) -> None:
        for _ in range(5):
            await client.post(f"{AUTH}/login", json={"email": "bob@example.com", "password": WRONG})
        bob = await make_user(email="bob@example.com")

        assert outcome(await log_in(client, bob)) == (200, None)


@pytest.fixture
def _patient_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, tries are under way for longer than others wait for them."""
    monkeypatch.setattr(throttle_service, "_UNDER_WAY", timedelta(minutes=1))


class TestSuccess:
    async def test_clears_the_count(self, client: AsyncClient) -> None:
        ada = await make_user()
        for _ in range(3):
            await fail(client, ada, times=4)
            assert outcome(await log_in(client, ada)) == (200, None)

    async def test_leaves_nothing_behind(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada, times=2)

        await log_in(client, ada)

        assert await LoginThrottle.count() == 0

    @pytest.mark.usefixtures("patience", "_patient_tries")
    async def test_of_twenty_at_once_is_twenty_successes(self, client: AsyncClient) -> None:
        ada = await make_user()

        responses = await asyncio.gather(*[log_in(client, ada) for _ in range(20)])

        assert [response.status_code for response in responses] == [200] * 20
        assert await Session.count() == 20
        assert await LoginThrottle.count() == 0

    @pytest.mark.usefixtures("patience", "_patient_tries")
    async def test_of_twenty_at_once_also_comes_after_failures(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada, times=4)

        responses = await asyncio.gather(*[log_in(client, ada) for _ in range(20)])

        assert [response.status_code for response in responses] == [200] * 20


class TestFaultOfOurs:
    @pytest.mark.parametrize("has_code", [False, True])
    async def test_is_no_failure_of_who_knows_the_password(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch, *, has_code: bool
    ) -> None:
        async with serve() as client:
            ada = await make_user()
            otp = {"otp": (await enrol(client, ada)).recovery_codes[0]} if has_code else {}
            with monkeypatch.context() as broken:
                broken.setattr(login_service, "_start", AsyncMock(side_effect=DatabaseUnavailableError))
                for _ in range(6):
                    assert outcome(await log_in(client, ada, **otp)) == (503, "database_unavailable")

            assert outcome(await log_in(client, ada, **otp)) == (200, None)


class TestTryThatIsTakenBack:
    async def test_leaves_the_lock_that_others_have_brought_meanwhile(self, client: AsyncClient) -> None:
        assert client
        name, window = throttle_service.throttle_id("ada"), timedelta(minutes=15)
        for _ in range(5):  # the first is still being looked at
            assert await crud_login_throttle.take_try(name, attempts=5, window=window)
        await crud_login_throttle.mark_failed(name)

        await crud_login_throttle.give_back(name)

        assert await crud_login_throttle.take_try(name, attempts=5, window=window) is None


class TestDeactivatedAccount:
    async def test_is_told_so_however_often_and_is_not_locked_by_it(self, client: AsyncClient) -> None:
        ada = await make_user(is_active=False)

        answers = [outcome(await log_in(client, ada)) for _ in range(7)]

        assert answers == [(403, "account_disabled")] * 7

    async def test_keeps_the_failures_before_it(self, client: AsyncClient) -> None:
        ada = await make_user(is_active=False)
        await fail(client, ada, times=4)
        await log_in(client, ada)

        await fail(client, ada, times=1)

        assert outcome(await log_in(client, ada)) == LOCKED


class TestSecondFactor:
    async def test_that_is_asked_for_is_no_failure(self, client: AsyncClient) -> None:
        ada = await make_user()
        phone = await enrol(client, ada)

        answers = [outcome(await log_in(client, ada)) for _ in range(7)]

        assert answers == [(401, "mfa_required")] * 7
        assert outcome(await log_in(client, ada, otp=phone.recovery_codes[0])) == (200, None)

    async def test_that_is_asked_for_clears_nothing(self, client: AsyncClient) -> None:
        ada = await make_user()
        phone = await enrol(client, ada)
        await fail(client, ada, times=4)
        for _ in range(2):
            assert outcome(await log_in(client, ada)) == (401, "mfa_required")

        await fail(client, ada, times=1)

        assert outcome(await log_in(client, ada, otp=phone.recovery_codes[0])) == LOCKED

    async def test_that_is_asked_for_locks_nobody_whose_lock_has_passed(self, client: AsyncClient) -> None:
        ada = await make_user()
        phone = await enrol(client, ada)
        await fail(client, ada)
        await let_pass(seconds=61)

        asked = [outcome(await log_in(client, ada)) for _ in range(2)]
        response = await log_in(client, ada, otp=phone.recovery_codes[0])

        assert asked == [(401, "mfa_required")] * 2
        assert outcome(response) == (200, None)

    async def test_that_is_wrong_is_no_wrong_password_and_clears_none(self, client: AsyncClient) -> None:
        ada = await make_user()
        phone = await enrol(client, ada)
        await fail(client, ada, times=4)
        for _ in range(3):
            assert outcome(await log_in(client, ada, otp="000000")) == (401, "invalid_otp")

        await fail(client, ada, times=1)

        assert outcome(await log_in(client, ada, otp=phone.recovery_codes[0])) == LOCKED
        assert await reasons() == {"wrong password": 5, "wrong code": 3, "account is locked": 1}

    async def test_that_is_right_clears_the_count(self, client: AsyncClient) -> None:
        ada = await make_user()
        phone = await enrol(client, ada)
        for code in phone.recovery_codes[:2]:
            await fail(client, ada, times=4)
            assert outcome(await log_in(client, ada, otp=code)) == (200, None)


Try = Callable[[AsyncClient, SignedInUser, str], Awaitable[Response]]


async def patch_oneself(client: AsyncClient, user: SignedInUser, password: str) -> Response:
    body = {"email": "countess@example.com", "current_password": password}
    return await client.patch(f"{USERS}/me", json=body, headers=user.headers)


async def patch_by_id(client: AsyncClient, user: SignedInUser, password: str) -> Response:
    body = {"password": "quartz-Lemon-17-violin", "current_password": password}
    return await client.patch(f"{USERS}/{user.id}", json=body, headers=user.headers)


async def change_password(client: AsyncClient, user: SignedInUser, password: str) -> Response:
    body = {"password": "quartz-Lemon-17-violin", "current_password": password}
    return await client.post(f"{AUTH}/password/change", json=body, headers=user.headers)


async def delete_oneself(client: AsyncClient, user: SignedInUser, password: str) -> Response:
    return await client.request("DELETE", f"{USERS}/me", json={"current_password": password}, headers=user.headers)


async def set_up_totp(client: AsyncClient, user: SignedInUser, password: str) -> Response:
    return await client.post(f"{AUTH}/mfa/totp", json={"current_password": password}, headers=user.headers)


@pytest.mark.parametrize("attempt", [patch_oneself, patch_by_id, change_password, delete_oneself, set_up_totp])
class TestCurrentPassword:
    async def test_is_not_looked_at_after_five_wrong_ones(self, client: AsyncClient, attempt: Try) -> None:
        ada = await make_signed_in()

        answers = [outcome(await attempt(client, ada, WRONG)) for _ in range(5)]
        response = await attempt(client, ada, ada.password)

        assert answers == [REFUSED] * 5
        assert outcome(response) == LOCKED
        assert 55 <= int(response.headers["retry-after"]) <= 60
        assert await reasons() == {"wrong password": 5, "passwords in sessions are locked": 1}

    async def test_locks_nobody_out_by_being_wrong(self, client: AsyncClient, attempt: Try) -> None:
        ada = await make_signed_in()

        for _ in range(6):
            await attempt(client, ada, WRONG)

        assert outcome(await log_in(client, ada)) == (200, None)
        assert outcome(await attempt(client, ada, ada.password)) == LOCKED

    async def test_is_taken_while_signing_in_is_locked(self, client: AsyncClient, attempt: Try) -> None:
        ada = await make_signed_in()
        await fail(client, ada)

        assert (await attempt(client, ada, ada.password)).is_success

    async def test_clears_its_count_when_it_is_right(self, client: AsyncClient, attempt: Try) -> None:
        ada = await make_signed_in()
        for _ in range(4):
            await attempt(client, ada, WRONG)

        assert (await attempt(client, ada, ada.password)).is_success

        assert await LoginThrottle.count() == 0


class TestNewPassword:
    @pytest.mark.parametrize("change", [change_password, patch_by_id])
    async def test_unlocks_signing_in(self, client: AsyncClient, change: Try) -> None:
        ada = await make_signed_in()
        await fail(client, ada)

        assert (await change(client, ada, ada.password)).is_success

        assert outcome(await log_in(client, ada, "quartz-Lemon-17-violin")) == (200, None)
        await fail(client, ada, times=4)
        assert outcome(await log_in(client, ada, "quartz-Lemon-17-violin")) == (200, None)

    async def test_by_mail_unlocks_the_sessions_too(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            ada = await make_signed_in()
            for _ in range(5):
                await change_password(client, ada, WRONG)
            await client.post(f"{AUTH}/password/forgot", json={"email": ada.document.email})
            token = token_in(await mailbox.next("Reset your password"))
            ada.password = "quartz-Lemon-17-violin"
            body = {"token": token, "password": ada.password}
            assert (await client.post(f"{AUTH}/password/reset", json=body)).is_success

            assert (await set_up_totp(client, await sign_in(ada), ada.password)).is_success

    async def test_is_what_it_takes_and_not_the_present_one(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await fail(client, ada, times=4)

        assert (await set_up_totp(client, ada, ada.password)).is_success

        await fail(client, ada, times=1)
        assert outcome(await log_in(client, ada)) == LOCKED


class TestCurrentPasswordThatIsMissing:
    async def test_is_refused_and_is_no_try(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        for _ in range(7):
            response = await client.patch(f"{USERS}/me", json={"email": "b@example.com"}, headers=ada.headers)
            assert outcome(response) == REFUSED

        assert await LoginThrottle.count() == 0
        assert (await patch_oneself(client, ada, ada.password)).is_success


class TestCrowd:
    @pytest.mark.usefixtures("patience")
    async def test_of_fifty_gets_five_passwords_looked_at(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_user()
        looked_at = count_checks(monkeypatch)

        responses = await asyncio.gather(*[log_in(client, ada, f"{WRONG} {number}") for number in range(50)])

        assert Counter(map(outcome, responses)) == {REFUSED: 5, LOCKED: 45}
        assert len(looked_at) == 5
        assert await reasons() == {"wrong password": 5, "account is locked": 45}

    async def test_learns_nothing_from_the_right_password_among_them(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada)

        responses = await asyncio.gather(*[log_in(client, ada, [WRONG, ada.password][n % 2]) for n in range(10)])

        assert {outcome(response) for response in responses} == {LOCKED}

    @pytest.mark.usefixtures("patience")
    async def test_gets_one_try_when_the_lock_has_passed(self, client: AsyncClient) -> None:
        ada = await make_user()
        await fail(client, ada)
        await let_pass(seconds=61)

        responses = await asyncio.gather(*[log_in(client, ada, WRONG) for _ in range(20)])

        assert Counter(map(outcome, responses)) == {REFUSED: 1, LOCKED: 19}

    @pytest.mark.usefixtures("patience")
    async def test_gets_no_more_of_an_account_that_is_not_there(self, client: AsyncClient) -> None:
        body = {"username": "nobody", "password": WRONG}

        responses = await asyncio.gather(*[client.post(f"{AUTH}/login", json=body) for _ in range(50)])

        assert Counter(map(outcome, responses)) == {REFUSED: 5, LOCKED: 45}

    async def test_gets_no_more_passwords_looked_at_by_two_processes(
        self, client: AsyncClient, two_servers: list[Server]
    ) -> None:
        ada = await make_user()
        body = {"email": ada.document.email, "password": WRONG}

        def fire(number: int) -> tuple[int, str | None]:
            return outcome(two_servers[number % 2].post(f"{AUTH}/login", body))

        with ThreadPoolExecutor(max_workers=16) as threads:
            loop = asyncio.get_running_loop()
            outcomes = await asyncio.gather(*[loop.run_in_executor(threads, fire, number) for number in range(50)])

        assert Counter(outcomes) == {REFUSED: 5, LOCKED: 45}
        assert (await reasons())["wrong password"] == 5
        assert outcome(await log_in(client, ada)) == LOCKED
        assert len(await events("user:locked")) == 1

    async def test_of_twenty_who_are_right_gets_in_through_two_processes(
        self, client: AsyncClient, two_servers: list[Server]
    ) -> None:
        ada = await make_user()
        body = {"email": ada.document.email, "password": ada.password}

        def enter(number: int) -> int:
            return two_servers[number % 2].post(f"{AUTH}/login", body).status_code

        with ThreadPoolExecutor(max_workers=20) as threads:
            loop = asyncio.get_running_loop()
            statuses = await asyncio.gather(*[loop.run_in_executor(threads, enter, number) for number in range(20)])

        assert statuses == [200] * 20
        assert outcome(await log_in(client, ada)) == (200, None)


@pytest.fixture
def two_servers(database_url: str, short_folder: Path) -> Iterator[list[Server]]:
    """Two processes of the service over the database of the test."""
    servers = [Server(short_folder, DATABASE_URL=database_url, SECRET_KEY=SECRET) for _ in range(2)]
    try:
        yield [server.ready() for server in servers]
    finally:
        for server in servers:
            server.kill()


def count_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passwords that are looked at from now on."""
    looked_at: list[str] = []

    async def counted(password: str, hashed: str | None) -> passwords.Verdict:
        looked_at.append(password)
        return await passwords.verify_password(password, hashed)

    monkeypatch.setattr(credential_service, "verify_password", counted)
    return looked_at


@pytest.fixture
async def unsent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    """The application, whose mails stay in the outbox, to be counted there."""
    monkeypatch.setattr("app.main.send_forever", asyncio.Event().wait)
    async with serve() as client:
        yield client


class TestNotice:
    async def test_is_mailed_to_the_owner_once(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url, address="192.0.2.44") as client:
            ada = await make_signed_in(email="ada@example.com", full_name="Ada")
            await fail(client, ada)
            for _ in range(3):
                await log_in(client, ada, WRONG)
            await let_pass(seconds=61)
            await fail(client, ada, times=1)
            await client.post(f"{AUTH}/email/verify/request", json={}, headers=ada.headers)

            notice, next_one = await mailbox.next(), await mailbox.next()
            assert len(await events("user:locked")) == 1

        assert (notice["To"], notice["Subject"]) == ("ada@example.com", LOCK_MAIL)
        assert "5 failed attempts" in text_of(notice)
        assert "192.0.2.44" in text_of(notice)
        assert next_one["Subject"] != LOCK_MAIL

    async def test_is_mailed_once_a_day_however_often_it_is_locked_anew(self, unsent: AsyncClient) -> None:
        ada = await make_user()
        for hours, mails in ((0, 1), (1, 1), (22, 1), (2, 2), (23, 2)):
            await let_pass(hours=hours)
            assert outcome(await log_in(unsent, ada)) == (200, None)
            await fail(unsent, ada)
            assert await OutgoingMail.find({"kind": "account_locked"}).count() == mails
            await let_pass(minutes=2)
        assert len(await events("user:locked")) == 5

    async def test_is_one_for_each_kind_of_lock_and_each_account(self, unsent: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_user()
        await fail(unsent, ada)
        for _ in range(5):
            await change_password(unsent, ada, WRONG)
        await fail(unsent, ben)

        mails = await OutgoingMail.find_all().sort("+_id").to_list()
        assert [mail.kind for mail in mails] == ["account_locked", "reauthentication_locked", "account_locked"]
        assert [mail.user_id for mail in mails] == [None, ada.id, None]

    async def test_is_asked_for_once_a_day_also_for_who_is_not_there(self, unsent: AsyncClient) -> None:
        body = {"username": "nobody", "password": WRONG}
        for _ in range(2):
            for _ in range(5):
                assert outcome(await unsent.post(f"{AUTH}/login", json=body)) == REFUSED
            await let_pass(minutes=17)

        assert len(await events("user:locked")) == 2
        assert await OutgoingMail.find({"kind": "account_locked"}).count() == 1

    async def test_reaches_who_was_tried_by_username(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            await make_user(email="ada@example.com", username="ada")
            for _ in range(5):
                await client.post(f"{AUTH}/login", json={"username": "ADA", "password": WRONG})

            notice = await mailbox.next()

        assert (notice["To"], notice["Subject"]) == ("ada@example.com", LOCK_MAIL)

    async def test_goes_to_nobody_for_an_account_that_is_not_there(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            ada = await make_user()
            for user in ("nobody@example.com", ada.document.email):
                for _ in range(5):
                    await client.post(f"{AUTH}/login", json={"email": user, "password": WRONG})

            notice = await mailbox.next()

        assert notice["To"] == ada.document.email

    async def test_of_guesses_inside_a_session_is_another(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url, address="192.0.2.44") as client:
            ada = await make_signed_in(email="ada@example.com")
            for _ in range(6):
                await change_password(client, ada, WRONG)

            notice = await mailbox.next()
            (event,) = await events("user:locked")

        assert (notice["To"], notice["Subject"]) == (
            "ada@example.com",
            "Somebody is guessing your password on a device that is signed in",
        )
        assert "5 times" in text_of(notice)
        assert "192.0.2.44" in text_of(notice)
        assert (event.target.id, event.details) == (ada.id, {"count": "re-authentication", "tries": 5})

    async def test_is_recorded_with_the_failures_before_it(self, client: AsyncClient) -> None:
        ada = await make_user()

        await fail(client, ada)
        await log_in(client, ada)

        (event,) = await events("user:locked")
        assert (event.actor.kind, event.outcome, event.target.kind, event.target.id) == (
            "anonymous",
            "failure",
            "user",
            ada.id,
        )
        assert event.details == {"count": "sign-in", "tries": 5}
        assert await reasons() == {"wrong password": 5, "account is locked": 1}

    @pytest.mark.usefixtures("patience")
    async def test_is_one_however_many_tried_at_once(self, client: AsyncClient) -> None:
        ada = await make_user()

        await asyncio.gather(*[log_in(client, ada, WRONG) for _ in range(20)])

        assert len(await events("user:locked")) == 1

    async def test_holds_no_password(self, serve: Serve, mailbox: Mailbox) -> None:
        mailbox.refusals = ["451 Come back later"] * 5
        async with serve(smtp_url=mailbox.url) as client:
            ada = await make_user()
            for _ in range(5):
                await log_in(client, ada, f"{PASSWORD}-nearly")

            stored = str(await OutgoingMail.get_pymongo_collection().find().to_list())

        assert "account_locked" in stored
        assert PASSWORD not in stored
