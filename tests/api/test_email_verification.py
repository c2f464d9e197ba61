"""Whether an address is its user's, and where the links of mails lead."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from httpx import AsyncClient, Response

from app.core.clock import utc_now
from app.models.audit_event import AuditEvent
from app.models.one_time_token import OneTimeToken
from app.models.user import User
from tests.conftest import Serve
from tests.factories import PASSWORD, SignedInUser, make_api_key, make_signed_in, make_user
from tests.mailbox import Mailbox, html_of, link_in, text_of, token_in

AUTH: Final = "/api/v1/auth"
ADA: Final = {"email": "ada@example.com", "password": PASSWORD}
VERIFICATION: Final = "Verify your e-mail address"


@pytest.fixture
async def client(serve: Serve, mailbox: Mailbox) -> AsyncIterator[AsyncClient]:
    """The application, with a mail server."""
    async with serve(smtp_url=mailbox.url) as client:
        yield client


def refusal(response: Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def verify(client: AsyncClient, token: str) -> Response:
    return await client.post(f"{AUTH}/email/verify", json={"token": token})


async def is_verified(email: str = "ada@example.com") -> bool:
    user = await User.find_one({"email_key": email})
    assert user is not None
    return user.is_verified


async def change_address(client: AsyncClient, ada: SignedInUser, email: str) -> dict[str, Any]:
    body = {"email": email, "current_password": PASSWORD}
    response = await client.patch("/api/v1/users/me", json=body, headers=ada.headers)
    assert response.status_code == 200
    changed: dict[str, Any] = response.json()
    return changed


class TestRegistration:
    async def test_mails_a_link_that_works_once(self, client: AsyncClient, mailbox: Mailbox) -> None:
        registered = await client.post("/api/v1/users", json=ADA)
        assert registered.json()["is_verified"] is False

        mail = await mailbox.next()
        assert (mail["Subject"], mail["To"]) == (VERIFICATION, "ada@example.com")
        assert "Please confirm that ada@example.com is your address." in text_of(mail).replace("\r\n", " ")
        assert (await verify(client, token_in(mail))).status_code == 204

        assert await is_verified()
        assert refusal(await verify(client, token_in(mail))) == (401, "invalid_token")
        (event,) = await AuditEvent.find({"action": "user:verified"}).to_list()
        assert str(event.target.id) == registered.json()["id"]

    async def test_mails_a_link_whose_page_uses_nothing_up(self, client: AsyncClient, mailbox: Mailbox) -> None:
        await client.post("/api/v1/users", json=ADA)
        link = link_in(await mailbox.next())
        assert link.startswith("http://localhost:8000/api/v1/auth/email/verify?token=")

        for _ in range(2):
            assert (await client.get(link.removeprefix("http://localhost:8000"))).status_code == 200
        assert not await is_verified()
        response = await client.post(f"{AUTH}/email/verify/form", data={"token": link.partition("token=")[2]})

        assert response.status_code == 200
        assert await is_verified()

    async def test_mails_a_link_that_one_of_two_at_the_same_time_uses(
        self, client: AsyncClient, mailbox: Mailbox
    ) -> None:
        await client.post("/api/v1/users", json=ADA)
        token = token_in(await mailbox.next())

        responses = await asyncio.gather(*(verify(client, token) for _ in range(3)))

        assert sorted(response.status_code for response in responses) == [204, 401, 401]
        assert await AuditEvent.find({"action": "user:verified"}).count() == 1

    async def test_mails_a_link_that_lasts_a_day(self, client: AsyncClient, mailbox: Mailbox) -> None:
        await client.post("/api/v1/users", json=ADA)
        token = token_in(await mailbox.next())
        (stored,) = await OneTimeToken.find_all().to_list()
        assert timedelta(hours=23, minutes=59) < stored.expires_at - utc_now() <= timedelta(hours=24)

        await stored.set({"expires_at": utc_now()})

        assert refusal(await verify(client, token)) == (401, "invalid_token")
        assert not await is_verified()

    @pytest.mark.parametrize(
        "body", [{}, {"token": ""}, {"token": "x" * 201}, {"token": None}, {"token": "x", "email": "a@example.com"}]
    )
    async def test_expects_one_token(self, client: AsyncClient, body: dict[str, Any]) -> None:
        assert refusal(await client.post(f"{AUTH}/email/verify", json=body)) == (422, "validation_error")

    @pytest.mark.parametrize("token", ["x", ".", "6746d0a8f8f8f8f8f8f8f8f8.x", "\x00", "ä" * 200])
    async def test_knows_its_own_tokens(self, client: AsyncClient, token: str) -> None:
        assert refusal(await verify(client, token)) == (401, "invalid_token")

    async def test_reaches_an_address_of_any_script(self, client: AsyncClient, mailbox: Mailbox) -> None:
        body = {**ADA, "email": "jörg@straße.example.com"}
        assert (await client.post("/api/v1/users", json=body)).status_code == 201

        mail = await mailbox.next()

        assert mail["To"] == "jörg@xn--strae-oqa.example.com"
        assert (await verify(client, token_in(mail))).status_code == 204


class TestNewAddress:
    async def test_is_unverified_until_its_own_link_is_used(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com", is_verified=True)

        assert (await change_address(client, ada, "lovelace@example.com"))["is_verified"] is False

        mail = await mailbox.next(VERIFICATION)
        assert mail["To"] == "lovelace@example.com"
        assert (await verify(client, token_in(mail))).status_code == 204
        assert await is_verified("lovelace@example.com")

    async def test_is_told_to_the_old_one(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com", is_verified=True)

        await change_address(client, ada, "lovelace@example.com")

        mail = await mailbox.next("Your e-mail address was changed")
        assert mail["To"] == "ada@example.com"
        assert "mails go to lovelace@example.com" in " ".join(text_of(mail).split())
        assert "127.0.0.1" in text_of(mail)

    async def test_is_not_told_to_an_old_one_that_was_not_verified(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com")

        await change_address(client, ada, "lovelace@example.com")
        await client.post("/api/v1/users", json={**ADA, "email": "ben@example.com"})

        mails = [await mailbox.next() for _ in range(2)]  # they are sent in order
        assert [mail["To"] for mail in mails] == ["lovelace@example.com", "ben@example.com"]

    @pytest.mark.parametrize(("is_verified", "told"), [(True, "ada@example.com"), (False, "lovelace@example.com")])
    async def test_is_told_of_a_new_password_that_came_with_it_unless_the_old_one_is_known(
        self, client: AsyncClient, mailbox: Mailbox, *, is_verified: bool, told: str
    ) -> None:
        ada = await make_signed_in(email="ada@example.com", is_verified=is_verified)
        body = {"email": "lovelace@example.com", "password": "walrus-Compass-77-lagoon", "current_password": PASSWORD}

        assert (await client.patch("/api/v1/users/me", json=body, headers=ada.headers)).status_code == 200

        assert (await mailbox.next("Your password was changed"))["To"] == told

    async def test_that_is_not_verified_is_told_of_a_new_password(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com")
        body = {"password": "walrus-Compass-77-lagoon", "current_password": PASSWORD}

        assert (await client.patch("/api/v1/users/me", json=body, headers=ada.headers)).status_code == 200

        assert (await mailbox.next("Your password was changed"))["To"] == "ada@example.com"

    async def test_is_not_verified_by_the_link_to_the_old_one(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com")
        await client.post(f"{AUTH}/email/verify/request", json={}, headers=ada.headers)
        old = token_in(await mailbox.next(VERIFICATION))

        await change_address(client, ada, "lovelace@example.com")

        assert refusal(await verify(client, old)) == (401, "invalid_token")
        assert not await is_verified("lovelace@example.com")

    async def test_gets_its_mail_right_after_the_old_one_got_one(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com")
        await client.post(f"{AUTH}/email/verify/request", json={}, headers=ada.headers)
        assert (await mailbox.next(VERIFICATION))["To"] == "ada@example.com"

        await change_address(client, ada, "lovelace@example.com")

        mail = await mailbox.next(VERIFICATION)
        assert mail["To"] == "lovelace@example.com"
        assert (await verify(client, token_in(mail))).status_code == 204

    async def test_that_differs_in_case_only_is_unverified_too(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com", is_verified=True)

        changed = await change_address(client, ada, "Ada@example.com")

        assert changed["is_verified"] is False
        assert (await mailbox.next(VERIFICATION))["To"] == "Ada@example.com"

    async def test_that_is_the_old_one_changes_and_mails_nothing(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com", is_verified=True)

        changed = await change_address(client, ada, "ada@example.com")

        assert changed["is_verified"] is True
        await client.post("/api/v1/users", json={**ADA, "email": "ben@example.com"})
        assert (await mailbox.next())["To"] == "ben@example.com"


class TestRequest:
    async def test_mails_another_link_to_who_is_signed_in(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com")

        response = await client.post(f"{AUTH}/email/verify/request", json={}, headers=ada.headers)

        assert (response.status_code, response.json()) == (
            202,
            {"message": "If there is such an account, a mail is on its way."},
        )
        assert (await verify(client, token_in(await mailbox.next()))).status_code == 204
        assert await is_verified()

    async def test_mails_it_to_the_address_of_who_is_not(self, client: AsyncClient, mailbox: Mailbox) -> None:
        await make_user(email="ada@example.com")

        response = await client.post(f"{AUTH}/email/verify/request", json={"email": "ADA@example.com"})

        assert response.status_code == 202
        mail = await mailbox.next()
        assert (mail["Subject"], mail["To"]) == (VERIFICATION, "ada@example.com")
        assert (await verify(client, token_in(mail))).status_code == 204

    async def test_mails_nothing_where_it_is_of_no_use(self, client: AsyncClient, mailbox: Mailbox) -> None:
        await make_user(email="verified@example.com", is_verified=True)
        await make_user(email="deactivated@example.com", is_active=False)
        await make_user(email="ada@example.com")
        answers = []
        for name in ("verified", "deactivated", "nobody", "ada", "ada"):  # once a minute is enough
            response = await client.post(f"{AUTH}/email/verify/request", json={"email": f"{name}@example.com"})
            answers.append((response.status_code, response.text))
        await client.post("/api/v1/users", json={**ADA, "email": "ben@example.com"})

        assert [(await mailbox.next())["To"] for _ in range(2)] == ["ada@example.com", "ben@example.com"]
        assert len(set(answers)) == 1

    async def test_needs_an_address_or_a_session(self, client: AsyncClient) -> None:
        assert refusal(await client.post(f"{AUTH}/email/verify/request", json={})) == (401, "not_authenticated")
        key = await make_api_key("admin")
        response = await client.post(f"{AUTH}/email/verify/request", json={}, headers=key.headers)
        assert response.status_code == 403


class TestSigningIn:
    async def test_waits_for_the_verification_where_that_is_required(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url, require_verified_email=True) as client:
            await client.post("/api/v1/users", json=ADA)
            wrong = await client.post(f"{AUTH}/login", json={**ADA, "password": "wrong-Lantern-42-orbit"})
            right = await client.post(f"{AUTH}/login", json=ADA)
            assert (refusal(wrong), refusal(right)) == ((401, "invalid_credentials"), (403, "email_not_verified"))

            await verify(client, token_in(await mailbox.next()))

            assert (await client.post(f"{AUTH}/login", json=ADA)).status_code == 200

    async def test_does_not_wait_elsewhere(self, client: AsyncClient) -> None:
        await client.post("/api/v1/users", json=ADA)

        assert (await client.post(f"{AUTH}/login", json=ADA)).status_code == 200


class TestRefreshing:
    async def test_waits_for_the_verification_of_a_new_address_where_that_is_required(
        self, serve: Serve, mailbox: Mailbox
    ) -> None:
        async with serve(smtp_url=mailbox.url, require_verified_email=True) as client:
            ada = await make_signed_in(email="ada@example.com", is_verified=True)
            token = (await refresh(client, ada.refresh_token)).json()["refresh_token"]
            await change_address(client, ada, "lovelace@example.com")

            for _ in range(2):
                assert refusal(await refresh(client, token)) == (403, "email_not_verified")
            assert refusal(await refresh(client, ada.refresh_token)) == (403, "email_not_verified")  # the answer again
            form = {"grant_type": "refresh_token", "refresh_token": token}
            by_form = await client.post(f"{AUTH}/token", data=form)
            assert (by_form.status_code, by_form.json()["error"]) == (403, "invalid_grant")

            await verify(client, token_in(await mailbox.next(VERIFICATION)))
            assert (await refresh(client, token)).status_code == 200

    async def test_does_not_wait_elsewhere(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        assert (await refresh(client, ada.refresh_token)).status_code == 200


async def refresh(client: AsyncClient, token: str) -> Response:
    return await client.post(f"{AUTH}/refresh", json={"refresh_token": token})


class TestLink:
    @pytest.mark.parametrize(
        ("settings", "verification", "reset"),
        [
            (
                {"public_url": "https://octopus.example/base/"},
                "https://octopus.example/base/api/v1/auth/email/verify?token=",
                "https://octopus.example/base/api/v1/auth/password/reset?token=",
            ),
            (
                {
                    "public_url": "https://octopus.example",
                    "email_verify_url": "https://app.example/verify?lang=en&from=mail",
                    "password_reset_url": "https://app.example/reset",
                },
                "https://app.example/verify?lang=en&from=mail&token=",
                "https://app.example/reset?token=",
            ),
        ],
    )
    async def test_leads_where_the_settings_say(
        self, serve: Serve, mailbox: Mailbox, settings: dict[str, str], verification: str, reset: str
    ) -> None:
        async with serve(smtp_url=mailbox.url, **settings) as client:
            await client.post("/api/v1/users", json=ADA)
            await client.post(f"{AUTH}/password/forgot", json={"email": ADA["email"]})

            for mail, page in ((await mailbox.next(), verification), (await mailbox.next(), reset)):
                link = link_in(mail)
                assert link.startswith(page)
                assert list(parse_qs(urlsplit(link).query))[-1] == "token"
                assert f'href="{link.replace("&", "&amp;")}"' in html_of(mail)
