"""`REQUIRE_MFA_FOR`: who has power shows two factors, or has no power."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from httpx import AsyncClient, Response

from app.core.config import Settings
from app.core.scopes import Role
from app.main import create_app
from app.models.conversation import Conversation
from app.models.user import User
from tests.api.signing_in import AUTH, bearer, enrol, log_in, outcome, refresh, warmed, who_am_i
from tests.conftest import Serve, client_of, running
from tests.factories import make_api_key, make_signed_in, make_user, sign_in
from tests.test_architecture import PUBLIC, endpoints_of

USERS = "/api/v1/users"
REQUIRED = (401, "mfa_required")
ADMINS = [Role.ADMIN, Role.SUPERUSER]


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[AsyncClient]:
    async with serve(require_mfa_for="admin,superuser") as client:
        yield await warmed(client)


async def change(client: AsyncClient, user_id: object, body: dict[str, Any]) -> Response:
    """Have a superuser with a second factor change a user."""
    root = await sign_in(await make_user(role=Role.SUPERUSER), has_mfa=True)
    return await client.patch(f"{USERS}/{user_id}", json=body, headers=root.headers)


class TestWithoutASecondFactor:
    @pytest.mark.parametrize("role", ADMINS)
    async def test_signs_in_and_holds_nothing(self, client: AsyncClient, role: Role) -> None:
        response = await log_in(client, await make_user(role=role))

        assert (response.status_code, response.json()["scope"]) == (200, "")
        caller = (await who_am_i(client, response.json()["access_token"])).json()
        assert (caller["role"], caller["scopes"]) == (role, [])

    @pytest.mark.parametrize("role", ADMINS)
    async def test_is_told_what_to_do_everywhere_but_below_auth(
        self, make_settings: Callable[..., Settings], role: Role
    ) -> None:
        app = create_app(make_settings(require_mfa_for="admin,superuser"))
        closed = [point for point in endpoints_of(app) - PUBLIC if not point.path.startswith(AUTH)]
        async with running(app), client_of(app) as client:
            ada = await make_signed_in(role=role)
            answers = [await client.request(point.method, point.url, headers=ada.headers) for point in closed]

        assert len(answers) > 20
        assert {outcome(answer) for answer in answers} == {REQUIRED}
        assert {"/api/v1/auth/mfa/totp" in answer.json()["detail"] for answer in answers} == {True}
        assert all(answer.headers["www-authenticate"].startswith("Bearer") for answer in answers)

    async def test_changes_nothing(self, client: AsyncClient) -> None:
        root, ada = await make_signed_in(role=Role.SUPERUSER), await make_user()

        answers = [
            await client.patch(f"{USERS}/{ada.id}", json={"role": "admin"}, headers=root.headers),
            await client.delete(f"{USERS}/{ada.id}", headers=root.headers),
            await client.post("/api/v1/conversations", json={"title": "Tea"}, headers=root.headers),
        ]

        stored = await User.find_one({"_id": ada.id})
        assert {outcome(answer) for answer in answers} == {REQUIRED}
        assert stored is not None
        assert stored.role is Role.USER
        assert await Conversation.count() == 0

    async def test_makes_no_accounts_where_only_administrators_do(self, serve: Serve) -> None:
        async with serve(require_mfa_for="admin", registration="closed") as client:
            ada = await make_signed_in(role=Role.ADMIN)
            body = {"email": "bob@example.com", "password": "quartz-Lemon-17-violin"}

            response = await client.post(USERS, json=body, headers=ada.headers)

        assert outcome(response) == (403, "registration_closed")

    async def test_sees_and_ends_sessions_changes_the_password_and_signs_out(self, client: AsyncClient) -> None:
        ada = await make_signed_in(role=Role.ADMIN)
        elsewhere = await sign_in(ada)
        body = {"current_password": ada.password, "password": "quartz-Lemon-17-violin"}

        answers = [
            await client.get(f"{AUTH}/sessions", headers=ada.headers),
            await client.delete(f"{AUTH}/sessions/{elsewhere.session.id}", headers=ada.headers),
            await client.post(f"{AUTH}/password/change", json=body, headers=ada.headers),
            await client.post(f"{AUTH}/logout", headers=ada.headers),
        ]

        assert [answer.status_code for answer in answers] == [200, 204, 204, 204]

    async def test_gains_nothing_by_a_refresh(self, client: AsyncClient) -> None:
        ada = await make_signed_in(role=Role.ADMIN)

        pair = (await refresh(client, ada.refresh_token)).json()

        assert pair["scope"] == ""
        assert outcome(await client.get(USERS, headers=bearer(pair["access_token"]))) == REQUIRED


class TestEnrolment:
    @pytest.mark.parametrize("role", ADMINS)
    async def test_gives_the_session_in_use_its_power(self, client: AsyncClient, role: Role) -> None:
        ada = await make_signed_in(role=role)
        assert outcome(await client.get(USERS, headers=ada.headers)) == REQUIRED

        await enrol(client, ada)

        assert outcome(await client.get(USERS, headers=ada.headers)) == (200, None)
        assert "admin" in (await refresh(client, ada.refresh_token)).json()["scope"].split(" ")

    async def test_gives_later_sessions_theirs(self, client: AsyncClient) -> None:
        ada = await make_user(role=Role.ADMIN)
        phone = await enrol(client, ada)

        pair = (await log_in(client, ada, otp=phone.recovery_codes[0])).json()

        assert "admin" in pair["scope"].split(" ")
        assert outcome(await client.get(USERS, headers=bearer(pair["access_token"]))) == (200, None)

    async def test_is_over_at_once_when_it_is_turned_off(self, client: AsyncClient) -> None:
        ada = await make_signed_in(role=Role.ADMIN)
        phone = await enrol(client, ada)
        pair = (await log_in(client, ada, otp=phone.recovery_codes[0])).json()
        key = await make_api_key("read", owner=ada)
        shown = [ada.headers, bearer(pair["access_token"]), key.headers]
        for headers in shown:
            assert outcome(await client.get(f"{USERS}/me", headers=headers)) == (200, None)

        body = {"current_password": ada.password, "otp": phone.recovery_codes[1]}
        assert (await client.request("DELETE", f"{AUTH}/mfa/totp", json=body, headers=ada.headers)).is_success

        answers = [await client.get(f"{USERS}/me", headers=headers) for headers in shown]
        assert [outcome(answer) for answer in answers] == [REQUIRED] * 3


class TestPromotion:
    async def test_restricts_a_signed_in_user_at_once(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        assert outcome(await client.get(f"{USERS}/me", headers=ada.headers)) == (200, None)

        assert (await change(client, ada.id, {"role": "admin"})).is_success

        assert outcome(await client.get(f"{USERS}/me", headers=ada.headers)) == REQUIRED
        assert (await refresh(client, ada.refresh_token)).json()["scope"] == ""

    async def test_lifts_who_has_a_second_factor(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await enrol(client, ada)

        assert (await change(client, ada.id, {"role": "admin"})).is_success

        assert outcome(await client.get(USERS, headers=ada.headers)) == (200, None)

    async def test_undone_gives_the_user_back_what_a_user_has(self, client: AsyncClient) -> None:
        ada = await make_signed_in(role=Role.ADMIN)
        assert outcome(await client.get(f"{USERS}/me", headers=ada.headers)) == REQUIRED

        assert (await change(client, ada.id, {"role": "user"})).is_success

        assert outcome(await client.get(f"{USERS}/me", headers=ada.headers)) == (200, None)
        assert outcome(await client.get(USERS, headers=ada.headers)) == (403, "insufficient_scope")


class TestPersonalKey:
    @pytest.mark.parametrize("role", ADMINS)
    async def test_of_an_owner_without_one_is_refused_the_same_way(self, client: AsyncClient, role: Role) -> None:
        key = await make_api_key("admin", owner=await make_user(role=role))

        answers = [await client.get(path, headers=key.headers) for path in (USERS, f"{USERS}/me", "/api/v1/api-keys")]

        assert {outcome(answer) for answer in answers} == {REQUIRED}
        assert (await client.get(f"{AUTH}/me", headers=key.headers)).json()["scopes"] == []

    async def test_works_once_its_owner_has_enrolled(self, client: AsyncClient) -> None:
        ada = await make_signed_in(role=Role.ADMIN)
        key = await make_api_key("read", owner=ada)
        assert outcome(await client.get(USERS, headers=key.headers)) == REQUIRED

        await enrol(client, ada)

        assert outcome(await client.get(USERS, headers=key.headers)) == (200, None)

    async def test_is_restricted_at_once_when_its_owner_is_promoted(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada)
        assert outcome(await client.get(f"{USERS}/me", headers=key.headers)) == (200, None)

        await change(client, ada.id, {"role": "admin"})

        assert outcome(await client.get(f"{USERS}/me", headers=key.headers)) == REQUIRED


class TestOthers:
    @pytest.mark.parametrize("role", [Role.GUEST, Role.USER, Role.SUPPORT])
    async def test_go_on_without_a_second_factor(self, client: AsyncClient, role: Role) -> None:
        ada = await make_user(role=role, staff_level=3 if role is Role.SUPPORT else None)

        pair = (await log_in(client, ada)).json()

        assert pair["scope"]
        assert outcome(await client.get(f"{USERS}/me", headers=bearer(pair["access_token"]))) == (200, None)

    async def test_are_asked_for_the_code_when_they_have_one(self, client: AsyncClient) -> None:
        ada = await make_user()
        await enrol(client, ada)

        assert outcome(await log_in(client, ada)) == REQUIRED

    async def test_service_keys_go_on(self, client: AsyncClient) -> None:
        key = await make_api_key("admin")

        assert outcome(await client.get(USERS, headers=key.headers)) == (200, None)

    async def test_nobody_is_asked_where_it_is_not_required(self, serve: Serve) -> None:
        async with serve() as client:
            root = await make_signed_in(role=Role.SUPERUSER)

            assert outcome(await client.get(USERS, headers=root.headers)) == (200, None)

    async def test_may_be_named_too(self, serve: Serve) -> None:
        async with serve(require_mfa_for="user") as client:
            ada, root = await make_signed_in(), await make_signed_in(role=Role.SUPERUSER)

            assert outcome(await client.get(f"{USERS}/me", headers=ada.headers)) == REQUIRED
            assert outcome(await client.get(USERS, headers=root.headers)) == (200, None)
