import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core.scopes import Role
from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from app.models.deleted_user import DeletedUser
from app.models.session import Session
from app.models.user import User
from app.services import job_service
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import (
    PASSWORD,
    SignedInUser,
    archive,
    make_api_key,
    make_conversation,
    make_messages,
    make_signed_in,
    make_user,
)

BASE = "/api/v1/admin/deleted-users"
Restore = Callable[[AsyncClient, ObjectId, dict[str, str]], Any]


async def restore_as_admin(client: AsyncClient, user_id: ObjectId, headers: dict[str, str]) -> Response:
    return await client.post(f"{BASE}/{user_id}/restore", headers=headers)


async def restore_as_staff(client: AsyncClient, user_id: ObjectId, headers: dict[str, str]) -> Response:
    return await client.post(f"/api/v1/staff/users/{user_id}/restore", headers=headers)


async def purge(client: AsyncClient, user_id: ObjectId, headers: dict[str, str]) -> Response:
    return await client.delete(f"{BASE}/{user_id}", headers=headers)


async def events(action: str) -> list[AuditEvent]:
    return await AuditEvent.find({"action": action}).to_list()


async def until_purged(user_id: ObjectId) -> None:
    async with asyncio.timeout(10):
        while await DeletedUser.get(user_id) is not None:  # noqa: ASYNC110 - the loop under test tells nobody
            await asyncio.sleep(0.01)


@pytest.fixture
async def admin(client: AsyncClient) -> SignedInUser:
    assert client
    return await make_signed_in(role=Role.ADMIN)


class TestList:
    async def test_shows_what_was_deleted_by_whom_and_until_when(
        self, client: AsyncClient, admin: SignedInUser
    ) -> None:
        ada = await make_user(email="Ada@example.com", username="ada", full_name="Ada L", plan="pro")
        body = {"reason": "asked for it"}
        gone = await client.request("DELETE", f"/api/v1/users/{ada.id}", headers=admin.headers, json=body)
        assert gone.status_code == 204

        response = await client.get(BASE, headers=admin.headers)

        (shown,) = response.json()
        deleted_at, purge_at = (datetime.fromisoformat(shown.pop(name)) for name in ("deleted_at", "purge_at"))
        assert response.status_code == 200
        assert shown == {
            "id": str(ada.id),
            "email": "Ada@example.com",
            "username": "ada",
            "full_name": "Ada L",
            "role": "user",
            "plan": "pro",
            "deleted_by": str(admin.id),
            "reason": "asked for it",
        }
        assert purge_at - deleted_at == timedelta(days=30)
        assert ada.document.hashed_password not in response.text

    async def test_begins_with_the_latest_deletion_and_pages_by_key_range(
        self, client: AsyncClient, admin: SignedInUser
    ) -> None:
        users = [await archive(await make_user(), days_ago=days) for days in (3, 1, 5, 2, 4)]
        expected = [str(users[at].id) for at in (1, 3, 0, 4, 2)]

        first = await client.get(f"{BASE}?limit=2", headers=admin.headers)
        await archive(await make_user())
        second = await client.get(first.links["next"]["url"], headers=admin.headers)
        third = await client.get(second.links["next"]["url"], headers=admin.headers)

        assert [row["id"] for page in (first, second, third) for row in page.json()] == expected
        assert "next" not in third.links

    async def test_finds_by_the_beginning_of_the_address_without_case(
        self, client: AsyncClient, admin: SignedInUser
    ) -> None:
        for name in ("Ada", "adam", "ben", "a.d"):
            await archive(await make_user(email=f"{name}@example.com"))

        found = await client.get(f"{BASE}?q=ADA", headers=admin.headers)
        nothing = await client.get(f"{BASE}?q=.*", headers=admin.headers)

        assert {row["email"] for row in found.json()} == {"Ada@example.com", "adam@example.com"}
        assert nothing.json() == []

    async def test_hides_what_is_being_purged(self, client: AsyncClient, admin: SignedInUser) -> None:
        await archive(await make_user(), purge_started_at=datetime.now(UTC))

        assert (await client.get(BASE, headers=admin.headers)).json() == []

    async def test_shows_accounts_that_are_older_than_the_model(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await archive(await make_user(username="ada"))
        await DeletedUser.find({"_id": ada.id}).update(
            {"$unset": {"user.plan": "", "user.role": "", "user.full_name": ""}}
        )

        (shown,) = (await client.get(BASE, headers=admin.headers)).json()

        assert (shown["plan"], shown["role"], shown["full_name"], shown["username"]) == ("free", "user", None, "ada")

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "q=" + "x" * 321, "q=%00"])
    async def test_refuses_parameters_out_of_bounds(self, client: AsyncClient, admin: SignedInUser, query: str) -> None:
        response = await client.get(f"{BASE}?{query}", headers=admin.headers)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")

    async def test_refuses_a_cursor_of_another_list(self, client: AsyncClient, admin: SignedInUser) -> None:
        for _ in range(2):
            await archive(await make_user())
        page = await client.get(f"{BASE}?limit=1", headers=admin.headers)

        response = await client.get(f"{page.links['next']['url']}&q=a", headers=admin.headers)

        assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")

    @pytest.mark.parametrize(("role", "level"), [(Role.USER, None), (Role.SUPPORT, 3), (Role.GUEST, None)])
    async def test_is_for_administrators(self, client: AsyncClient, role: Role, level: int | None) -> None:
        caller = await make_signed_in(role=role, staff_level=level)
        ada = await archive(await make_user())

        answers = [
            await client.get(BASE, headers=caller.headers),
            await restore_as_admin(client, ada.id, caller.headers),
            await purge(client, ada.id, caller.headers),
        ]

        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(403, "insufficient_scope")] * 3
        assert await DeletedUser.find({"_id": ada.id, "purge_started_at": None}).count() == 1


class TestRestore:
    async def test_gives_back_the_account_as_it_was(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await make_user(email="ada@example.com", username="Ada", full_name="Ada L", plan="pro", credits=7)
        await archive(ada)

        response = await restore_as_admin(client, ada.id, admin.headers)

        before, after = ada.document, await User.get(ada.id)
        assert response.status_code == 200
        assert (response.json()["id"], response.json()["email"]) == (str(ada.id), "ada@example.com")
        assert after is not None
        assert after.version == before.version + 1
        assert after.updated_at >= before.updated_at
        assert after.model_dump(exclude={"version", "updated_at"}) == before.model_dump(
            exclude={"version", "updated_at"}
        )
        assert await DeletedUser.count() == 0
        login = {"email": "ada@example.com", "password": PASSWORD}
        assert (await client.post("/api/v1/auth/login", json=login)).status_code == 200

    async def test_leaves_sessions_and_keys_ended(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada)
        gone = await client.delete(f"/api/v1/users/{ada.id}", headers=admin.headers)
        assert gone.status_code == 204

        assert (await restore_as_admin(client, ada.id, admin.headers)).status_code == 200

        answers = [await client.get("/api/v1/users/me", headers=headers) for headers in (ada.headers, key.headers)]
        assert [answer.status_code for answer in answers] == [401, 401]
        assert await Session.find({"user_id": ada.id}).count() == 0
        assert await ApiKey.find({"owner_id": ada.id, "is_active": False}).count() == 1

    async def test_gives_conversations_back_that_nobody_touched(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await make_user()
        conversation = await make_conversation(ada)
        await make_messages(conversation, by=ada)
        await archive(ada)

        await restore_as_admin(client, ada.id, admin.headers)

        shown = await client.get(f"/api/v1/conversations/user/{ada.id}", headers=admin.headers)
        assert [row["id"] for row in shown.json()] == [str(conversation.id)]

    async def test_is_recorded(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await archive(await make_user())

        await restore_as_admin(client, ada.id, admin.headers)

        (event,) = await events("user:restored")
        assert (event.actor.id, event.target.kind, event.target.id) == (admin.id, "user", ada.id)

    @pytest.mark.parametrize(
        ("taken", "code"),
        [
            ({"email": "ADA@example.com"}, "email_taken"),
            ({"username": "aDA"}, "username_taken"),
            ({"email": "ada@example.com", "username": "ada"}, "email_taken"),
        ],
    )
    async def test_is_refused_when_a_name_is_taken_and_changes_nothing(
        self, client: AsyncClient, admin: SignedInUser, taken: dict[str, str], code: str
    ) -> None:
        ada = await archive(await make_user(email="ada@example.com", username="ada"))
        await make_user(**taken)  # type: ignore[arg-type]

        response = await restore_as_admin(client, ada.id, admin.headers)

        assert (response.status_code, response.json()["code"]) == (409, code)
        assert await DeletedUser.find({"_id": ada.id}).count() == 1
        assert await User.get(ada.id) is None
        assert await events("user:restored") == []

    async def test_of_two_at_once_is_done_by_one(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await archive(await make_user())

        answers = await asyncio.gather(*(restore_as_admin(client, ada.id, admin.headers) for _ in range(4)))

        assert sorted(answer.status_code for answer in answers) == [200, 404, 404, 404]
        assert await User.find({"_id": ada.id}).count() == 1
        assert len(await events("user:restored")) == 1

    async def test_meets_a_registration_of_the_name_with_one_winner(
        self, client: AsyncClient, admin: SignedInUser
    ) -> None:
        for number in range(5):
            email = f"ada{number}@example.com"
            ada = await archive(await make_user(email=email))

            restored, registered = await asyncio.gather(
                restore_as_admin(client, ada.id, admin.headers),
                client.post("/api/v1/users", json={"email": email, "password": PASSWORD}),
            )

            assert sorted([restored.status_code, registered.status_code]) in ([200, 409], [201, 409])
            assert await User.find({"email_key": email}).count() == 1
            assert (await DeletedUser.get(ada.id) is None) == (restored.status_code == 200)

    async def test_gives_defaults_for_what_the_account_lacks(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await archive(await make_user())
        lacking = dict.fromkeys(("user.plan", "user.limits", "user.credits", "user.mfa", "user.is_verified"), "")
        await DeletedUser.find({"_id": ada.id}).update({"$unset": lacking, "$set": {"user.of_old": 1}})

        response = await restore_as_admin(client, ada.id, admin.headers)

        raw = await User.get_pymongo_collection().find_one({"_id": ada.id}) or {}
        assert (response.status_code, response.json()["plan"]) == (200, "free")
        assert (raw["plan"], raw["limits"], raw["credits"], raw["mfa"], raw["is_verified"]) == (
            "free",
            {},
            0,
            None,
            False,
        )
        assert "of_old" not in raw

    async def test_is_undone_when_it_can_not_be_recorded(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await archive(await make_user())

        async with no_event_can_be_written():
            response = await restore_as_admin(client, ada.id, admin.headers)

        assert response.status_code == 500
        assert await DeletedUser.find({"_id": ada.id}).count() == 1
        assert await User.get(ada.id) is None

    async def test_is_too_late_once_the_purge_has_begun(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await archive(await make_user(), purge_started_at=datetime.now(UTC))

        response = await restore_as_admin(client, ada.id, admin.headers)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert await User.get(ada.id) is None

    @pytest.mark.parametrize("user_id", ["0" * 24, "x", "0" * 23])
    async def test_of_an_unknown_account_is_not_found(
        self, client: AsyncClient, admin: SignedInUser, user_id: str
    ) -> None:
        paths = (f"{BASE}/{user_id}/restore", f"/api/v1/staff/users/{user_id}/restore")
        answers = [await client.post(path, headers=admin.headers) for path in paths]
        answers.append(await client.delete(f"{BASE}/{user_id}", headers=admin.headers))

        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(404, "not_found")] * 3

    async def test_of_an_account_that_was_never_deleted_is_not_found(
        self, client: AsyncClient, admin: SignedInUser
    ) -> None:
        ada = await make_user()

        assert (await restore_as_admin(client, ada.id, admin.headers)).status_code == 404
        assert (await purge(client, ada.id, admin.headers)).status_code == 404
        assert await User.get(ada.id) is not None


class TestStaff:
    async def test_of_level_3_restores_users(self, client: AsyncClient) -> None:
        staff = await make_signed_in(role=Role.SUPPORT, staff_level=3)
        ada = await archive(await make_user())

        response = await restore_as_staff(client, ada.id, staff.headers)

        (event,) = await events("user:restored")
        assert (response.status_code, response.json()["id"]) == (200, str(ada.id))
        assert (event.actor.id, event.target.id) == (staff.id, ada.id)

    @pytest.mark.parametrize(
        ("role", "level"), [(Role.SUPPORT, None), (Role.SUPPORT, 1), (Role.SUPPORT, 2), (Role.USER, None)]
    )
    async def test_below_that_level_does_not(self, client: AsyncClient, role: Role, level: int | None) -> None:
        caller = await make_signed_in(role=role, staff_level=level)
        ada = await archive(await make_user())

        response = await restore_as_staff(client, ada.id, caller.headers)

        assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")
        assert await DeletedUser.find({"_id": ada.id}).count() == 1


class TestRank:
    """One restores and purges accounts of lower rank; a superuser all."""

    @pytest.mark.parametrize(
        ("caller", "of", "allowed"),
        [
            (Role.ADMIN, Role.SUPPORT, True),
            (Role.ADMIN, Role.ADMIN, False),
            (Role.ADMIN, Role.SUPERUSER, False),
            (Role.SUPERUSER, Role.ADMIN, True),
            (Role.SUPERUSER, Role.SUPERUSER, True),
        ],
    )
    @pytest.mark.parametrize("act", [restore_as_admin, restore_as_staff, purge])
    async def test_decides_among_administrators(
        self, client: AsyncClient, act: Restore, caller: Role, of: Role, *, allowed: bool
    ) -> None:
        admin, archived = await make_signed_in(role=caller), await archive(await make_user(role=of))

        response = await act(client, archived.id, admin.headers)

        assert response.is_success == allowed
        if not allowed:
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")
            assert await DeletedUser.find({"_id": archived.id, "purge_started_at": None}).count() == 1
            assert await events("user:restored") + await events("user:purge_requested") == []

    @pytest.mark.parametrize(("of", "status"), [(Role.GUEST, 200), (Role.USER, 200), (Role.SUPPORT, 403)])
    async def test_decides_for_staff(self, client: AsyncClient, of: Role, status: int) -> None:
        staff = await make_signed_in(role=Role.SUPPORT, staff_level=3)
        archived = await archive(await make_user(role=of))

        assert (await restore_as_staff(client, archived.id, staff.headers)).status_code == status

    @pytest.mark.parametrize(("of", "status"), [(Role.SUPPORT, 200), (Role.ADMIN, 403), (Role.SUPERUSER, 403)])
    async def test_decides_for_service_keys(self, client: AsyncClient, of: Role, status: int) -> None:
        key, archived = await make_api_key("admin"), await archive(await make_user(role=of))

        assert (await restore_as_admin(client, archived.id, key.headers)).status_code == status

    async def test_of_a_key_is_never_that_of_a_superuser(self, client: AsyncClient) -> None:
        owner = await make_user(role=Role.SUPERUSER)
        key, archived = await make_api_key("admin", owner=owner), await archive(await make_user(role=Role.ADMIN))

        answers = [await act(client, archived.id, key.headers) for act in (restore_as_admin, purge)]

        assert [answer.status_code for answer in answers] == [403, 403]


class TestPurge:
    async def test_removes_the_account_with_what_it_owned_right_away(
        self, client: AsyncClient, admin: SignedInUser
    ) -> None:
        ada = await make_user()
        conversation = await make_conversation(ada)
        await make_messages(conversation, 3, by=ada)
        await make_api_key("read", owner=ada)
        await archive(ada)

        response = await purge(client, ada.id, admin.headers)

        assert (response.status_code, response.content) == (204, b"")
        await until_purged(ada.id)
        database = DeletedUser.get_pymongo_collection().database
        counts = [await database[name].count_documents({}) for name in ("conversations", "messages", "api_keys")]
        assert counts == [0, 0, 0]
        assert (await restore_as_admin(client, ada.id, admin.headers)).status_code == 404

    async def test_is_recorded_when_it_is_asked_for_and_when_it_is_done(
        self, client: AsyncClient, admin: SignedInUser
    ) -> None:
        ada = await archive(await make_user())

        await purge(client, ada.id, admin.headers)
        await until_purged(ada.id)

        (asked,), (done,) = await events("user:purge_requested"), await events("user:purged")
        assert (asked.actor.id, asked.target.id) == (admin.id, ada.id)
        assert (done.actor.name, done.target.id) == ("purge", ada.id)

    async def test_asked_for_twice_is_not_found_the_second_time(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await archive(await make_user())

        answers = await asyncio.gather(*(purge(client, ada.id, admin.headers) for _ in range(3)))

        assert sorted(answer.status_code for answer in answers) == [204, 404, 404]
        assert len(await events("user:purge_requested")) == 1

    async def test_and_a_restore_at_once_have_one_winner(self, client: AsyncClient, admin: SignedInUser) -> None:
        for _ in range(5):
            ada = await archive(await make_user())

            restored, purged = await asyncio.gather(
                restore_as_admin(client, ada.id, admin.headers), purge(client, ada.id, admin.headers)
            )

            assert (restored.status_code, purged.status_code) in {(200, 404), (404, 204)}
            if purged.status_code == 204:
                await until_purged(ada.id)
            assert (await User.get(ada.id) is not None) == (restored.status_code == 200)

    async def test_is_not_begun_when_it_can_not_be_recorded(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada = await archive(await make_user())

        async with no_event_can_be_written():
            response = await purge(client, ada.id, admin.headers)

        assert response.status_code == 500
        assert await DeletedUser.find({"_id": ada.id, "purge_started_at": None}).count() == 1

    async def test_leaves_who_is_not_due(self, client: AsyncClient, admin: SignedInUser) -> None:
        ada, ben = await archive(await make_user(), days_ago=29), await archive(await make_user())

        await purge(client, ben.id, admin.headers)
        await until_purged(ben.id)

        assert await DeletedUser.get(ada.id) is not None


class TestStart:
    async def test_purges_what_has_become_due(self, serve: Serve) -> None:
        async with serve():
            due, kept = await make_user(), await make_user()
            await make_conversation(due)
            await archive(due, days_ago=31)
            await archive(kept, days_ago=29)

        async with serve():
            await job_service.request("purge_deleted_users")  # as the first look does
            await until_purged(due.id)

            assert await DeletedUser.get(kept.id) is not None
            (event,) = await events("user:purged")
            assert (event.target.id, event.details) == (due.id, {"removed": {"conversations": 1}})

    async def test_without_retention_purges_what_was_deleted(self, serve: Serve) -> None:
        async with serve(deleted_retention_days=0) as client:
            ada = await make_signed_in()
            body = {"current_password": PASSWORD}
            gone = await client.request("DELETE", "/api/v1/users/me", headers=ada.headers, json=body)
            assert gone.status_code == 204

        async with serve(deleted_retention_days=0):
            await job_service.request("purge_deleted_users")
            await until_purged(ada.id)
