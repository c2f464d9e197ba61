"""Accounts as administrators make and change them."""

import asyncio
from typing import Any

import pytest
from httpx import AsyncClient

from app.core.scopes import Role
from app.models.audit_event import AuditEvent
from app.models.session import Session
from app.models.user import User
from tests.api.test_usage import say
from tests.api.test_user_permissions import (
    CONFLICT,
    FORBIDDEN,
    INSUFFICIENT_SCOPE,
    NO_SUCH_ID,
    NOT_AUTHENTICATED,
    NOT_FOUND,
    OK,
    Refusal,
    headers_of,
    outcome,
    stored,
)
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import PASSWORD, StoredUser, make_conversation, make_signed_in, make_user

ADMIN = "/api/v1/admin/users"
NEW = {"email": "new@example.com", "password": PASSWORD}
CREATED: Refusal = (201, None)
INVALID: Refusal = (422, "validation_error")
CALLERS = [
    ("nobody", NOT_AUTHENTICATED),
    ("guest", INSUFFICIENT_SCOPE),
    ("user", INSUFFICIENT_SCOPE),
    ("support 1", INSUFFICIENT_SCOPE),
    ("support 2", INSUFFICIENT_SCOPE),
    ("support 3", INSUFFICIENT_SCOPE),
    ("admin", OK),
    ("superuser", OK),
    ("key admin", OK),
    ("key users:*", INSUFFICIENT_SCOPE),
    ("key write", INSUFFICIENT_SCOPE),
    ("personal user admin", INSUFFICIENT_SCOPE),
    ("personal support admin", INSUFFICIENT_SCOPE),
    ("personal admin admin", OK),
    ("personal admin users:*", INSUFFICIENT_SCOPE),
]


def url_of(user: StoredUser) -> str:
    return f"{ADMIN}/{user.id}"


async def present(user: StoredUser) -> User:
    found = await stored(user)
    assert found is not None
    return found


class TestCreate:
    @pytest.mark.parametrize(("caller", "expected"), CALLERS)
    async def test_is_for_administrators(self, client: AsyncClient, caller: str, expected: Refusal) -> None:
        headers = await headers_of(caller)

        response = await client.post(ADMIN, json=NEW, headers=headers)

        assert outcome(response) == (CREATED if expected == OK else expected)
        assert await User.find({"email_key": "new@example.com"}).count() == (expected == OK)

    async def test_gives_all_that_is_asked_for(self, client: AsyncClient) -> None:
        wanted = {
            "username": "grace",
            "full_name": "Grace Hopper",
            "role": "support",
            "staff_level": 2,
            "plan": "pro",
            "is_verified": True,
        }

        response = await client.post(ADMIN, json=NEW | wanted, headers=await headers_of("admin"))

        assert response.status_code == 201
        assert response.headers["etag"].startswith('"1-')
        expected = wanted | {"email": "new@example.com", "limits": {}, "credits": 0, "is_active": True}
        assert response.json().items() >= expected.items()
        login = await client.post("/api/v1/auth/login", json=NEW)
        assert "staff:assist" in login.json()["scope"].split()
        assert "staff:manage" not in login.json()["scope"].split()

    async def test_makes_a_plain_user_when_nothing_is_asked_for(self, client: AsyncClient) -> None:
        shown = (await client.post(ADMIN, json=NEW, headers=await headers_of("admin"))).json()

        expected = {"role": "user", "staff_level": None, "plan": "free", "is_verified": False, "username": None}
        assert shown.items() >= expected.items()

    async def test_gives_support_the_lowest_level(self, client: AsyncClient) -> None:
        response = await client.post(ADMIN, json=NEW | {"role": "support"}, headers=await headers_of("admin"))

        assert (response.status_code, response.json()["staff_level"]) == (201, 1)

    @pytest.mark.parametrize(
        ("caller", "role", "expected"),
        [
            *((caller, role, CREATED) for caller in ("admin", "key admin") for role in ("guest", "user", "support")),
            *(
                (caller, role, FORBIDDEN)
                for caller in ("admin", "key admin", "personal superuser admin")
                for role in ("admin", "superuser")
            ),
            *(("superuser", role, CREATED) for role in ("guest", "support", "admin", "superuser")),
        ],
    )
    async def test_makes_administrators_only_for_superusers(
        self, client: AsyncClient, caller: str, role: str, expected: Refusal
    ) -> None:
        response = await client.post(ADMIN, json=NEW | {"role": role}, headers=await headers_of(caller))

        assert outcome(response) == expected
        assert await User.find({"email_key": "new@example.com", "role": role}).count() == (expected == CREATED)

    async def test_works_where_registration_is_closed(self, serve: Serve) -> None:
        async with serve(registration="closed") as client:
            response = await client.post(ADMIN, json=NEW, headers=await headers_of("admin"))

        assert response.status_code == 201

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({"staff_level": 1}, INVALID),
            ({"role": "admin", "staff_level": 1}, INVALID),
            ({"role": "support", "staff_level": 0}, INVALID),
            ({"role": "support", "staff_level": 4}, INVALID),
            ({"role": "support", "staff_level": "2"}, INVALID),
            ({"role": "king"}, INVALID),
            ({"plan": "gold"}, INVALID),
            ({"is_verified": None}, INVALID),
            ({"credits": 5}, INVALID),
            ({"email": "no address"}, INVALID),
            ({"password": "password1234"}, (422, "weak_password")),
        ],
    )
    async def test_refuses_what_makes_no_sense(
        self, client: AsyncClient, body: dict[str, Any], expected: Refusal
    ) -> None:
        headers = await headers_of("superuser")

        response = await client.post(ADMIN, json=NEW | body, headers=headers)

        assert outcome(response) == expected
        assert PASSWORD not in response.text
        assert await User.find({"role": {"$ne": "superuser"}}).count() == 0

    async def test_refuses_names_that_are_taken(self, client: AsyncClient) -> None:
        await make_user(email="new@example.com", username="grace")
        headers = await headers_of("admin")

        taken = await client.post(ADMIN, json=NEW, headers=headers)
        named = await client.post(ADMIN, json=NEW | {"email": "b@example.com", "username": "Grace"}, headers=headers)

        assert outcome(taken) == (409, "email_taken")
        assert outcome(named) == (409, "username_taken")

    async def test_is_recorded(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)

        created = await client.post(ADMIN, json=NEW | {"role": "support"}, headers=admin.headers)

        (event,) = await AuditEvent.find({"action": "user:created"}).to_list()
        assert (event.actor.id, str(event.target.id)) == (admin.id, created.json()["id"])
        assert event.details["role"] == "support"


class TestUpdate:
    @pytest.mark.parametrize(("caller", "expected"), CALLERS)
    async def test_is_for_administrators(self, client: AsyncClient, caller: str, expected: Refusal) -> None:
        ada, headers = await make_user(), await headers_of(caller)

        response = await client.patch(url_of(ada), json={"credits": 5}, headers=headers)

        assert outcome(response) == expected
        assert (await present(ada)).credits == (5 if expected == OK else 0)

    async def test_changes_all_that_it_names(self, client: AsyncClient) -> None:
        ada, headers = await make_user(), await headers_of("admin")
        changes = {
            "role": "support",
            "staff_level": 3,
            "plan": "enterprise",
            "limits": {"daily_messages": 20, "max_conversations": None},
            "credits": 12,
            "is_active": False,
        }

        response = await client.patch(url_of(ada), json=changes, headers=headers)

        assert response.status_code == 200
        assert response.json().items() >= changes.items()
        after = await present(ada)
        assert {name: getattr(after, name) for name in changes} == changes
        (event,) = await AuditEvent.find({"action": "user:updated"}).to_list()
        assert event.details == {"fields": sorted(changes), **changes}

    async def test_leaves_what_it_does_not_name(self, client: AsyncClient) -> None:
        ada = await make_user(plan="pro", limits={"daily_messages": 1}, credits=3)

        response = await client.patch(url_of(ada), json={"credits": 4}, headers=await headers_of("admin"))

        expected = {"plan": "pro", "limits": {"daily_messages": 1}, "credits": 4, "role": "user"}
        assert response.json().items() >= expected.items()

    @pytest.mark.parametrize(
        "body",
        [
            {"limits": {"daily_mesages": 1}},
            {"limits": {"daily_messages": -1}},
            {"limits": {"daily_messages": 1.5}},
            {"limits": {"daily_messages": True}},
            {"limits": {"daily_messages": 10**18}},
            {"limits": {"requests_per_minute": 0}},
            {"limits": None},
            {"limits": []},
            {"staff_level": 1},
            {"staff_level": None},
            {"role": "admin", "staff_level": 2},
            {"role": "support", "staff_level": 4},
            {"role": None},
            {"plan": "gold"},
            {"credits": -1},
            {"credits": 10**30},
            {"is_active": "perhaps"},
            {"email": "new@example.com"},
            {"password": PASSWORD},
        ],
    )
    async def test_refuses_what_makes_no_sense(self, client: AsyncClient, body: dict[str, Any]) -> None:
        ada = await make_user()

        response = await client.patch(url_of(ada), json=body, headers=await headers_of("superuser"))

        assert outcome(response) == INVALID
        assert response.json()["errors"]
        assert await stored(ada) == ada.document

    @pytest.mark.parametrize("user_id", [NO_SUCH_ID, "zebra"])
    async def test_of_nobody_is_not_found(self, client: AsyncClient, user_id: str) -> None:
        response = await client.patch(f"{ADMIN}/{user_id}", json={"credits": 1}, headers=await headers_of("admin"))

        assert outcome(response) == NOT_FOUND

    async def test_does_nothing_that_is_not_recorded(self, client: AsyncClient) -> None:
        ada, headers = await make_user(), await headers_of("admin")

        async with no_event_can_be_written():
            response = await client.patch(url_of(ada), json={"credits": 5, "plan": "pro"}, headers=headers)

        assert response.status_code >= 500
        assert await stored(ada) == ada.document


class TestConditionalUpdate:
    async def test_is_made_only_to_the_version_that_was_seen(self, client: AsyncClient) -> None:
        ada, headers = await make_user(), await headers_of("admin")
        shown = await client.get(f"/api/v1/staff/users/{ada.id}", headers=headers)
        seen = {"If-Match": shown.headers["etag"]}

        first = await client.patch(url_of(ada), json={"credits": 1}, headers=headers | seen)
        second = await client.patch(url_of(ada), json={"credits": 2}, headers=headers | seen)
        third = await client.patch(
            url_of(ada), json={"credits": 3}, headers=headers | {"If-Match": first.headers["etag"]}
        )

        assert [outcome(first), outcome(second), outcome(third)] == [OK, (412, "precondition_failed"), OK]
        assert (await present(ada)).credits == 3

    async def test_has_the_tag_that_reading_gives(self, client: AsyncClient) -> None:
        ada, headers = await make_user(), await headers_of("admin")

        changed = await client.patch(url_of(ada), json={"credits": 1}, headers=headers)

        assert changed.headers["etag"].startswith('"2-')
        tag = {"If-None-Match": changed.headers["etag"]}
        assert (await client.get(f"/api/v1/staff/users/{ada.id}", headers=headers | tag)).status_code == 304


class TestRank:
    @pytest.mark.parametrize(
        "change",
        [{"role": "user"}, {"is_active": False}, {"plan": "pro"}, {"limits": {"daily_messages": 1}}, {"credits": 1}],
    )
    @pytest.mark.parametrize(
        ("caller", "target", "expected"),
        [
            ("admin", Role.SUPPORT, OK),
            ("admin", Role.ADMIN, FORBIDDEN),
            ("admin", Role.SUPERUSER, FORBIDDEN),
            ("key admin", Role.SUPPORT, OK),
            ("key admin", Role.ADMIN, FORBIDDEN),
            ("personal superuser admin", Role.SUPERUSER, FORBIDDEN),
            ("superuser", Role.ADMIN, OK),
            ("superuser", Role.SUPERUSER, OK),
        ],
    )
    async def test_protects_the_same_and_higher(
        self, client: AsyncClient, caller: str, target: Role, expected: Refusal, change: dict[str, Any]
    ) -> None:
        ada, headers = await make_user(role=target), await headers_of(caller)
        before = await stored(ada)

        response = await client.patch(url_of(ada), json=change, headers=headers)

        assert outcome(response) == expected
        assert (await stored(ada) == before) == (expected != OK)

    @pytest.mark.parametrize(("caller", "expected"), [("admin", FORBIDDEN), ("superuser", OK)])
    @pytest.mark.parametrize("role", ["admin", "superuser"])
    async def test_makes_administrators_only_for_superusers(
        self, client: AsyncClient, role: str, caller: str, expected: Refusal
    ) -> None:
        ada = await make_user()

        response = await client.patch(url_of(ada), json={"role": role}, headers=await headers_of(caller))

        assert outcome(response) == expected
        assert ((await present(ada)).role == role) == (expected == OK)

    @pytest.mark.parametrize("change", [{"role": "admin"}, {"is_active": False}])
    async def test_keeps_the_last_superuser(self, client: AsyncClient, change: dict[str, Any]) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)

        response = await client.patch(url_of(root), json=change, headers=root.headers)

        assert outcome(response) == CONFLICT
        assert await stored(root) == root.document

    async def test_keeps_one_of_two_superusers_that_go_at_once(self, client: AsyncClient) -> None:
        roots = [await make_signed_in(role=Role.SUPERUSER) for _ in range(2)]

        responses = await asyncio.gather(
            *(client.patch(url_of(root), json={"role": "user"}, headers=root.headers) for root in roots)
        )

        assert sorted(outcome(response) for response in responses) == [OK, CONFLICT]
        assert await User.find({"role": "superuser"}).count() == 1


class TestStaffLevel:
    async def test_is_the_lowest_for_new_support(self, client: AsyncClient) -> None:
        ada, headers = await make_user(), await headers_of("admin")

        for url in (url_of(ada), f"/api/v1/users/{ada.id}"):
            shown = (await client.patch(url, json={"role": "support"}, headers=headers)).json()
            assert (shown["role"], shown["staff_level"]) == ("support", 1)
            await client.patch(url, json={"role": "user"}, headers=headers)

    async def test_stays_while_the_role_stays(self, client: AsyncClient) -> None:
        ada = await make_user(role=Role.SUPPORT, staff_level=3)

        response = await client.patch(url_of(ada), json={"role": "support"}, headers=await headers_of("admin"))

        assert response.json()["staff_level"] == 3

    @pytest.mark.parametrize("path", [ADMIN, "/api/v1/users"])
    async def test_goes_with_the_role(self, client: AsyncClient, path: str) -> None:
        ada, headers = await make_user(role=Role.SUPPORT, staff_level=3), await headers_of("admin")

        left = (await client.patch(f"{path}/{ada.id}", json={"role": "user"}, headers=headers)).json()
        back = (await client.patch(f"{path}/{ada.id}", json={"role": "support"}, headers=headers)).json()

        assert (left["staff_level"], back["staff_level"]) == (None, 1)

    async def test_holds_in_live_sessions_at_once(self, client: AsyncClient) -> None:
        ada, headers = await make_signed_in(), await headers_of("admin")
        bob = await make_user()
        url = f"/api/v1/staff/users/{bob.id}/reset-limits"

        outcomes = [outcome(await client.post(url, headers=ada.headers))]
        for change in ({"role": "support"}, {"staff_level": 2}, {"staff_level": 1}, {"role": "user"}):
            assert (await client.patch(url_of(ada), json=change, headers=headers)).status_code == 200
            outcomes.append(outcome(await client.post(url, headers=ada.headers)))

        assert outcomes == [INSUFFICIENT_SCOPE, INSUFFICIENT_SCOPE, OK, INSUFFICIENT_SCOPE, INSUFFICIENT_SCOPE]
        session = await Session.find_one({"user_id": ada.id})
        assert session is not None
        assert (session.role, session.staff_level) == ("user", None)


class TestLimits:
    async def test_take_the_place_of_all_that_were_set(self, client: AsyncClient) -> None:
        ada, headers = await make_signed_in(limits={"storage_bytes": 7}), await headers_of("admin")
        shown = []
        for limits in ({"daily_messages": 20, "max_conversations": None}, {"daily_messages": 0}, {}):
            response = await client.patch(url_of(ada), json={"limits": limits}, headers=headers)
            assert response.json()["limits"] == limits
            usage = (await client.get("/api/v1/usage/me", headers=ada.headers)).json()["limits"]
            shown.append((usage["daily_messages"], usage["max_conversations"], usage["storage_bytes"]))

        assert shown == [(20, None, 1_073_741_824), (0, 200, 1_073_741_824), (500, 200, 1_073_741_824)]

    async def test_hold_for_the_next_message(self, client: AsyncClient) -> None:
        ada, headers = await make_signed_in(), await headers_of("admin")
        conversation = await make_conversation(ada)
        outcomes = [(await say(client, conversation, ada.headers)).status_code]

        for limit in (1, 2, None):
            changed = await client.patch(url_of(ada), json={"limits": {"daily_messages": limit}}, headers=headers)
            assert changed.status_code == 200
            outcomes.append((await say(client, conversation, ada.headers)).status_code)

        assert outcomes == [201, 429, 201, 201]
