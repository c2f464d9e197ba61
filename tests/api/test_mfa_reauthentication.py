"""What changes who may sign in needs the second factor beside the password, where it is on (OWASP ASVS 5.0, 7.5.1)."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from httpx import AsyncClient, Response

from app.models.deleted_user import DeletedUser
from app.models.login_throttle import LoginThrottle
from app.models.user import User
from app.services import credential_service
from tests.api.signing_in import AUTH, WRONG, Phone, enrol, events, outcome
from tests.factories import SignedInUser, make_api_key, make_signed_in

USERS = "/api/v1/users"
NEW_PASSWORD = "quartz-Lemon-17-violin"
Act = Callable[..., Awaitable[Response]]


async def new_email(client: AsyncClient, user: SignedInUser, method: str = "PATCH", **proof: Any) -> Response:
    body = {"email": "countess@example.com", **proof}
    return await client.request(method, f"{USERS}/me", json=body, headers=user.headers)


async def new_email_by_put(client: AsyncClient, user: SignedInUser, **proof: Any) -> Response:
    return await new_email(client, user, method="PUT", **proof)


async def new_password(client: AsyncClient, user: SignedInUser, **proof: Any) -> Response:
    return await client.patch(f"{USERS}/me", json={"password": NEW_PASSWORD, **proof}, headers=user.headers)


async def new_password_by_id(client: AsyncClient, user: SignedInUser, **proof: Any) -> Response:
    return await client.put(f"{USERS}/{user.id}", json={"password": NEW_PASSWORD, **proof}, headers=user.headers)


async def new_email_by_id(client: AsyncClient, user: SignedInUser, **proof: Any) -> Response:
    body = {"email": "countess@example.com", **proof}
    return await client.patch(f"{USERS}/{user.id}", json=body, headers=user.headers)


async def change_password(client: AsyncClient, user: SignedInUser, **proof: Any) -> Response:
    body = {"password": NEW_PASSWORD, **proof}
    return await client.post(f"{AUTH}/password/change", json=body, headers=user.headers)


async def delete_oneself(client: AsyncClient, user: SignedInUser, **proof: Any) -> Response:
    return await client.request("DELETE", f"{USERS}/me", json=proof, headers=user.headers)


async def delete_by_id(client: AsyncClient, user: SignedInUser, **proof: Any) -> Response:
    return await client.request("DELETE", f"{USERS}/{user.id}", json=proof, headers=user.headers)


ACTS = [
    new_email,
    new_email_by_put,
    new_email_by_id,
    new_password,
    new_password_by_id,
    change_password,
    delete_oneself,
    delete_by_id,
]


async def enrolled(client: AsyncClient) -> tuple[SignedInUser, Phone]:
    ada = await make_signed_in(email="ada@example.com")
    return ada, await enrol(client, ada)


async def as_it_is(user: SignedInUser) -> tuple[Any, ...]:
    """The account, but for how often it was touched."""
    stored = await User.find_one({"_id": user.id})
    assert stored is not None
    return stored.email, stored.hashed_password, await DeletedUser.count()


@pytest.mark.parametrize("act", ACTS)
class TestSecondFactor:
    async def test_is_needed_beside_the_password(self, client: AsyncClient, act: Act) -> None:
        ada, phone = await enrolled(client)
        before = await as_it_is(ada)

        missing = await act(client, ada, current_password=ada.password)
        wrong = await act(client, ada, current_password=ada.password, otp="000000")
        wrong_password = await act(client, ada, current_password=WRONG, otp=phone.recovery_codes[0])
        unchanged = await as_it_is(ada)
        right = await act(client, ada, current_password=ada.password, otp=phone.recovery_codes[0])

        assert outcome(missing) == (401, "mfa_required")
        assert outcome(wrong) == (401, "invalid_otp")
        assert outcome(wrong_password) == (401, "invalid_credentials")
        assert unchanged == before
        assert right.is_success

    async def test_is_tried_five_times(self, client: AsyncClient, act: Act) -> None:
        ada, phone = await enrolled(client)

        tries = [outcome(await act(client, ada, current_password=ada.password, otp="000000")) for _ in range(5)]
        right = await act(client, ada, current_password=ada.password, otp=phone.recovery_codes[0])

        assert tries == [(401, "invalid_otp")] * 5
        assert outcome(right) == (429, "account_locked")

    async def test_does_not_take_the_place_of_the_password(self, client: AsyncClient, act: Act) -> None:
        ada, phone = await enrolled(client)

        response = await act(client, ada, otp=phone.recovery_codes[0])

        assert outcome(response) in {(401, "invalid_credentials"), (422, "validation_error")}
        assert not await events("recovery_code:used")
        assert await LoginThrottle.count() == 0

    async def test_is_ignored_where_it_is_off(self, client: AsyncClient, act: Act) -> None:
        ada = await make_signed_in()

        assert (await act(client, ada, current_password=ada.password, otp="000000")).is_success

    @pytest.mark.parametrize("otp", ["", "0" * 65, 123456])
    async def test_is_refused_when_it_is_no_code(self, client: AsyncClient, act: Act, otp: object) -> None:
        ada, _ = await enrolled(client)

        response = await act(client, ada, current_password=ada.password, otp=otp)

        assert outcome(response) == (422, "validation_error")


class TestWeakPassword:
    async def test_uses_no_code_up(self, client: AsyncClient) -> None:
        ada, phone = await enrolled(client)
        proof = {"current_password": ada.password, "otp": phone.recovery_codes[0]}
        me = "/api/v1/users/me"

        weak = await client.patch(me, json={**proof, "password": "password12"}, headers=ada.headers)
        strong = await client.patch(me, json={**proof, "password": "walrus-Compass-77-lagoon"}, headers=ada.headers)

        assert outcome(weak) == (422, "weak_password")
        assert outcome(strong) == (200, None)


class TestPersonalKey:
    @pytest.mark.parametrize(("method", "change"), [("PATCH", {"password": NEW_PASSWORD}), ("DELETE", {})])
    async def test_needs_it_too(self, client: AsyncClient, method: str, change: dict[str, str]) -> None:
        ada, phone = await enrolled(client)
        key = await make_api_key("write", owner=ada)
        body = {**change, "current_password": ada.password}
        full = {**body, "otp": phone.recovery_codes[0]}

        without = await client.request(method, f"{USERS}/me", json=body, headers=key.headers)
        with_it = await client.request(method, f"{USERS}/me", json=full, headers=key.headers)

        assert outcome(without) == (401, "mfa_required")
        assert with_it.is_success


class TestWhatProvesNothing:
    async def test_needs_neither(self, client: AsyncClient) -> None:
        ada, _ = await enrolled(client)

        response = await client.patch(f"{USERS}/me", json={"full_name": "Ada"}, headers=ada.headers)

        assert response.is_success

    async def test_is_asked_of_nobody_who_changes_another(self, client: AsyncClient) -> None:
        root = await make_signed_in(role="superuser")
        await enrol(client, root)
        ada, _ = await enrolled(client)

        changed = await client.patch(f"{USERS}/{ada.id}", json={"password": NEW_PASSWORD}, headers=root.headers)
        deleted = await client.delete(f"{USERS}/{ada.id}", headers=root.headers)

        assert (changed.status_code, deleted.status_code) == (200, 204)

    async def test_is_stored_with_nothing(self, client: AsyncClient) -> None:
        ada, phone = await enrolled(client)
        await new_email(client, ada, current_password=ada.password, otp=phone.recovery_codes[0])

        stored = await User.get_pymongo_collection().find_one({"_id": ada.id})
        (event,) = await events("user:updated")

        assert stored is not None
        assert "otp" not in stored
        assert event.details == {"fields": ["email", "is_verified"]}


class TestRace:
    async def test_with_turning_it_on_is_lost(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await make_signed_in(email="ada@example.com")
        proved = credential_service.require_password

        async def prove_then_enrol(user: User, password: str | None) -> None:
            await proved(user, password)
            monkeypatch.undo()
            await enrol(client, ada)

        monkeypatch.setattr(credential_service, "require_password", prove_then_enrol)
        response = await new_email(client, ada, current_password=ada.password)

        assert outcome(response) == (409, "conflict")
