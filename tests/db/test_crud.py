from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import (
    ConflictError,
    EmailTakenError,
    InvalidCursorError,
    NotFoundError,
    PreconditionFailedError,
)
from app.core.scopes import Role
from app.crud import crud_api_key, crud_installation, crud_user
from app.models.api_key import ApiKey
from app.models.user import User
from tests.core.active import activate
from tests.db.mongomock import bind_in_memory
from tests.factories import make_api_key, make_user

EVERYONE: dict[str, Any] = {"q": None, "role": None, "is_active": None, "plan": None, "sort": "email"}
MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
async def _database_in_memory() -> None:
    activate()
    await bind_in_memory()


async def names_of_all_pages(limit: int, **filters: object) -> list[list[str | None]]:
    pages, cursor = [], None
    while True:
        page = await crud_user.page(**{**EVERYONE, **filters}, limit=limit, cursor=cursor)
        pages.append([user.username for user in page.rows])
        cursor = page.next_cursor
        if cursor is None:
            return pages


class TestFindUser:
    async def test_finds_it_by_id_email_and_name(self) -> None:
        ada = await make_user(email="ada@example.com", username="Ada")

        found = [
            await crud_user.find(ada.id),
            await crud_user.find_by_email_key("ada@example.com"),
            await crud_user.find_by_username_key("ada"),
        ]

        assert [user.id for user in found if user] == [ada.id] * 3

    async def test_finds_nothing_for_strangers(self) -> None:
        await make_user(email="ada@example.com", username="ada")

        assert await crud_user.find(ObjectId()) is None
        assert await crud_user.find_by_email_key("ben@example.com") is None
        assert await crud_user.find_by_username_key("Ada") is None

    async def test_requires_what_must_be_there(self) -> None:
        with pytest.raises(NotFoundError):
            await crud_user.require(ObjectId())
        with pytest.raises(NotFoundError):
            await crud_user.require_by_username_key("ada")

    async def test_tells_which_of_the_ids_exist(self) -> None:
        ada, ben = await make_user(), await make_user()

        assert await crud_user.existing([ada.id, ObjectId(), ben.id]) == {ada.id, ben.id}
        assert await crud_user.existing([]) == set()


class TestAddUser:
    async def test_refuses_an_address_that_is_taken(self) -> None:
        await make_user(email="ada@example.com")
        twin = User(email="Ada@example.com", email_key="ada@example.com", username_key="other", hashed_password="-")

        with pytest.raises(EmailTakenError):
            await crud_user.add(twin)

        assert await User.count() == 1


class TestPageOfUsers:
    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
    async def test_gives_every_user_once_in_order(self, limit: int) -> None:
        for name in ("dee", "ada", "eve", "cem", "ben"):
            await make_user(email=f"{name}@example.com", username=name)

        pages = await names_of_all_pages(limit)

        assert [name for page in pages for name in page] == ["ada", "ben", "cem", "dee", "eve"]
        assert len(pages) == -(-5 // limit)

    @pytest.mark.parametrize("limit", [1, 2, 3])
    @pytest.mark.parametrize(("sort", "order"), [("created_at", 1), ("-created_at", -1)])
    async def test_gives_users_of_one_moment_once(self, limit: int, sort: str, order: int) -> None:
        for name in ("ada", "ben", "cem", "dee"):
            await make_user(username=name, created_at=MOMENT)

        pages = await names_of_all_pages(limit, sort=sort)

        assert [name for page in pages for name in page] == ["ada", "ben", "cem", "dee"][::order]

    async def test_neither_repeats_nor_loses_any_when_others_come_and_go(self) -> None:
        for name in ("ben", "cem", "dee", "eve"):
            await make_user(email=f"{name}@example.com", username=name)
        first = await crud_user.page(**EVERYONE, limit=2, cursor=None)

        await make_user(email="ada@example.com", username="ada")
        await User.find_one({"username": "ben"}).delete()
        second = await crud_user.page(**EVERYONE, limit=2, cursor=first.next_cursor)

        assert [user.username for user in [*first.rows, *second.rows]] == ["ben", "cem", "dee", "eve"]

    @pytest.mark.parametrize(
        ("filters", "names"),
        [
            ({"role": Role.ADMIN}, ["ada"]),
            ({"is_active": False}, ["cem"]),
            ({"plan": "pro"}, ["cem"]),
            ({"role": Role.USER, "is_active": True}, ["ben"]),
            ({"q": "AD"}, ["ada"]),
            ({"q": "be"}, ["ben"]),
            ({"q": "x.y"}, []),
            ({"q": ".*"}, []),
            ({"q": "da"}, []),
        ],
    )
    async def test_is_filtered(self, filters: dict[str, object], names: list[str]) -> None:
        await make_user(email="ada@example.com", username="ada", role=Role.ADMIN)
        await make_user(email="x1y@example.com", username="ben")
        await make_user(email="cem@example.com", username="cem", is_active=False, plan="pro")

        assert await names_of_all_pages(10, **filters) == [names]

    async def test_refuses_the_cursor_of_another_filter(self) -> None:
        for _ in range(3):
            await make_user()
        page = await crud_user.page(**EVERYONE, limit=2, cursor=None)

        with pytest.raises(InvalidCursorError):
            await crud_user.page(**{**EVERYONE, "plan": "free"}, limit=2, cursor=page.next_cursor)


class TestChangeUser:
    async def test_counts_the_version_up(self) -> None:
        ada = await make_user()

        changed = await crud_user.change(ada.id, {"full_name": "Ada L."}, expected={}, versions=frozenset({1, 7}))

        assert (changed.full_name, changed.version) == ("Ada L.", 2)

    async def test_is_refused_when_the_version_has_moved_on(self) -> None:
        ada = await make_user(version=3)

        with pytest.raises(PreconditionFailedError):
            await crud_user.change(ada.id, {"full_name": "Ada L."}, expected={}, versions=frozenset({2}))

        assert (await crud_user.require(ada.id)).full_name is None

    async def test_is_refused_when_the_reason_for_it_has_gone(self) -> None:
        ada = await make_user(role=Role.ADMIN)

        with pytest.raises(ConflictError):
            await crud_user.change(ada.id, {"full_name": "Ada L."}, expected={"role": "user"})

        assert (await crud_user.require(ada.id)).version == 1

    async def test_is_refused_when_nobody_is_there(self) -> None:
        with pytest.raises(NotFoundError):
            await crud_user.change(ObjectId(), {"full_name": "Ada L."}, expected={}, versions=frozenset({1}))

    @pytest.mark.parametrize("meanwhile", [{"is_active": False}, {"hashed_password": "other"}])
    async def test_marks_no_login_that_is_no_longer_good(self, meanwhile: dict[str, object]) -> None:
        ada = await make_user()
        await crud_user.change(ada.id, meanwhile, expected={})

        assert await crud_user.mark_logged_in(ada.document, at=MOMENT, ip="192.0.2.1") is None
        assert (await crud_user.require(ada.id)).last_login_at is None

    async def test_renews_no_hash_that_was_changed_meanwhile(self) -> None:
        ada = await make_user()
        await crud_user.change(ada.id, {"hashed_password": "newer"}, expected={})

        await crud_user.renew_hash(ada.document, "old password, new cost")

        assert (await crud_user.require(ada.id)).hashed_password == "newer"

    async def test_gives_the_removed_user_as_it_was(self) -> None:
        ada = await make_user(username="ada")

        removed = await crud_user.remove(ada.id, expected={"role": "user"}, versions=None)

        assert removed["username"] == "ada"
        assert await crud_user.find(ada.id) is None


class TestApiKeys:
    async def test_are_found_by_the_id_in_their_text(self) -> None:
        key = await make_api_key()

        found = await crud_api_key.find_by_key_id(key.text.split("_")[1])

        assert found is not None
        assert found.id == key.document.id

    @pytest.mark.parametrize("limit", [1, 2, 5])
    async def test_are_listed_newest_first(self, limit: int) -> None:
        made = [(await make_api_key()).document.id for _ in range(5)]

        listed, cursor = [], None
        while True:
            page = await crud_api_key.page(owner_id=None, include_inactive=False, limit=limit, cursor=cursor)
            listed += [key.id for key in page.rows]
            cursor = page.next_cursor
            if cursor is None:
                break

        assert listed == made[::-1]

    @pytest.mark.parametrize(("include_inactive", "names"), [(False, ["on"]), (True, ["off", "on"])])
    async def test_are_listed_for_their_owner(self, names: list[str], *, include_inactive: bool) -> None:
        ada = await make_user()
        await make_api_key(owner=ada, name="on")
        await make_api_key(owner=ada, name="off", is_active=False)
        await make_api_key(owner=await make_user(), name="another's")
        await make_api_key(name="service")

        page = await crud_api_key.page(owner_id=ada.id, include_inactive=include_inactive, limit=10, cursor=None)

        assert [key.name for key in page.rows] == names

    async def test_are_out_of_reach_of_others(self) -> None:
        ada, ben = await make_user(), await make_user()
        key_id = (await make_api_key(owner=ada, name="phone")).document.id

        for act in (
            crud_api_key.require(key_id, owner_id=ben.id),
            crud_api_key.change(key_id, {"name": "mine"}, owner_id=ben.id),
            crud_api_key.remove(key_id, owner_id=ben.id),
        ):
            with pytest.raises(NotFoundError):
                await act

        assert (await crud_api_key.require(key_id, owner_id=ada.id)).name == "phone"

    async def test_end_with_their_user(self) -> None:
        ada = await make_user()
        for is_active in (True, True, False):
            await make_api_key(owner=ada, is_active=is_active)
        await make_api_key(name="service")

        assert await crud_api_key.deactivate_all(ada.id) == 2

        assert [key.name for key in await ApiKey.find({"is_active": True}).to_list()] == ["service"]

    async def test_are_counted_that_open_the_account(self) -> None:
        ada, ben = await make_user(), await make_user()
        hour = timedelta(hours=1)
        for more in ({}, {"expires_at": utc_now() + hour}, {"expires_at": utc_now() - hour}, {"is_active": False}):
            await make_api_key(owner=ada, **more)
        await make_api_key(owner=ben)
        await make_api_key(name="service")

        assert await crud_api_key.count_usable(ada.id) == 2


async def test_fact_is_recorded_once() -> None:
    outcomes = [await crud_installation.mark_once("bootstrap") for _ in range(3)]

    assert outcomes == [True, False, False]
    assert await crud_installation.mark_once("another")
