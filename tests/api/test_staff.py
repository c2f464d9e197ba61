"""What staff of each level sees and does of the accounts of others."""

import asyncio
from typing import Any

import pytest
from httpx import AsyncClient

from app.core.scopes import Role
from app.models.audit_event import AuditEvent
from app.models.session import Session
from app.models.usage_counter import UsageCounter
from app.models.user import User
from tests.api.test_usage import counted, say, used_up_to
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
from tests.conftest import no_event_can_be_written
from tests.factories import StoredUser, make_conversation, make_signed_in, make_user, sign_in

STAFF = "/api/v1/staff/users"
VIEWS = ["", "/{id}", "/{id}/usage"]
ASSISTANCE: dict[str, dict[str, Any] | None] = {
    "reset-limits": None,
    "activate": None,
    "deactivate": None,
    "revoke-sessions": None,
}
MANAGEMENT: dict[str, dict[str, Any] | None] = {"credits": {"amount": 5}, "plan": {"plan": "pro"}}
ACTIONS = ASSISTANCE | MANAGEMENT
NO_STAFF = ["guest", "user", "key users:*", "key read", "key write", "key conversations:*", "personal user admin"]
ADMINS = ["admin", "superuser", "key admin", "personal admin admin", "personal superuser admin"]


def cases(callers: list[str], expected: Refusal) -> list[tuple[str, Refusal]]:
    return [(caller, expected) for caller in callers]


def action(user: StoredUser | str, name: str) -> str:
    return f"{STAFF}/{user if isinstance(user, str) else user.id}/{name}"


async def event_of(name: str) -> AuditEvent:
    (event,) = await AuditEvent.find({"action": name}).to_list()
    return event


class TestView:
    @pytest.mark.parametrize("path", VIEWS)
    @pytest.mark.parametrize(
        ("caller", "expected"),
        [
            ("nobody", NOT_AUTHENTICATED),
            *cases(NO_STAFF, INSUFFICIENT_SCOPE),
            *cases(["support", "support 1", "support 2", "support 3", *ADMINS], OK),
            ("personal support read", INSUFFICIENT_SCOPE),
        ],
    )
    async def test_is_from_level_1(self, client: AsyncClient, path: str, caller: str, expected: Refusal) -> None:
        ada, headers = await make_user(credits=4711), await headers_of(caller)

        response = await client.get(f"{STAFF}{path.format(id=ada.id)}", headers=headers)

        assert outcome(response) == expected
        assert ('"credits":4711' in response.text) == (expected == OK)

    async def test_shows_limits_and_credits(self, client: AsyncClient) -> None:
        ada = await make_user(email="ada@example.com", plan="pro", limits={"daily_messages": None}, credits=3)

        response = await client.get(f"{STAFF}/{ada.id}", headers=await headers_of("support 1"))

        shown = response.json()
        expected = {
            "id": str(ada.id),
            "email": "ada@example.com",
            "plan": "pro",
            "limits": {"daily_messages": None},
            "credits": 3,
        }
        assert shown.items() >= expected.items()
        assert response.headers["etag"].startswith('"1-')
        again = await client.get(
            f"{STAFF}/{ada.id}",
            headers=await headers_of("support 1") | {"If-None-Match": response.headers["etag"]},
        )
        assert again.status_code == 304

    async def test_lists_as_users_are_listed(self, client: AsyncClient) -> None:
        users = [await make_user(email=f"{name}@example.com", plan="pro") for name in ("ada", "adam", "bob")]
        await make_user(email="adele@example.com")
        headers = await headers_of("support 1")

        first = await client.get(f"{STAFF}?q=ad&plan=pro&sort=email&limit=1", headers=headers)
        second = await client.get(first.links["next"]["url"], headers=headers)

        assert [row["id"] for row in first.json() + second.json()] == [str(user.id) for user in users[:2]]
        assert "next" not in second.links
        assert outcome(await client.get(f"{STAFF}?cursor=x", headers=headers)) == (400, "invalid_cursor")
        assert outcome(await client.get(f"{STAFF}?sort=age", headers=headers)) == (422, "validation_error")

    async def test_shows_the_usage(self, client: AsyncClient) -> None:
        ada = await make_user(limits={"daily_messages": 9})
        await used_up_to(ada, 4)

        shown = (await client.get(f"{STAFF}/{ada.id}/usage", headers=await headers_of("support 1"))).json()

        assert (shown["used"]["messages_today"], shown["remaining"]["messages_today"]) == (4, 5)


class TestAct:
    @pytest.mark.parametrize("name", ASSISTANCE)
    @pytest.mark.parametrize(
        ("caller", "expected"),
        [
            ("nobody", NOT_AUTHENTICATED),
            *cases([*NO_STAFF, "support", "support 1"], INSUFFICIENT_SCOPE),
            *cases(["support 2", "support 3", *ADMINS], OK),
        ],
    )
    async def test_is_from_level_2(self, client: AsyncClient, name: str, caller: str, expected: Refusal) -> None:
        await self.check(client, name, caller, expected)

    @pytest.mark.parametrize("name", MANAGEMENT)
    @pytest.mark.parametrize(
        ("caller", "expected"),
        [
            ("nobody", NOT_AUTHENTICATED),
            *cases([*NO_STAFF, "support", "support 1", "support 2"], INSUFFICIENT_SCOPE),
            *cases(["support 3", *ADMINS], OK),
        ],
    )
    async def test_on_plan_and_credits_is_of_level_3(
        self, client: AsyncClient, name: str, caller: str, expected: Refusal
    ) -> None:
        await self.check(client, name, caller, expected)

    async def check(self, client: AsyncClient, name: str, caller: str, expected: Refusal) -> None:
        ada, headers = await make_user(is_active=name != "activate"), await headers_of(caller)
        before = await stored(ada)

        response = await client.post(action(ada, name), json=ACTIONS[name], headers=headers)

        assert outcome(response) == expected
        assert await AuditEvent.find({"target.id": ada.id}).count() == (1 if expected == OK else 0)
        if expected != OK:
            assert await stored(ada) == before

    @pytest.mark.parametrize("name", ACTIONS)
    @pytest.mark.parametrize(
        ("caller", "target", "expected"),
        [
            ("support 3", Role.GUEST, OK),
            ("support 3", Role.SUPPORT, FORBIDDEN),
            ("support 3", Role.ADMIN, FORBIDDEN),
            ("support 3", Role.SUPERUSER, FORBIDDEN),
            ("admin", Role.SUPPORT, OK),
            ("admin", Role.ADMIN, FORBIDDEN),
            ("admin", Role.SUPERUSER, FORBIDDEN),
            ("key admin", Role.SUPPORT, OK),
            ("key admin", Role.ADMIN, FORBIDDEN),
            ("personal superuser admin", Role.ADMIN, FORBIDDEN),
            ("superuser", Role.ADMIN, OK),
            ("superuser", Role.SUPERUSER, OK),
        ],
    )
    async def test_reaches_only_lower_ranks(
        self, client: AsyncClient, name: str, caller: str, target: Role, expected: Refusal
    ) -> None:
        ada, headers = await make_signed_in(role=target), await headers_of(caller)
        await used_up_to(ada, 3)
        before = await stored(ada)

        response = await client.post(action(ada, name), json=ACTIONS[name], headers=headers)

        assert outcome(response) == expected
        if expected != OK:
            assert await stored(ada) == before
            assert await counted(ada) == 3
            assert await Session.find({"user_id": ada.id}).count() == 1

    @pytest.mark.parametrize("name", ACTIONS)
    async def test_is_not_on_oneself(self, client: AsyncClient, name: str) -> None:
        eve = await make_signed_in(role=Role.SUPPORT, staff_level=3)

        assert outcome(await client.post(action(eve, name), json=ACTIONS[name], headers=eve.headers)) == FORBIDDEN

    @pytest.mark.parametrize("user_id", [NO_SUCH_ID, "zebra"])
    @pytest.mark.parametrize("name", ACTIONS)
    async def test_on_nobody_is_not_found(self, client: AsyncClient, name: str, user_id: str) -> None:
        headers = await headers_of("admin")

        assert outcome(await client.post(action(user_id, name), json=ACTIONS[name], headers=headers)) == NOT_FOUND

    @pytest.mark.parametrize(
        ("name", "recorded"),
        [
            ("reset-limits", "user:limits_reset"),
            ("activate", "user:updated"),
            ("deactivate", "user:updated"),
            ("revoke-sessions", "sessions:ended"),
            ("credits", "user:credited"),
            ("plan", "user:updated"),
        ],
    )
    async def test_is_recorded_with_its_reason(self, client: AsyncClient, name: str, recorded: str) -> None:
        ada, eve = await make_user(), await make_signed_in(role=Role.SUPPORT, staff_level=3, username="eve")

        body = (ACTIONS[name] or {}) | {"reason": "Ticket 4711"}
        assert outcome(await client.post(action(ada, name), json=body, headers=eve.headers)) == OK

        event = await event_of(recorded)
        assert (event.actor.kind, event.actor.id, event.actor.name) == ("user", eve.id, "eve")
        assert (event.target.kind, event.target.id, event.outcome) == ("user", ada.id, "success")
        assert event.details["reason"] == "Ticket 4711"

    @pytest.mark.parametrize("name", ACTIONS)
    async def test_does_nothing_that_is_not_recorded(self, client: AsyncClient, name: str) -> None:
        ada, headers = await make_signed_in(is_active=name != "activate"), await headers_of("support 3")
        await used_up_to(ada, 3)
        before = await stored(ada)

        async with no_event_can_be_written():
            response = await client.post(action(ada, name), json=ACTIONS[name], headers=headers)

        assert response.status_code >= 500
        assert await stored(ada) == before
        assert await counted(ada) == 3
        assert await Session.find({"user_id": ada.id}).count() == 1

    @pytest.mark.parametrize(
        ("name", "body"),
        [
            *((name, {**(body or {}), "reasn": "x"}) for name, body in ACTIONS.items()),
            *((name, {**(body or {}), "reason": "x" * 201}) for name, body in ACTIONS.items()),
            *(("credits", {"amount": amount}) for amount in (0, 1.5, "5", True, None, 10**13, -(10**13), 10**30)),
            ("credits", {}),
            ("plan", {"plan": "gold"}),
            ("plan", {"plan": None}),
            ("plan", {}),
        ],
    )
    async def test_refuses_a_body_that_makes_no_sense(
        self, client: AsyncClient, name: str, body: dict[str, Any]
    ) -> None:
        ada, headers = await make_user(), await headers_of("support 3")

        assert outcome(await client.post(action(ada, name), json=body, headers=headers)) == (422, "validation_error")
        assert await stored(ada) == ada.document


class TestResetLimits:
    async def test_lets_the_user_write_again_today(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": 1})
        conversation = await make_conversation(ada)
        outcomes = [(await say(client, conversation, ada.headers)).status_code for _ in range(2)]

        response = await client.post(action(ada, "reset-limits"), headers=await headers_of("support 2"))

        outcomes += [(await say(client, conversation, ada.headers)).status_code for _ in range(2)]
        assert outcomes == [201, 429, 201, 429]
        assert response.json()["used"]["messages_today"] == 0
        assert response.json()["remaining"]["messages_today"] == 1

    async def test_leaves_other_days_and_other_users_alone(self, client: AsyncClient) -> None:
        ada, bob = await make_user(), await make_user()
        await used_up_to(ada, 2, day="2026-01-01")
        await used_up_to(ada, 3)
        await used_up_to(bob, 4)

        await client.post(action(ada, "reset-limits"), headers=await headers_of("support 2"))

        assert (await counted(ada, "2026-01-01"), await counted(ada), await counted(bob)) == (2, 0, 4)

    async def test_of_who_has_used_nothing_changes_nothing(self, client: AsyncClient) -> None:
        ada = await make_user()

        response = await client.post(action(ada, "reset-limits"), headers=await headers_of("support 2"))

        assert outcome(response) == OK
        assert await UsageCounter.count() == 0


class TestActivity:
    async def test_ends_and_comes_back(self, client: AsyncClient) -> None:
        ada, headers = await make_signed_in(), await headers_of("support 2")

        closed = await client.post(action(ada, "deactivate"), headers=headers)
        shut_out = await client.get("/api/v1/users/me", headers=ada.headers)
        opened = await client.post(action(ada, "activate"), headers=headers)

        assert (closed.json()["is_active"], opened.json()["is_active"]) == (False, True)
        assert outcome(shut_out) == (401, "token_revoked")
        login = {"email": ada.document.email, "password": ada.password}
        assert (await client.post("/api/v1/auth/login", json=login)).status_code == 200

    async def test_of_the_last_superuser_stays(self, client: AsyncClient) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)

        assert outcome(await client.post(action(root, "deactivate"), headers=root.headers)) == CONFLICT


class TestRevokeSessions:
    async def test_ends_all_of_that_user(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        again = await sign_in(ada)

        response = await client.post(action(ada, "revoke-sessions"), headers=await headers_of("support 2"))

        assert (response.status_code, response.json()) == (200, {"revoked_count": 2})
        statuses = [
            (await client.get("/api/v1/users/me", headers=user.headers)).status_code for user in (ada, again, bob)
        ]
        assert statuses == [401, 401, 200]
        assert (await event_of("sessions:ended")).details == {"count": 2, "reason": None}


class TestCredits:
    async def test_add_up(self, client: AsyncClient) -> None:
        ada, headers = await make_user(), await headers_of("support 3")

        shown = [
            (await client.post(action(ada, "credits"), json={"amount": amount}, headers=headers)).json()["credits"]
            for amount in (50, -20, 7)
        ]

        assert shown == [50, 30, 37]
        events = await AuditEvent.find({"action": "user:credited"}).sort("_id").to_list()
        assert [(event.details["amount"], event.details["credits"]) for event in events] == [
            (50, 50),
            (-20, 30),
            (7, 37),
        ]

    async def test_are_never_fewer_than_none(self, client: AsyncClient) -> None:
        ada, headers = await make_user(credits=5), await headers_of("support 3")

        outcomes = [
            outcome(await client.post(action(ada, "credits"), json={"amount": amount}, headers=headers))
            for amount in (-6, -5, -1)
        ]

        assert outcomes == [CONFLICT, OK, CONFLICT]
        after = await stored(ada)
        assert after is not None
        assert after.credits == 0
        assert await AuditEvent.find({"action": "user:credited"}).count() == 1

    async def test_are_exact_when_many_take_at_once(self, client: AsyncClient) -> None:
        ada, headers = await make_user(credits=30), await headers_of("support 3")

        responses = await asyncio.gather(
            *(client.post(action(ada, "credits"), json={"amount": -10}, headers=headers) for _ in range(8))
        )

        assert sorted(outcome(response) for response in responses) == [OK] * 3 + [CONFLICT] * 5
        after = await stored(ada)
        assert after is not None
        assert after.credits == 0


class TestPlan:
    async def test_holds_at_once(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await used_up_to(ada, 500)
        outcomes = [(await say(client, conversation, ada.headers)).status_code]

        response = await client.post(action(ada, "plan"), json={"plan": "pro"}, headers=await headers_of("support 3"))

        outcomes.append((await say(client, conversation, ada.headers)).status_code)
        assert outcomes == [429, 201]
        assert response.json()["plan"] == "pro"
        session = await Session.find_one({"user_id": ada.id})
        assert session is not None
        assert session.rate_limit == "3000/minute"
        assert (await event_of("user:updated")).details == {"fields": ["plan"], "plan": "pro"}

    async def test_leaves_what_was_set_for_the_account(self, client: AsyncClient) -> None:
        ada = await make_user(limits={"daily_messages": 1})

        await client.post(action(ada, "plan"), json={"plan": "pro"}, headers=await headers_of("support 3"))

        after = await User.find_one({"_id": ada.id})
        assert after is not None
        assert (after.plan, after.limits) == ("pro", {"daily_messages": 1})
