"""Whose second factor outlives a new password by mail: that of an account whose address was ever verified."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from httpx import AsyncClient

from app.models.login_throttle import LoginThrottle
from app.models.one_time_token import OneTimeToken
from app.models.user import User
from tests.api.signing_in import AUTH, bearer, enrol, events, log_in, outcome, prepare
from tests.conftest import Serve
from tests.factories import PASSWORD, SignedInUser, StoredUser, make_signed_in, make_user, sign_in
from tests.mailbox import Mailbox, token_in

ADMIN = "/api/v1/admin/users"
NEW_PASSWORD = "quartz-Lemon-17-violin"
ASKED = (401, "mfa_required")
IN = (200, None)


@pytest.fixture
async def client(serve: Serve, mailbox: Mailbox) -> AsyncIterator[AsyncClient]:
    """The application, with a mail server."""
    async with serve(smtp_url=mailbox.url) as client:
        yield client


async def reset(client: AsyncClient, mailbox: Mailbox, email: str) -> None:
    await client.post(f"{AUTH}/password/forgot", json={"email": email})
    body = {"token": token_in(await mailbox.next("Reset your password")), "password": NEW_PASSWORD}
    assert (await client.post(f"{AUTH}/password/reset", json=body)).status_code == 204


async def verify(client: AsyncClient, mailbox: Mailbox, user: SignedInUser) -> None:
    await client.post(f"{AUTH}/email/verify/request", json={}, headers=user.headers)
    token = token_in(await mailbox.next("Verify your e-mail address"))
    assert (await client.post(f"{AUTH}/email/verify", json={"token": token})).status_code == 204


async def stored(user: StoredUser) -> User:
    found = await User.find_one({"_id": user.id})
    assert found is not None
    return found


class TestSquatter:
    async def test_loses_the_account_to_the_owner_of_the_address(self, client: AsyncClient, mailbox: Mailbox) -> None:
        body = {"email": "ada@example.com", "password": PASSWORD}
        assert (await client.post(f"{AUTH}/register", json=body)).status_code == 201
        document = await User.find_one({"email_key": "ada@example.com"})
        assert document is not None
        squatter = await sign_in(StoredUser(document, PASSWORD))
        phone = await enrol(client, squatter)
        for _ in range(5):
            await log_in(client, squatter, otp="000000")

        await reset(client, mailbox, "ada@example.com")

        entered = await log_in(client, squatter, NEW_PASSWORD)
        assert outcome(entered) == IN
        me = await client.get("/api/v1/users/me", headers=bearer(entered.json()["access_token"]))
        assert (me.json()["mfa_enabled"], me.json()["is_verified"]) == (False, True)
        assert outcome(await log_in(client, squatter, PASSWORD, otp=phone.recovery_codes[0])) == (
            401,
            "invalid_credentials",
        )
        (event,) = await events("mfa:disabled")
        assert (event.actor.kind, event.target.id) == ("anonymous", document.id)
        assert event.details == {"reason": "no address was ever verified"}
        assert (await mailbox.next("Two-factor authentication is off"))["To"] == "ada@example.com"
        assert await LoginThrottle.find({"tries": {"$gte": 5}, "locked_until": {"$ne": None}}).count() == 0

    async def test_loses_what_it_has_only_prepared(self, client: AsyncClient, mailbox: Mailbox) -> None:
        squatter = await make_signed_in(email="ada@example.com")
        await prepare(client, squatter)

        await reset(client, mailbox, "ada@example.com")

        assert (await stored(squatter)).pending_mfa is None
        assert not await events("mfa:disabled")

    async def test_is_shut_out_for_once_only(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_user(email="ada@example.com")
        await reset(client, mailbox, "ada@example.com")
        ada.password = NEW_PASSWORD
        await enrol(client, ada)
        await User.find({"_id": ada.id}).update({"$set": {"is_verified": False}})
        await forget_the_pause()

        await reset(client, mailbox, "ada@example.com")

        assert outcome(await log_in(client, ada, NEW_PASSWORD)) == ASKED


class TestOwner:
    async def test_keeps_it_who_has_verified_the_address(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in(email="ada@example.com")
        await verify(client, mailbox, ada)
        await enrol(client, ada)

        await reset(client, mailbox, "ada@example.com")

        assert outcome(await log_in(client, ada, NEW_PASSWORD)) == ASKED
        assert not await events("mfa:disabled")

    @pytest.mark.parametrize("unknown", [{}, {"first_verified_at": 1}])  # as it was stored before it was kept
    async def test_keeps_it_when_the_present_address_is_unverified(
        self, client: AsyncClient, mailbox: Mailbox, unknown: dict[str, int]
    ) -> None:
        ada = await make_signed_in(email="ada@example.com")
        await verify(client, mailbox, ada)
        if unknown:
            await User.find({"_id": ada.id}).update({"$unset": unknown})
        change = {"email": "countess@example.com", "current_password": PASSWORD}
        assert (await client.patch("/api/v1/users/me", json=change, headers=ada.headers)).is_success
        await enrol(client, ada)
        assert not (await stored(ada)).is_verified

        await reset(client, mailbox, "countess@example.com")

        assert outcome(await log_in(client, await as_stored(ada), NEW_PASSWORD)) == ASKED

    async def test_keeps_it_who_was_verified_by_an_administrator(self, client: AsyncClient, mailbox: Mailbox) -> None:
        root = await make_signed_in(role="superuser")
        body: dict[str, Any] = {"email": "ada@example.com", "password": PASSWORD, "is_verified": True}
        assert (await client.post(ADMIN, json=body, headers=root.headers)).status_code == 201
        document = await User.find_one({"email_key": "ada@example.com"})
        assert document is not None
        assert document.first_verified_at is not None
        ada = StoredUser(document, PASSWORD)
        await enrol(client, ada)

        await reset(client, mailbox, "ada@example.com")

        assert outcome(await log_in(client, ada, NEW_PASSWORD)) == ASKED


class TestFirstVerification:
    async def test_is_remembered_once(self, client: AsyncClient, mailbox: Mailbox) -> None:
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        ada = await make_signed_in(email="ada@example.com")
        ben = await make_signed_in(email="ben@example.com", first_verified_at=long_ago)
        before = (await stored(ben)).version

        await verify(client, mailbox, ada)
        await verify(client, mailbox, ben)
        await reset(client, mailbox, "ben@example.com")

        assert (await stored(ada)).first_verified_at is not None
        assert (await stored(ben)).first_verified_at == long_ago
        assert (await stored(ben)).version == before + 2

    async def test_is_not_before_any(self, client: AsyncClient) -> None:
        root = await make_signed_in(role="superuser")
        for email in ("ada@example.com", "ben@example.com"):
            path, headers = ("/api/v1/auth/register", {}) if email[0] == "a" else (ADMIN, root.headers)
            body = {"email": email, "password": PASSWORD}
            assert (await client.post(path, json=body, headers=headers)).status_code == 201

        assert [user.first_verified_at for user in await User.find({"role": "user"}).to_list()] == [None, None]


async def as_stored(user: StoredUser) -> StoredUser:
    return StoredUser(await stored(user), user.password)


async def forget_the_pause() -> None:
    """Between two links for one account."""
    await OneTimeToken.find_all().delete()
