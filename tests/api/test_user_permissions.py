"""Who may see, change and delete which account, and what a change of rights does at once."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from httpx import AsyncClient, Response

from app.core import live_cache
from app.core.scopes import Role
from app.models.audit_event import AuditEvent
from app.models.session import Session
from app.models.user import User
from tests.factories import SignedInUser, StoredUser, make_api_key, make_signed_in, make_user, sign_in

USERS = "/api/v1/users"
AUTH = "/api/v1/auth"
NEW_PASSWORD = "walnut-Bicycle-77-comet"
NO_SUCH_ID = "6746d0a8f8f8f8f8f8f8f8f8"
Refusal = tuple[int, str | None]
NOT_AUTHENTICATED: Refusal = (401, "not_authenticated")
FORBIDDEN: Refusal = (403, "forbidden")
INSUFFICIENT_SCOPE: Refusal = (403, "insufficient_scope")
NOT_FOUND: Refusal = (404, "not_found")
CONFLICT: Refusal = (409, "conflict")
OK: Refusal = (200, None)
GONE: Refusal = (204, None)


def outcome(response: Response) -> Refusal:
    return response.status_code, response.json()["code"] if response.is_error else None


async def headers_of(caller: str) -> dict[str, str]:
    """The credentials of a caller that is described in words.

    `nobody`, a role, `support <level>`, `key <scope>` for a service key, or `personal <role> <scope>` for a key of such
    a user.
    """
    match caller.split():
        case ["nobody"]:
            return {}
        case ["support", level]:
            return (await make_signed_in(role=Role.SUPPORT, staff_level=int(level))).headers
        case ["key", scope]:
            return (await make_api_key(scope)).headers
        case ["personal", role, scope]:
            return (await make_api_key(scope, owner=await make_user(role=Role(role)))).headers
        case _:
            return (await make_signed_in(role=Role(caller))).headers


async def stored(user: StoredUser) -> User | None:
    return await User.find_one({"_id": user.id})


async def scopes_now(client: AsyncClient, headers: dict[str, str]) -> set[str]:
    response = await client.get(f"{AUTH}/me", headers=headers)
    assert response.status_code == 200
    return set(response.json()["scopes"])


@pytest.fixture
async def warm_client(client: AsyncClient) -> AsyncClient:
    """The application once it believes what it remembers of credentials, so that forgetting counts."""
    async with asyncio.timeout(5):
        while live_cache._State.heard_until < time.monotonic():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    return client


class TestViewAnother:
    @pytest.mark.parametrize(
        ("caller", "expected"),
        [
            ("nobody", NOT_AUTHENTICATED),
            ("guest", FORBIDDEN),
            ("user", FORBIDDEN),
            ("support", OK),
            ("admin", OK),
            ("superuser", OK),
            ("key users:read", OK),
            ("key users:*", OK),
            ("key read", OK),
            ("key admin", OK),
            ("key users:write", INSUFFICIENT_SCOPE),
            ("key write", INSUFFICIENT_SCOPE),
            ("key conversations:read", INSUFFICIENT_SCOPE),
            ("personal user users:read", FORBIDDEN),
            ("personal user admin", FORBIDDEN),
            ("personal support users:read", OK),
            ("personal support users:write", INSUFFICIENT_SCOPE),
            ("personal admin users:read", OK),
        ],
    )
    async def test_is_for_who_may_read_all_users(self, client: AsyncClient, caller: str, expected: Refusal) -> None:
        ada, headers = await make_user(email="ada@example.com"), await headers_of(caller)

        response = await client.get(f"{USERS}/{ada.id}", headers=headers)

        assert outcome(response) == expected
        assert ("ada@example.com" in response.text) == (expected == OK)


class TestList:
    @pytest.mark.parametrize(
        ("caller", "expected"),
        [
            ("nobody", NOT_AUTHENTICATED),
            ("guest", INSUFFICIENT_SCOPE),
            ("user", INSUFFICIENT_SCOPE),
            ("support", OK),
            ("admin", OK),
            ("superuser", OK),
            ("key users:read", OK),
            ("key admin", OK),
            ("key users:write", INSUFFICIENT_SCOPE),
            ("key write", INSUFFICIENT_SCOPE),
            ("key items:read", INSUFFICIENT_SCOPE),
            ("personal user read", INSUFFICIENT_SCOPE),
            ("personal user admin", INSUFFICIENT_SCOPE),
            ("personal support read", OK),
        ],
    )
    async def test_is_for_who_may_read_all_users(self, client: AsyncClient, caller: str, expected: Refusal) -> None:
        await make_user(email="ada@example.com")
        headers = await headers_of(caller)

        response = await client.get(USERS, headers=headers)

        assert outcome(response) == expected
        assert ("ada@example.com" in response.text) == (expected == OK)


class TestWriteAnother:
    @pytest.mark.parametrize("method", ["PUT", "DELETE"])
    @pytest.mark.parametrize(
        ("caller", "expected"),
        [
            ("nobody", NOT_AUTHENTICATED),
            ("guest", INSUFFICIENT_SCOPE),
            ("user", FORBIDDEN),
            ("support", FORBIDDEN),
            ("admin", OK),
            ("superuser", OK),
            ("key users:write", OK),
            ("key write", OK),
            ("key admin", OK),
            ("key users:read", INSUFFICIENT_SCOPE),
            ("key read", INSUFFICIENT_SCOPE),
            ("key conversations:write", INSUFFICIENT_SCOPE),
            ("personal user users:write", FORBIDDEN),
            ("personal user admin", FORBIDDEN),
            ("personal support users:write", FORBIDDEN),
            ("personal admin users:write", OK),
            ("personal admin users:read", INSUFFICIENT_SCOPE),
        ],
    )
    async def test_is_for_who_may_write_all_users(
        self, client: AsyncClient, method: str, caller: str, expected: Refusal
    ) -> None:
        ada, headers = await make_user(), await headers_of(caller)
        is_deletion = method == "DELETE"

        body: dict[str, str] = {} if is_deletion else {"full_name": "Ada"}
        response = await client.request(method, f"{USERS}/{ada.id}", json=body, headers=headers)

        after = await stored(ada)
        assert outcome(response) == (GONE if is_deletion and expected == OK else expected)
        if is_deletion:
            assert (after is None) == (expected == OK)
        else:
            assert after is not None
            assert (after.full_name == "Ada") == (expected == OK)

    @pytest.mark.parametrize("caller", ["admin", "superuser", "key users:write"])
    async def test_needs_no_password_and_ends_all_sessions_with_a_new_one(
        self, warm_client: AsyncClient, caller: str
    ) -> None:
        ada, headers = await make_signed_in(email="ada@example.com"), await headers_of(caller)
        assert outcome(await warm_client.get(f"{USERS}/me", headers=ada.headers)) == OK

        response = await warm_client.patch(f"{USERS}/{ada.id}", json={"password": NEW_PASSWORD}, headers=headers)

        assert response.status_code == 200
        assert outcome(await warm_client.get(f"{USERS}/me", headers=ada.headers)) == (401, "token_revoked")
        body = {"email": "ada@example.com", "password": NEW_PASSWORD}
        assert (await warm_client.post(f"{AUTH}/login", json=body)).status_code == 200

    async def test_makes_a_new_email_address_unverified(self, client: AsyncClient) -> None:
        ada, headers = await make_user(is_verified=True), await headers_of("admin")

        response = await client.patch(f"{USERS}/{ada.id}", json={"email": "new@example.com"}, headers=headers)

        assert (response.json()["email"], response.json()["is_verified"]) == ("new@example.com", False)

    async def test_does_not_take_a_weak_password(self, client: AsyncClient) -> None:
        ada, headers = await make_user(), await headers_of("admin")

        response = await client.patch(f"{USERS}/{ada.id}", json={"password": "password1234"}, headers=headers)

        assert outcome(response) == (422, "weak_password")


class TestUnknownUser:
    @pytest.mark.parametrize("user_id", [NO_SUCH_ID, "zebra", "%00"])
    @pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
    async def test_is_not_found(self, client: AsyncClient, user_id: str, method: str) -> None:
        headers = await headers_of("admin")

        body: dict[str, str] | None = None if method == "GET" else {}
        response = await client.request(method, f"{USERS}/{user_id}", json=body, headers=headers)

        assert outcome(response) == NOT_FOUND


class TestOwnPath:
    @pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
    @pytest.mark.parametrize(
        ("caller", "expected"),
        [("nobody", NOT_AUTHENTICATED), ("key admin", FORBIDDEN), ("key conversations:read", INSUFFICIENT_SCOPE)],
    )
    async def test_is_of_no_use_to_who_is_no_user(
        self, client: AsyncClient, method: str, caller: str, expected: Refusal
    ) -> None:
        headers = await headers_of(caller)

        body: dict[str, str] | None = None if method == "GET" else {}
        response = await client.request(method, f"{USERS}/me", json=body, headers=headers)

        assert outcome(response) == expected

    @pytest.mark.parametrize("own", ["me", "{id}"])
    @pytest.mark.parametrize(
        ("scope", "method", "expected"),
        [
            ("users:read", "GET", OK),
            ("users:read", "PATCH", INSUFFICIENT_SCOPE),
            ("users:read", "DELETE", INSUFFICIENT_SCOPE),
            ("users:write", "GET", INSUFFICIENT_SCOPE),
            ("users:write", "PATCH", OK),
            ("users:write", "DELETE", GONE),
            ("conversations:*", "GET", INSUFFICIENT_SCOPE),
        ],
    )
    async def test_opens_to_a_personal_key_within_its_scopes(
        self, client: AsyncClient, own: str, scope: str, method: str, expected: Refusal
    ) -> None:
        ada = await make_user()
        key = await make_api_key(scope, owner=ada)

        body = {"GET": None, "PATCH": {"full_name": "Ada"}, "DELETE": {"current_password": ada.password}}[method]
        url = f"{USERS}/{own.format(id=ada.id)}"
        response = await client.request(method, url, json=body, headers=key.headers)

        assert outcome(response) == expected

    @pytest.mark.parametrize("own", ["me", "{id}"])
    async def test_is_only_for_reading_to_a_guest(self, client: AsyncClient, own: str) -> None:
        guest = await make_signed_in(role=Role.GUEST)
        url, body = f"{USERS}/{own.format(id=guest.id)}", {"current_password": guest.password}

        assert outcome(await client.get(url, headers=guest.headers)) == OK
        assert outcome(await client.patch(url, json=body, headers=guest.headers)) == INSUFFICIENT_SCOPE
        assert outcome(await client.request("DELETE", url, json=body, headers=guest.headers)) == INSUFFICIENT_SCOPE


class TestPersonalKey:
    @pytest.mark.parametrize("scope", ["admin", "users:*", "audit:read"])
    async def test_is_never_wider_than_its_owner(self, client: AsyncClient, scope: str) -> None:
        ada = await make_signed_in()
        key = await make_api_key(scope, owner=ada)

        assert await scopes_now(client, key.headers) <= await scopes_now(client, ada.headers)

    async def test_follows_the_role_of_its_owner_at_once(self, warm_client: AsyncClient) -> None:
        ada, root = await make_user(), await make_signed_in(role=Role.SUPERUSER)
        key = await make_api_key("users:read", owner=ada)
        outcomes = [outcome(await warm_client.get(USERS, headers=key.headers))]

        for role in ("support", "user"):
            await warm_client.patch(f"{USERS}/{ada.id}", json={"role": role}, headers=root.headers)
            outcomes.append(outcome(await warm_client.get(USERS, headers=key.headers)))

        assert outcomes == [INSUFFICIENT_SCOPE, OK, INSUFFICIENT_SCOPE]


class TestKeyOfASuperuser:
    @pytest.mark.parametrize(
        ("method", "body"),
        [
            ("PATCH", {"password": "walrus-Compass-77-lagoon"}),
            ("PATCH", {"email": "thief@example.com"}),
            ("DELETE", {}),
        ],
    )
    @pytest.mark.parametrize("path", ["me", "id"])
    async def test_changes_no_credentials_of_its_owner(
        self, client: AsyncClient, method: str, body: dict[str, str], path: str
    ) -> None:
        root = await make_user(role=Role.SUPERUSER)
        await make_user(role=Role.SUPERUSER)
        key = await make_api_key("users:*", owner=root)
        url = f"{USERS}/{root.id if path == 'id' else 'me'}"

        response = await client.request(
            method, url, json={"current_password": root.password, **body}, headers=key.headers
        )

        assert outcome(response) == FORBIDDEN
        stored = await User.get(root.id)
        assert stored is not None
        assert (stored.hashed_password, stored.email) == (root.document.hashed_password, root.document.email)

    async def test_still_changes_its_name(self, client: AsyncClient) -> None:
        root = await make_user(role=Role.SUPERUSER)
        key = await make_api_key("users:*", owner=root)

        response = await client.patch(f"{USERS}/me", json={"full_name": "Root"}, headers=key.headers)

        assert outcome(response) == OK


class TestRank:
    @pytest.mark.parametrize(
        "change",
        [
            {"email": "new@example.com"},
            {"password": NEW_PASSWORD},
            {"is_active": False},
            {"role": "user"},
            None,
        ],
        ids=["email", "password", "activity", "role", "deletion"],
    )
    @pytest.mark.parametrize(
        ("caller", "target"),
        [
            ("admin", Role.ADMIN),
            ("admin", Role.SUPERUSER),
            ("key admin", Role.ADMIN),
            ("key admin", Role.SUPERUSER),
            ("key users:write", Role.ADMIN),
            ("key users:write", Role.SUPERUSER),
            ("personal admin admin", Role.ADMIN),
            ("personal admin admin", Role.SUPERUSER),
            ("personal superuser admin", Role.ADMIN),
            ("personal superuser users:write", Role.SUPERUSER),
        ],
    )
    async def test_protects_administrators_and_superusers(
        self, client: AsyncClient, caller: str, target: Role, change: dict[str, object] | None
    ) -> None:
        ada, headers = await make_user(role=target), await headers_of(caller)
        await make_user(role=Role.SUPERUSER)
        before = await stored(ada)

        url = f"{USERS}/{ada.id}"
        if change is None:
            response = await client.delete(url, headers=headers)
        else:
            response = await client.patch(url, json=change, headers=headers)

        assert outcome(response) == FORBIDDEN
        assert await stored(ada) == before

    @pytest.mark.parametrize("target", [Role.ADMIN, Role.SUPERUSER])
    @pytest.mark.parametrize(
        "change", [{"email": "new@example.com"}, {"password": NEW_PASSWORD}, {"is_active": False}, {"role": "user"}]
    )
    async def test_lets_a_superuser_change_anybody(
        self, client: AsyncClient, target: Role, change: dict[str, object]
    ) -> None:
        ada, headers = await make_user(role=target), await headers_of("superuser")

        response = await client.patch(f"{USERS}/{ada.id}", json=change, headers=headers)

        assert outcome(response) == OK
        assert response.json().items() >= {name: change[name] for name in change if name != "password"}.items()

    @pytest.mark.parametrize("target", [Role.ADMIN, Role.SUPERUSER])
    async def test_lets_a_superuser_delete_anybody(self, client: AsyncClient, target: Role) -> None:
        ada, headers = await make_user(role=target), await headers_of("superuser")

        assert outcome(await client.delete(f"{USERS}/{ada.id}", headers=headers)) == GONE
        assert await stored(ada) is None

    @pytest.mark.parametrize("target", [Role.GUEST, Role.USER, Role.SUPPORT])
    @pytest.mark.parametrize("caller", ["admin", "key admin"])
    async def test_lets_administrators_change_who_is_below(
        self, client: AsyncClient, caller: str, target: Role
    ) -> None:
        ada, headers = await make_user(role=target), await headers_of(caller)

        response = await client.patch(f"{USERS}/{ada.id}", json={"email": "new@example.com"}, headers=headers)

        assert (outcome(response), response.json()["email"]) == (OK, "new@example.com")


class TestAssignRole:
    @pytest.mark.parametrize(
        ("caller", "before", "after", "expected"),
        [
            ("admin", "user", "support", OK),
            ("admin", "support", "guest", OK),
            ("admin", "user", "admin", FORBIDDEN),
            ("admin", "user", "superuser", FORBIDDEN),
            ("key admin", "user", "support", OK),
            ("key admin", "user", "admin", FORBIDDEN),
            ("key admin", "user", "superuser", FORBIDDEN),
            ("personal superuser admin", "user", "admin", FORBIDDEN),
            ("personal superuser admin", "user", "superuser", FORBIDDEN),
            ("superuser", "user", "admin", OK),
            ("superuser", "user", "superuser", OK),
            ("superuser", "admin", "superuser", OK),
            ("superuser", "superuser", "guest", OK),
            ("superuser", "admin", "user", OK),
            ("user", "user", "guest", FORBIDDEN),
            ("support", "user", "support", FORBIDDEN),
            ("key users:write", "user", "support", INSUFFICIENT_SCOPE),
            ("key write", "user", "superuser", INSUFFICIENT_SCOPE),
            ("personal admin users:write", "user", "support", INSUFFICIENT_SCOPE),
        ],
    )
    async def test_is_for_administrators_and_above_them_for_superusers(
        self, client: AsyncClient, caller: str, before: str, after: str, expected: Refusal
    ) -> None:
        ada, headers = await make_signed_in(role=Role(before)), await headers_of(caller)

        response = await client.patch(f"{USERS}/{ada.id}", json={"role": after}, headers=headers)

        shown = (await client.get(f"{AUTH}/me", headers=ada.headers)).json()
        assert outcome(response) == expected
        assert shown["role"] == (after if expected == OK else before)

    @pytest.mark.parametrize(
        ("role", "wish", "expected"),
        [
            (Role.USER, "superuser", INSUFFICIENT_SCOPE),
            (Role.USER, "user", INSUFFICIENT_SCOPE),
            (Role.SUPPORT, "admin", INSUFFICIENT_SCOPE),
            (Role.ADMIN, "superuser", FORBIDDEN),
            (Role.ADMIN, "user", FORBIDDEN),
        ],
    )
    async def test_is_not_for_oneself(self, client: AsyncClient, role: Role, wish: str, expected: Refusal) -> None:
        ada = await make_signed_in(role=role)

        body = {"role": wish, "current_password": ada.password}
        response = await client.patch(f"{USERS}/{ada.id}", json=body, headers=ada.headers)

        after = await stored(ada)
        assert outcome(response) == expected
        assert after is not None
        assert after.role == role

    @pytest.mark.parametrize("role", ["king", "", None, 4, ["admin"]])
    async def test_refuses_a_role_that_does_not_exist(self, client: AsyncClient, role: object) -> None:
        ada, headers = await make_user(), await headers_of("superuser")

        response = await client.patch(f"{USERS}/{ada.id}", json={"role": role}, headers=headers)

        assert outcome(response) == (422, "validation_error")

    async def test_takes_effect_at_once_on_sessions_that_live(self, warm_client: AsyncClient) -> None:
        root, ada = await make_signed_in(role=Role.SUPERUSER), await make_signed_in()
        elsewhere = await sign_in(ada)
        outcomes = [[outcome(await warm_client.get(USERS, headers=own.headers)) for own in (ada, elsewhere)]]

        for role in ("support", "user"):
            await warm_client.patch(f"{USERS}/{ada.id}", json={"role": role}, headers=root.headers)
            outcomes.append([outcome(await warm_client.get(USERS, headers=own.headers)) for own in (ada, elsewhere)])

        assert outcomes == [[INSUFFICIENT_SCOPE] * 2, [OK] * 2, [INSUFFICIENT_SCOPE] * 2]

    async def test_takes_effect_at_once_on_what_was_an_administrator(self, warm_client: AsyncClient) -> None:
        root, admin = await make_signed_in(role=Role.SUPERUSER), await make_signed_in(role=Role.ADMIN)
        ada = await make_user()
        assert "admin" in await scopes_now(warm_client, admin.headers)

        await warm_client.patch(f"{USERS}/{admin.id}", json={"role": "user"}, headers=root.headers)

        assert "admin" not in await scopes_now(warm_client, admin.headers)
        assert outcome(await warm_client.delete(f"{USERS}/{ada.id}", headers=admin.headers)) == FORBIDDEN

    async def test_reaches_a_session_that_begins_at_the_same_moment(self, client: AsyncClient) -> None:
        root, ada = await make_signed_in(role=Role.SUPERUSER), await make_user()
        url, login = f"{USERS}/{ada.id}", {"email": ada.document.email, "password": ada.password}

        await asyncio.gather(
            *[client.post(f"{AUTH}/login", json=login) for _ in range(5)],
            client.patch(url, json={"role": "support"}, headers=root.headers),
            *[client.post(f"{AUTH}/login", json=login) for _ in range(5)],
        )

        sessions = await Session.find({"user_id": ada.id}).to_list()
        assert [session.role for session in sessions] == ["support"] * 10


class TestDeactivate:
    @pytest.mark.parametrize(
        ("caller", "expected"),
        [
            ("nobody", NOT_AUTHENTICATED),
            ("user", FORBIDDEN),
            ("support", FORBIDDEN),
            ("key users:write", INSUFFICIENT_SCOPE),
            ("personal admin users:write", INSUFFICIENT_SCOPE),
            ("key admin", OK),
            ("admin", OK),
            ("superuser", OK),
        ],
    )
    async def test_is_for_administrators(self, client: AsyncClient, caller: str, expected: Refusal) -> None:
        ada, headers = await make_user(), await headers_of(caller)

        response = await client.patch(f"{USERS}/{ada.id}", json={"is_active": False}, headers=headers)

        after = await stored(ada)
        assert outcome(response) == expected
        assert after is not None
        assert after.is_active == (expected != OK)

    @pytest.mark.parametrize("role", [Role.USER, Role.SUPPORT])
    async def test_is_not_for_oneself(self, client: AsyncClient, role: Role) -> None:
        ada = await make_signed_in(role=role)

        body = {"is_active": False, "current_password": ada.password}
        response = await client.patch(f"{USERS}/{ada.id}", json=body, headers=ada.headers)

        assert outcome(response) == INSUFFICIENT_SCOPE

    async def test_stops_every_credential_of_the_user_at_once(self, warm_client: AsyncClient) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_signed_in()
        key = await make_api_key("read", owner=ada)
        for headers in (ada.headers, key.headers):
            assert outcome(await warm_client.get(f"{USERS}/me", headers=headers)) == OK

        await warm_client.patch(f"{USERS}/{ada.id}", json={"is_active": False}, headers=admin.headers)

        assert outcome(await warm_client.get(f"{USERS}/me", headers=ada.headers)) == (401, "token_revoked")
        assert outcome(await warm_client.get(f"{USERS}/me", headers=key.headers)) == (401, "invalid_api_key")
        refresh = await warm_client.post(f"{AUTH}/refresh", json={"refresh_token": ada.refresh_token})
        assert outcome(refresh) == (401, "token_revoked")
        login = await warm_client.post(f"{AUTH}/login", json={"email": ada.document.email, "password": ada.password})
        assert outcome(login) == (403, "account_disabled")

    async def test_can_be_undone_but_brings_no_session_back(self, client: AsyncClient) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_signed_in()

        for is_active in (False, True):
            await client.patch(f"{USERS}/{ada.id}", json={"is_active": is_active}, headers=admin.headers)

        assert outcome(await client.get(f"{USERS}/me", headers=ada.headers)) == (401, "token_revoked")
        login = await client.post(f"{AUTH}/login", json={"email": ada.document.email, "password": ada.password})
        assert login.status_code == 200

    async def test_leaves_the_sessions_of_others(self, client: AsyncClient) -> None:
        admin, ada, bob = await make_signed_in(role=Role.ADMIN), await make_user(), await make_signed_in()

        await client.patch(f"{USERS}/{ada.id}", json={"is_active": False}, headers=admin.headers)

        assert outcome(await client.get(f"{USERS}/me", headers=bob.headers)) == OK


class TestChangeOfRights:
    @pytest.mark.parametrize(
        "change", [{"role": "support"}, {"is_active": False}, {"role": "guest", "is_active": True}]
    )
    async def test_is_recorded_with_what_it_gave(self, client: AsyncClient, change: dict[str, object]) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN, username="root"), await make_user()

        await client.patch(f"{USERS}/{ada.id}", json={**change, "full_name": "Ada"}, headers=admin.headers)

        (event,) = await AuditEvent.find({"action": "user:updated"}).to_list()
        assert (event.actor.kind, event.actor.id, event.actor.name) == ("user", admin.id, "root")
        assert (event.target.kind, event.target.id, event.outcome) == ("user", ada.id, "success")
        assert event.details == {"fields": sorted([*change, "full_name"]), **change}

    async def test_is_recorded_as_done_by_the_key(self, client: AsyncClient) -> None:
        key, ada = await make_api_key("admin", name="ci"), await make_user()

        await client.patch(f"{USERS}/{ada.id}", json={"role": "support"}, headers=key.headers)

        (event,) = await AuditEvent.find({"action": "user:updated"}).to_list()
        assert (event.actor.kind, event.actor.id, event.actor.name) == ("api_key", key.document.id, "ci")

    async def test_is_not_recorded_when_it_is_refused(self, client: AsyncClient) -> None:
        ada, headers = await make_user(), await headers_of("user")

        await client.patch(f"{USERS}/{ada.id}", json={"role": "support"}, headers=headers)

        assert await AuditEvent.find({"action": "user:updated"}).count() == 0


@pytest.mark.usefixtures("patience")
class TestSignInAtTheSameMoment:
    @pytest.mark.parametrize(
        ("method", "body"),
        [("PATCH", {"is_active": False}), ("PATCH", {"password": NEW_PASSWORD}), ("DELETE", {})],
        ids=["deactivation", "new password", "deletion"],
    )
    async def test_leaves_no_session_to_who_is_shut_out(
        self, client: AsyncClient, method: str, body: dict[str, object]
    ) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_user()
        login = {"email": ada.document.email, "password": ada.password}

        before = [client.post(f"{AUTH}/login", json=login) for _ in range(5)]
        act = client.request(method, f"{USERS}/{ada.id}", json=body, headers=admin.headers)
        after = [client.post(f"{AUTH}/login", json=login) for _ in range(5)]
        *answers, acted = await asyncio.gather(*before, *after, act)

        assert acted.status_code in {200, 204}
        assert {answer.status_code for answer in answers} <= {200, 401, 403, 429}
        assert await Session.find({"user_id": ada.id}).count() == 0


class Fall(NamedTuple):
    """A way in which a superuser ceases to be an active one."""

    method: str
    body: dict[str, object]
    success: Refusal

    async def of(self, who: StoredUser, client: AsyncClient, *, by: SignedInUser, path: str | None = None) -> Response:
        body = {**self.body, "current_password": by.password}
        return await client.request(self.method, f"{USERS}/{path or who.id}", json=body, headers=by.headers)


DEMOTION = Fall("PATCH", {"role": "admin"}, OK)
DEACTIVATION = Fall("PUT", {"is_active": False}, OK)
DELETION = Fall("DELETE", {}, GONE)
EVERY_FALL = pytest.mark.parametrize(
    "fall", [DEMOTION, DEACTIVATION, DELETION], ids=["demotion", "deactivation", "deletion"]
)


async def active_superusers() -> Sequence[User]:
    return await User.find({"role": "superuser", "is_active": True}).to_list()


class TestLastSuperuser:
    @EVERY_FALL
    async def test_can_not_fall(self, client: AsyncClient, fall: Fall) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)
        await make_user(role=Role.ADMIN)

        response = await fall.of(root, client, by=root)

        assert outcome(response) == CONFLICT
        assert [user.id for user in await active_superusers()] == [root.id]
        assert outcome(await client.get(f"{USERS}/me", headers=root.headers)) == OK

    async def test_can_not_be_deleted_by_the_own_path(self, client: AsyncClient) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)

        assert outcome(await DELETION.of(root, client, by=root, path="me")) == CONFLICT
        assert len(await active_superusers()) == 1

    @EVERY_FALL
    async def test_is_the_last_even_beside_one_who_is_deactivated(self, client: AsyncClient, fall: Fall) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)
        await make_user(role=Role.SUPERUSER, is_active=False)

        assert outcome(await fall.of(root, client, by=root)) == CONFLICT
        assert [user.id for user in await active_superusers()] == [root.id]

    async def test_may_change_everything_else(self, client: AsyncClient) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)

        body = {"role": "superuser", "is_active": True, "full_name": "Root"}
        response = await client.patch(f"{USERS}/{root.id}", json=body, headers=root.headers)

        assert (outcome(response), response.json()["full_name"]) == (OK, "Root")

    @EVERY_FALL
    async def test_is_not_the_last_beside_another(self, client: AsyncClient, fall: Fall) -> None:
        root, other = await make_signed_in(role=Role.SUPERUSER), await make_user(role=Role.SUPERUSER)

        assert outcome(await fall.of(root, client, by=root)) == fall.success
        assert [user.id for user in await active_superusers()] == [other.id]

    @EVERY_FALL
    async def test_can_rid_the_service_of_one_who_is_deactivated(self, client: AsyncClient, fall: Fall) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)
        other = await make_user(role=Role.SUPERUSER, is_active=False)

        assert outcome(await fall.of(other, client, by=root)) == fall.success
        assert [user.id for user in await active_superusers()] == [root.id]

    @EVERY_FALL
    async def test_is_left_when_two_remove_each_other_at_the_same_moment(self, client: AsyncClient, fall: Fall) -> None:
        one, two = [await make_signed_in(role=Role.SUPERUSER) for _ in range(2)]
        for root in (one, two):
            assert outcome(await client.get(f"{USERS}/me", headers=root.headers)) == OK

        answers = await asyncio.gather(fall.of(two, client, by=one), fall.of(one, client, by=two))

        assert {outcome(answer) for answer in answers} == {fall.success, CONFLICT}
        assert len(await active_superusers()) == 1

    @EVERY_FALL
    async def test_is_left_when_all_resign_at_the_same_moment(self, client: AsyncClient, fall: Fall) -> None:
        roots = [await make_signed_in(role=Role.SUPERUSER) for _ in range(4)]

        answers = await asyncio.gather(*[fall.of(root, client, by=root) for root in roots])

        assert sorted(outcome(answer) for answer in answers) == sorted([fall.success] * 3 + [CONFLICT])
        assert len(await active_superusers()) == 1
