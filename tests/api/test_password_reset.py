"""A new password: by the link of a mail, or with the present one."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import pytest
from httpx import AsyncClient, Response
from pyotp import TOTP

from app.core.clock import utc_now
from app.core.config import get_settings
from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from app.models.one_time_token import OneTimeToken
from app.models.outgoing_mail import OutgoingMail
from app.models.user import Mfa, User
from tests.commands import Commands
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import PASSWORD, StoredUser, make_api_key, make_signed_in, make_user, sign_in
from tests.mailbox import Mailbox, link_in, text_of, token_in

AUTH: Final = "/api/v1/auth"
NEW_PASSWORD: Final = "walrus-Compass-77-lagoon"
RESET_MAIL: Final = "Reset your password"


@pytest.fixture
async def client(serve: Serve, mailbox: Mailbox) -> AsyncIterator[AsyncClient]:
    """The application, with a mail server."""
    async with serve(smtp_url=mailbox.url) as client:
        yield client


def refusal(response: Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def forget(client: AsyncClient, email: str) -> Response:
    return await client.post(f"{AUTH}/password/forgot", json={"email": email})


async def mailed_token(client: AsyncClient, mailbox: Mailbox, user: StoredUser) -> str:
    assert (await forget(client, user.document.email)).status_code == 202
    return token_in(await mailbox.next(RESET_MAIL))


async def reset(client: AsyncClient, token: str, password: str = NEW_PASSWORD) -> Response:
    return await client.post(f"{AUTH}/password/reset", json={"token": token, "password": password})


async def log_in(client: AsyncClient, user: StoredUser, password: str, **more: str) -> Response:
    return await client.post(f"{AUTH}/login", json={"email": user.document.email, "password": password, **more})


async def status_of(client: AsyncClient, headers: dict[str, str]) -> int:
    return (await client.get(f"{AUTH}/me", headers=headers)).status_code


async def events(action: str) -> list[AuditEvent]:
    return await AuditEvent.find({"action": action}).to_list()


class TestForgot:
    async def test_answers_alike_and_does_the_same_work_whoever_is_asked_for(
        self, serve: Serve, commands: Commands, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.main.send_forever", asyncio.Event().wait)  # what is done after the answer is no clue
        async with serve(auth_cache_seconds=0) as client:
            await make_user(email="ada@example.com")
            await make_user(email="ben@example.com", is_active=False)
            work, answers = [], []
            for name in ("ada", "ben", "nobody"):
                commands.taken()
                response = await forget(client, f"{name}@example.com")
                work.append([command[:2] for command in commands.taken()])
                answers.append((response.status_code, response.json()))

        assert work == [[("insert", "outbox")]] * 3
        assert answers == [(202, {"message": "If there is such an account, a mail is on its way."})] * 3

    @pytest.mark.parametrize("account", [None, {"is_active": False}])
    async def test_mails_nobody_who_could_not_use_it(
        self, client: AsyncClient, mailbox: Mailbox, account: dict[str, Any] | None
    ) -> None:
        if account is not None:
            await make_user(email="ben@example.com", **account)
        await make_user(email="ada@example.com")

        assert (await forget(client, "ben@example.com")).status_code == 202
        assert (await forget(client, "ada@example.com")).status_code == 202

        assert (await mailbox.next())["To"] == "ada@example.com"  # they are sent in order
        assert await OutgoingMail.find({"account.email_key": "ben@example.com"}).count() == 0
        assert await OneTimeToken.count() == 1
        assert [event.target.kind for event in await events("password_reset:requested")] == ["user"]

    async def test_finds_the_account_in_any_case(self, client: AsyncClient, mailbox: Mailbox) -> None:
        await make_user(email="Ada@example.com")

        await forget(client, "aDA@Example.COM")

        assert (await mailbox.next())["To"] == "Ada@example.com"

    async def test_sends_no_second_mail_within_a_minute(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada, ben = await make_user(), await make_user()
        first = await mailed_token(client, mailbox, ada)

        assert (await forget(client, ada.document.email)).status_code == 202
        await forget(client, ben.document.email)
        assert (await mailbox.next())["To"] == ben.document.email

        earlier = utc_now() - timedelta(seconds=61)
        await OneTimeToken.get_pymongo_collection().update_many({}, {"$set": {"created_at": earlier}})
        second = await mailed_token(client, mailbox, ada)
        assert second != first
        assert (await reset(client, first)).status_code == 204

    @pytest.mark.parametrize("body", [{}, {"email": "ada"}, {"email": None}, {"email": "a@example.com", "to": "x"}])
    async def test_refuses_what_is_no_address(self, client: AsyncClient, body: dict[str, Any]) -> None:
        assert refusal(await client.post(f"{AUTH}/password/forgot", json=body)) == (422, "validation_error")


class TestReset:
    async def test_sets_the_password_by_the_link_once(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user()
        token = await mailed_token(client, mailbox, ada)

        assert (await reset(client, token)).status_code == 204

        assert refusal(await log_in(client, ada, PASSWORD)) == (401, "invalid_credentials")
        assert (await log_in(client, ada, NEW_PASSWORD)).status_code == 200
        assert refusal(await reset(client, token, "another-Walrus-19-lagoon")) == (401, "invalid_token")
        assert (await log_in(client, ada, NEW_PASSWORD)).status_code == 200
        (event,) = await events("user:password_reset")
        assert event.target.id == ada.id

    async def test_works_by_the_form_that_the_link_opens(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user()
        await forget(client, ada.document.email)
        link = link_in(await mailbox.next(RESET_MAIL))
        assert link.startswith("http://localhost:8000/api/v1/auth/password/reset?token=")

        for _ in range(2):  # a scanner that opens links uses nothing up
            assert (await client.get(link.removeprefix("http://localhost:8000"))).status_code == 200
        form = {"token": link.partition("token=")[2], "password": NEW_PASSWORD}
        response = await client.post(f"{AUTH}/password/reset/form", data=form)

        assert response.status_code == 200
        assert "Your password is changed." in response.text
        assert (await log_in(client, ada, NEW_PASSWORD)).status_code == 200

    async def test_ends_every_session_and_says_so_by_mail(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in()
        other = await sign_in(ada)

        assert (await reset(client, await mailed_token(client, mailbox, ada))).status_code == 204

        assert [await status_of(client, each.headers) for each in (ada, other)] == [401, 401]
        response = await client.post(f"{AUTH}/refresh", json={"refresh_token": ada.refresh_token})
        assert refusal(response) == (401, "token_revoked")
        mail = await mailbox.next("Your password was changed")
        assert mail["To"] == ada.document.email
        assert "127.0.0.1" in text_of(mail)
        assert NEW_PASSWORD not in text_of(mail)

    async def test_switches_off_the_keys_and_says_how_to_switch_one_on(
        self, client: AsyncClient, mailbox: Mailbox
    ) -> None:
        ada, ben = await make_user(), await make_user()
        known, strange = await make_api_key("read", owner=ada), await make_api_key("read", owner=ada)
        await make_api_key("read", owner=ada, is_active=False)
        untouched = [await make_api_key("read", owner=ben), await make_api_key("read")]
        keys = [known, strange, *untouched]
        assert [await status_of(client, key.headers) for key in keys] == [200] * 4  # they are remembered

        assert (await reset(client, await mailed_token(client, mailbox, ada))).status_code == 204

        assert [await status_of(client, key.headers) for key in keys] == [401, 401, 200, 200]
        text = text_of(await mailbox.next("Your password was changed"))
        assert "Your API keys were switched off: 2." in text
        assert "POST /api/v1/api-keys/ID/activate" in text
        (event,) = await events("api_keys:deactivated")
        assert (event.target.kind, event.target.id, event.details) == ("user", ada.id, {"count": 2})
        headers = {"Authorization": f"Bearer {(await log_in(client, ada, NEW_PASSWORD)).json()['access_token']}"}
        url = f"/api/v1/api-keys/{known.document.id}/activate"
        assert (await client.post(url, headers=headers)).status_code == 200
        assert [await status_of(client, key.headers) for key in (known, strange)] == [200, 401]

    async def test_says_nothing_of_keys_where_there_are_none(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user()
        await make_api_key("read", owner=ada, is_active=False)

        assert (await reset(client, await mailed_token(client, mailbox, ada))).status_code == 204

        assert "API" not in text_of(await mailbox.next("Your password was changed"))
        assert await events("api_keys:deactivated") == []

    async def test_that_can_not_be_recorded_switches_off_no_key(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user()
        key = await make_api_key("read", owner=ada)
        token = await mailed_token(client, mailbox, ada)

        async with no_event_can_be_written():
            assert refusal(await reset(client, token)) == (500, "internal_error")

        assert await status_of(client, key.headers) == 200
        assert (await reset(client, token)).status_code == 204
        assert await status_of(client, key.headers) == 401

    async def test_unlocks_the_account(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user()
        for _ in range(5):
            await log_in(client, ada, "wrong-Lantern-42-orbit")
        assert refusal(await log_in(client, ada, PASSWORD)) == (429, "account_locked")

        assert (await reset(client, await mailed_token(client, mailbox, ada))).status_code == 204

        assert (await log_in(client, ada, NEW_PASSWORD)).status_code == 200

    async def test_proves_that_the_address_is_the_users(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url, require_verified_email=True) as client:
            ada = await make_user()
            assert refusal(await log_in(client, ada, PASSWORD)) == (403, "email_not_verified")

            await reset(client, await mailed_token(client, mailbox, ada))

            assert (await log_in(client, ada, NEW_PASSWORD)).status_code == 200

    async def test_leaves_the_second_factor_in_force(self, client: AsyncClient, mailbox: Mailbox) -> None:
        secret = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
        encrypted = get_settings().cipher.encrypt(secret.encode())
        mfa = Mfa(encrypted_secret=encrypted, last_step=0, confirmed_at=utc_now(), recovery_digests=[])
        ada = await make_user(mfa=mfa, is_verified=True)

        await reset(client, await mailed_token(client, mailbox, ada))

        assert refusal(await log_in(client, ada, NEW_PASSWORD)) == (401, "mfa_required")
        assert refusal(await log_in(client, ada, NEW_PASSWORD, otp="000000")) == (401, "invalid_otp")
        assert (await log_in(client, ada, NEW_PASSWORD, otp=TOTP(secret).now())).status_code == 200

    @pytest.mark.parametrize("weak", ["short", "password1234", "x" * 1025])
    async def test_keeps_the_link_when_the_password_is_too_weak(
        self, client: AsyncClient, mailbox: Mailbox, weak: str
    ) -> None:
        ada = await make_user()
        token = await mailed_token(client, mailbox, ada)

        response = await reset(client, token, weak)

        assert refusal(response) == (422, "weak_password")
        assert response.json()["errors"][0]["loc"] == ["body", "password"]
        assert weak not in response.text
        assert (await log_in(client, ada, PASSWORD)).status_code == 200
        assert (await reset(client, token)).status_code == 204

    async def test_refuses_a_password_with_the_address_in_it(self, client: AsyncClient, mailbox: Mailbox) -> None:
        await make_user(email="rhinoceros@example.com", username="walrus77")
        await forget(client, "rhinoceros@example.com")
        token = token_in(await mailbox.next())

        for password in ("my-Rhinoceros-lagoon-19", "my-WALRUS77-lagoon-19"):
            assert refusal(await reset(client, token, password)) == (422, "weak_password")

    async def test_refuses_a_password_of_the_name_and_little_else(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user(full_name="Ada Vandersteen")

        response = await reset(client, await mailed_token(client, mailbox, ada), "Vandersteen1815")

        assert refusal(response) == (422, "weak_password")
        assert "Leave out your name" in response.json()["errors"][0]["msg"]

    async def test_is_won_by_one_of_two_at_the_same_time(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user()
        token = await mailed_token(client, mailbox, ada)
        passwords = [NEW_PASSWORD, "another-Walrus-19-lagoon"]

        responses = await asyncio.gather(*(reset(client, token, password) for password in passwords))

        assert sorted(response.status_code for response in responses) == [204, 401]
        won = [response.status_code for response in responses].index(204)
        assert (await log_in(client, ada, passwords[won])).status_code == 200
        assert (await log_in(client, ada, passwords[1 - won])).status_code == 401
        assert len(await events("user:password_reset")) == 1


@pytest.mark.usefixtures("patience")
class TestKeysMadeMeanwhile:
    """By whoever has a session or a key of the account that is being recovered."""

    @pytest.mark.parametrize("kind", ["session", "key"])
    async def test_do_not_outlive_the_reset(self, client: AsyncClient, mailbox: Mailbox, kind: str) -> None:
        ada = await make_signed_in()
        token = await mailed_token(client, mailbox, ada)
        headers = (await make_api_key("api_keys:*", "read", owner=ada)).headers if kind == "key" else ada.headers
        body = {"name": "thief", "scopes": ["read"]}

        async def make_keys() -> list[Response]:
            return [await client.post("/api/v1/api-keys", json=body, headers=headers) for _ in range(6)]

        reset = {"token": token, "password": NEW_PASSWORD}
        made, done = await asyncio.gather(
            asyncio.gather(*(make_keys() for _ in range(3))), client.post(f"{AUTH}/password/reset", json=reset)
        )

        assert done.status_code == 204
        assert any(response.status_code == 201 for responses in made for response in responses)
        assert await ApiKey.find({"is_active": True}).count() == 0

    async def test_are_not_switched_on_again_by_it(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in()
        token = await mailed_token(client, mailbox, ada)
        kept = await make_api_key("read", owner=ada, is_active=False)
        url = f"/api/v1/api-keys/{kept.document.id}/activate"

        async def switch_on() -> None:
            for _ in range(6):
                await client.post(url, headers=ada.headers)

        reset = {"token": token, "password": NEW_PASSWORD}
        _, done = await asyncio.gather(
            asyncio.gather(*(switch_on() for _ in range(3))), client.post(f"{AUTH}/password/reset", json=reset)
        )

        assert done.status_code == 204
        assert await ApiKey.find({"is_active": True}).count() == 0


class TestLinkIsVoid:
    async def test_when_it_has_expired(self, client: AsyncClient, mailbox: Mailbox) -> None:
        token = await mailed_token(client, mailbox, await make_user())
        (stored,) = await OneTimeToken.find_all().to_list()
        assert timedelta(minutes=59) < stored.expires_at - utc_now() <= timedelta(hours=1)

        await stored.set({"expires_at": utc_now()})

        assert refusal(await reset(client, token)) == (401, "invalid_token")

    async def test_when_it_was_tampered_with(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user()
        token = await mailed_token(client, mailbox, ada)
        token_id, _, mac = token.partition(".")
        (other,) = [f"{(int(token_id, 16) + 1):024x}"]

        for wrong in (
            token[:-1],
            f"{token}x",
            token_id,
            f"{token_id}.",
            f"{other}.{mac}",
            f".{mac}",
            "x" * 200,
            "\x00",
        ):
            response = await reset(client, wrong)
            assert refusal(response) == (401, "invalid_token")
            assert mac not in response.text
        assert (await reset(client, token)).status_code == 204

    async def test_for_another_purpose(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in()
        assert (await client.post(f"{AUTH}/email/verify/request", json={}, headers=ada.headers)).status_code == 202
        verification = token_in(await mailbox.next())
        token = await mailed_token(client, mailbox, ada)

        assert refusal(await reset(client, verification)) == (401, "invalid_token")
        response = await client.post(f"{AUTH}/email/verify", json={"token": token})
        assert refusal(response) == (401, "invalid_token")
        assert (await client.post(f"{AUTH}/email/verify", json={"token": verification})).status_code == 204

    async def test_once_the_address_has_changed(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in()
        token = await mailed_token(client, mailbox, ada)
        body = {"email": "lovelace@example.com", "current_password": PASSWORD}
        assert (await client.patch("/api/v1/users/me", json=body, headers=ada.headers)).status_code == 200

        assert refusal(await reset(client, token)) == (401, "invalid_token")

    async def test_once_the_password_was_changed_otherwise(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in()
        token = await mailed_token(client, mailbox, ada)
        body = {"current_password": PASSWORD, "password": NEW_PASSWORD}
        assert (await client.post(f"{AUTH}/password/change", json=body, headers=ada.headers)).status_code == 204

        assert refusal(await reset(client, token)) == (401, "invalid_token")

    async def test_once_another_was_used(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user()
        first = await mailed_token(client, mailbox, ada)
        earlier = utc_now() - timedelta(seconds=61)
        await OneTimeToken.get_pymongo_collection().update_many({}, {"$set": {"created_at": earlier}})
        second = await mailed_token(client, mailbox, ada)

        assert (await reset(client, second)).status_code == 204

        assert refusal(await reset(client, first)) == (401, "invalid_token")

    @pytest.mark.parametrize("fate", ["deactivated", "deleted"])
    async def test_once_the_account_is_out_of_use(self, client: AsyncClient, mailbox: Mailbox, fate: str) -> None:
        ada = await make_user()
        token = await mailed_token(client, mailbox, ada)
        if fate == "deleted":
            await ada.document.delete()
        else:
            await ada.document.set({"is_active": False})

        assert refusal(await reset(client, token)) == (401, "invalid_token")

        if fate == "deactivated":
            present = await User.get(ada.id)
            assert present is not None
            assert present.hashed_password == ada.document.hashed_password


class TestChange:
    @staticmethod
    async def change(client: AsyncClient, headers: dict[str, str], current: str = PASSWORD) -> Response:
        body = {"current_password": current, "password": NEW_PASSWORD}
        return await client.post(f"{AUTH}/password/change", json=body, headers=headers)

    async def test_ends_the_other_sessions_but_not_this_one(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in()
        other = await sign_in(ada)

        assert (await self.change(client, ada.headers)).status_code == 204

        assert [await status_of(client, each.headers) for each in (ada, other)] == [200, 401]
        assert (await log_in(client, ada, NEW_PASSWORD)).status_code == 200
        mail = await mailbox.next()
        assert mail["Subject"] == "Your password was changed"
        assert "API" not in text_of(mail)

    async def test_leaves_the_keys_on_and_says_how_many_there_are(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in()
        keys = [await make_api_key("read", owner=ada) for _ in range(2)]
        await make_api_key("read", owner=ada, is_active=False)
        await make_api_key("read")

        assert (await self.change(client, ada.headers)).status_code == 204

        assert [await status_of(client, key.headers) for key in keys] == [200, 200]
        assert "API keys that still work: 2." in text_of(await mailbox.next())

    async def test_needs_the_present_password(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in()

        response = await self.change(client, ada.headers, "wrong-Lantern-42-orbit")

        assert refusal(response) == (401, "invalid_credentials")
        assert (await log_in(client, ada, PASSWORD)).status_code == 200
        assert mailbox.mails.empty()

    async def test_is_no_way_to_guess_the_password(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        answers = [refusal(await self.change(client, ada.headers, "wrong-Lantern-42-orbit"))[0] for _ in range(6)]

        assert answers == [401] * 5 + [429]

    async def test_is_not_for_keys(self, client: AsyncClient) -> None:
        ada = await make_user()
        for key in (await make_api_key("admin"), await make_api_key("users:write", owner=ada)):
            response = await self.change(client, key.headers)
            assert response.status_code == 403

    async def test_is_not_for_strangers(self, client: AsyncClient) -> None:
        assert refusal(await self.change(client, {})) == (401, "not_authenticated")

    async def test_refuses_a_weak_one(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        body = {"current_password": PASSWORD, "password": "short"}

        response = await client.post(f"{AUTH}/password/change", json=body, headers=ada.headers)

        assert refusal(response) == (422, "weak_password")
