"""Accounts: made, found, changed by their owners and deleted."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx import AsyncClient, Response

from app.core import live_cache
from app.core.clock import utc_now
from app.core.plans import Plan
from app.core.scopes import Role
from app.models.audit_event import AuditEvent
from app.models.deleted_user import DeletedUser
from app.models.session import Session
from app.models.user import User
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import SignedInUser, StoredUser, make_api_key, make_signed_in, make_user, sign_in

USERS = "/api/v1/users"
LOGIN = "/api/v1/auth/login"
PASSWORD = "turnip-Lantern-42-orbit"
NEW_PASSWORD = "walnut-Bicycle-77-comet"
REGISTER = pytest.mark.parametrize("path", [USERS, "/api/v1/auth/register"])
# By which one reaches one's own account, and how one changes it.
OWN_PATH = pytest.mark.parametrize("own", ["me", "{id}"])
OWN_WRITE = pytest.mark.parametrize("method", ["PUT", "PATCH"])
DAY = datetime(2026, 3, 1, tzinfo=UTC)


def refusal(response: Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["code"] if response.is_error else None


def account(**more: object) -> dict[str, object]:
    return {"email": "ada@example.com", "password": PASSWORD, **more}


def names_in(response: Response) -> list[str | None]:
    return [row["username"] for row in response.json()]


async def log_in(client: AsyncClient, email: str, password: str) -> Response:
    return await client.post(LOGIN, json={"email": email, "password": password})


async def stored(user: StoredUser) -> User:
    found = await User.find_one({"_id": user.id})
    assert found is not None
    return found


async def events(action: str) -> list[AuditEvent]:
    return await AuditEvent.find({"action": action}).to_list()


@pytest.fixture
async def warm_client(client: AsyncClient) -> AsyncClient:
    """The application once it believes what it remembers of credentials, so that forgetting counts."""
    async with asyncio.timeout(5):
        while live_cache._State.heard_until < time.monotonic():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    return client


class TestRegister:
    @REGISTER
    async def test_makes_an_account_that_can_sign_in(self, client: AsyncClient, path: str) -> None:
        before = utc_now()

        response = await client.post(path, json=account(username="Ada", full_name="Ada Lovelace"))

        shown = response.json()
        assert response.status_code == 201
        assert before <= datetime.fromisoformat(shown.pop("created_at")) <= utc_now()
        assert before <= datetime.fromisoformat(shown.pop("updated_at")) <= utc_now()
        assert shown == {
            "id": str((await User.find_one()).id),  # type: ignore[union-attr]
            "email": "ada@example.com",
            "username": "Ada",
            "full_name": "Ada Lovelace",
            "role": "user",
            "staff_level": None,
            "is_active": True,
            "is_superuser": False,
            "is_verified": False,
            "mfa_enabled": False,
            "plan": "free",
            "last_login_at": None,
        }
        assert (await log_in(client, "ada@example.com", PASSWORD)).status_code == 200

    async def test_needs_no_names(self, client: AsyncClient) -> None:
        first = await client.post(USERS, json=account())
        second = await client.post(USERS, json=account(email="bob@example.com"))

        assert (first.status_code, second.status_code) == (201, 201)
        assert (first.json()["username"], first.json()["full_name"]) == (None, None)

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("Ada@EXAMPLE.Com", "Ada@example.com"),
            ("Zoe\u0308@example.com", "Zo\u00eb@example.com"),
            ("ada@B\u00dcCHER.example", "ada@b\u00fccher.example"),
        ],
        ids=["domain in capitals", "decomposed letter", "international domain"],
    )
    async def test_normalises_the_email_address(self, client: AsyncClient, given: str, kept: str) -> None:
        response = await client.post(USERS, json=account(email=given))

        assert response.status_code == 201
        assert response.json()["email"] == kept

    @pytest.mark.parametrize(
        "email",
        [
            "Zo\u00eb@b\u00fccher.example",
            "zo\u00cb@b\u00fccher.example",
            "Zoe\u0308@b\u00fccher.example",
            "Zo\u00eb@B\u00dcCHER.Example",
            "Zo\u00eb@xn--bcher-kva.example",
        ],
        ids=["same", "other case", "decomposed", "domain in capitals", "encoded domain"],
    )
    async def test_refuses_an_email_address_that_is_taken(self, client: AsyncClient, email: str) -> None:
        await client.post(USERS, json=account(email="Zo\u00eb@b\u00fccher.example"))

        response = await client.post("/api/v1/auth/register", json=account(email=email))

        assert refusal(response) == (409, "email_taken")
        assert await User.count() == 1

    @pytest.mark.parametrize("username", ["Ada.L", "aDA.l"])
    async def test_refuses_a_username_that_is_taken(self, client: AsyncClient, username: str) -> None:
        await make_user(username="Ada.L")

        response = await client.post(USERS, json=account(username=username))

        assert refusal(response) == (409, "username_taken")
        assert await User.count() == 1

    @pytest.mark.parametrize(
        "password",
        ["", "hV7#qLp2x", "qwertyuiop", "password1234", "aaaaaaaaaaaaaaaa", "1234567890987654321", "kT9$" * 256 + "!"],
        ids=["empty", "nine characters", "keyboard row", "common", "one letter", "digits", "1025 characters"],
    )
    async def test_refuses_a_weak_password_and_says_what_to_do(self, client: AsyncClient, password: str) -> None:
        response = await client.post(USERS, json=account(password=password))

        (error,) = response.json()["errors"]
        assert refusal(response) == (422, "weak_password")
        assert error["loc"] == ["body", "password"]
        assert error["msg"]
        assert not password or password not in response.text
        assert await User.count() == 0

    @pytest.mark.parametrize(
        "password",
        [
            "turnip-ada.lovelace@example.com-42",
            "turnip-ADA.LOVELACE-orbit-42",
            "turnip-Countess7-orbit-42",
        ],
        ids=["e-mail address", "its local part", "username"],
    )
    async def test_refuses_a_password_that_contains_a_name(self, client: AsyncClient, password: str) -> None:
        body = {"email": "ada.lovelace@example.com", "username": "countess7", "password": password}
        response = await client.post(USERS, json=body)

        assert refusal(response) == (422, "weak_password")

    async def test_refuses_a_password_that_is_the_name_and_little_else(self, client: AsyncClient) -> None:
        response = await client.post(USERS, json=account(full_name="Ada Vandersteen", password="Vandersteen1815"))

        assert refusal(response) == (422, "weak_password")

    async def test_refuses_a_password_that_contains_the_shortest_username(self, client: AsyncClient) -> None:
        response = await client.post(USERS, json=account(username="zoe", password="turnip-zoe-Lantern-42-orbit"))

        assert refusal(response) == (422, "weak_password")

    @pytest.mark.parametrize(
        "password",
        ["hV7#qLp2xZ", "kT9$" * 8 + "correct horse" * 76 + "battery", "tulipán ñandú 木漏れ日", "hV7#qLp2xZ\0\t"],
        ids=["ten characters", "1027 less 0", "other scripts", "control characters"],
    )
    async def test_takes_a_strong_password_of_any_kind(self, client: AsyncClient, password: str) -> None:
        response = await client.post(USERS, json=account(password=password[:1024]))

        assert response.status_code == 201
        assert (await log_in(client, "ada@example.com", password[:1024])).status_code == 200

    @pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f600"])
    async def test_ignores_nothing_past_72_bytes(self, client: AsyncClient, letter: str) -> None:
        beginning = "turnip-Lantern-42-orbit-" + letter * 72
        await client.post(USERS, json=account(password=f"{beginning}-this"))

        assert (await log_in(client, "ada@example.com", f"{beginning}-this")).status_code == 200
        assert refusal(await log_in(client, "ada@example.com", f"{beginning}-that")) == (401, "invalid_credentials")
        assert refusal(await log_in(client, "ada@example.com", beginning)) == (401, "invalid_credentials")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"is_active": True},
            {"is_superuser": True},
            {"email": None},
            {"email": "zebra"},
            {"email": "zebra@"},
            {"email": "zebra@localhost"},
            {"email": "zebra@example.com\0"},
            {"email": "zebra" * 70 + "@example.com"},
            {"email": ["zebra@example.com"]},
            {"username": "ze"},
            {"username": "z" * 33},
            {"username": "ze bra"},
            {"username": "zebra@example.com"},
            {"username": "zebra\n"},
            {"username": "z\u00ebbra"},
            {"full_name": ""},
            {"full_name": "zebra\0"},
            {"full_name": "z" * 201},
            {"password": None},
            {"password": 1234567890},
            {"password": {"$ne": "zebra"}},
        ],
    )
    async def test_refuses_a_malformed_body_without_repeating_it(
        self, client: AsyncClient, wrong: dict[str, object]
    ) -> None:
        response = await client.post(USERS, json=account(**wrong))

        assert refusal(response) == (422, "validation_error")
        assert "zebra" not in response.text
        assert PASSWORD not in response.text
        assert await User.count() == 0

    @REGISTER
    async def test_lets_nobody_choose_a_role(self, client: AsyncClient, path: str) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)

        for headers in ({}, root.headers):
            response = await client.post(path, json=account(role="admin"), headers=headers)
            assert refusal(response) == (422, "validation_error")

        assert await User.count() == 1

    @pytest.mark.parametrize("missing", ["email", "password"])
    async def test_names_what_is_missing(self, client: AsyncClient, missing: str) -> None:
        body = account()
        del body[missing]

        response = await client.post(USERS, json=body)

        assert refusal(response) == (422, "validation_error")
        assert [error["loc"] for error in response.json()["errors"]] == [["body", missing]]

    async def test_refuses_a_credential_that_is_not_good(self, client: AsyncClient) -> None:
        response = await client.post(USERS, json=account(), headers={"Authorization": "Bearer zebra"})

        assert refusal(response) == (401, "invalid_token")
        assert await User.count() == 0

    @pytest.mark.usefixtures("patience")
    async def test_makes_one_account_when_fifty_ask_for_one_email_address_at_once(self, client: AsyncClient) -> None:
        bodies = [account(email="aDa@example.com" if at % 2 else "Ada@example.com") for at in range(50)]

        responses = await asyncio.gather(*[client.post(USERS, json=body) for body in bodies])

        refused = [refusal(response) for response in responses if response.status_code != 201]
        assert refused == [(409, "email_taken")] * 49
        assert await User.count() == 1
        assert len(await events("user:created")) == 1

    @pytest.mark.usefixtures("patience")
    async def test_makes_one_account_when_many_ask_for_one_username_at_once(self, client: AsyncClient) -> None:
        bodies = [account(email=f"ada{at}@example.com", username="ada") for at in range(10)]

        responses = await asyncio.gather(*[client.post(USERS, json=body) for body in bodies])

        refused = [refusal(response) for response in responses if response.status_code != 201]
        assert refused == [(409, "username_taken")] * 9
        assert await User.count() == 1

    async def test_is_recorded(self, client: AsyncClient) -> None:
        response = await client.post(USERS, json=account())

        (event,) = await events("user:created")
        assert (event.actor.kind, event.actor.id, event.outcome) == ("anonymous", None, "success")
        assert (event.target.kind, str(event.target.id)) == ("user", response.json()["id"])
        assert (event.ip, event.request_id) == ("127.0.0.1", response.headers["X-Request-ID"])
        assert PASSWORD not in event.model_dump_json()


class TestClosedRegistration:
    @REGISTER
    async def test_turns_strangers_away(self, serve: Serve, path: str) -> None:
        async with serve(registration="closed") as client:
            response = await client.post(path, json=account())

            assert refusal(response) == (403, "registration_closed")
            assert await User.count() == 0

    @pytest.mark.parametrize("role", [Role.GUEST, Role.USER, Role.SUPPORT])
    async def test_turns_users_away_who_are_no_administrators(self, serve: Serve, role: Role) -> None:
        async with serve(registration="closed") as client:
            bob = await make_signed_in(role=role)

            response = await client.post(USERS, json=account(), headers=bob.headers)

            assert refusal(response) == (403, "registration_closed")

    @pytest.mark.parametrize("scope", ["users:write", "write", "users:*"])
    async def test_turns_keys_away_that_lack_the_admin_scope(self, serve: Serve, scope: str) -> None:
        async with serve(registration="closed") as client:
            key = await make_api_key(scope)

            response = await client.post(USERS, json=account(), headers=key.headers)

            assert refusal(response) == (403, "registration_closed")

    @REGISTER
    @pytest.mark.parametrize("role", [Role.ADMIN, Role.SUPERUSER])
    async def test_lets_administrators_make_plain_accounts(self, serve: Serve, path: str, role: Role) -> None:
        async with serve(registration="closed") as client:
            admin = await make_signed_in(role=role)

            response = await client.post(path, json=account(), headers=admin.headers)

            (event,) = await events("user:created")
            assert (response.status_code, response.json()["role"]) == (201, "user")
            assert event.actor.id == admin.id

    async def test_lets_a_key_with_the_admin_scope_make_accounts(self, serve: Serve) -> None:
        async with serve(registration="closed") as client:
            key = await make_api_key("admin")

            response = await client.post(USERS, json=account(), headers=key.headers)

            assert response.status_code == 201


class TestCard:
    @pytest.mark.parametrize("username", ["Ada.L", "aDA.l"])
    async def test_shows_anyone_four_properties(self, client: AsyncClient, username: str) -> None:
        ada = await make_user(username="Ada.L", full_name="Ada Lovelace", created_at=DAY)

        response = await client.get(f"{USERS}/username/{username}")

        assert response.status_code == 200
        assert response.json() == {
            "id": str(ada.id),
            "username": "Ada.L",
            "full_name": "Ada Lovelace",
            "created_at": "2026-03-01T00:00:00Z",
        }

    @pytest.mark.parametrize("username", ["bob", "ad", "ada@example.com", "%00", "%F0%9F%98%80", "a" * 500])
    async def test_does_not_find_who_is_not_there(self, client: AsyncClient, username: str) -> None:
        await make_user(email="ada@example.com", username="ada")

        assert refusal(await client.get(f"{USERS}/username/{username}")) == (404, "not_found")


async def make_people() -> None:
    """Four users, each a day younger than the one before."""
    people: list[dict[str, Any]] = [
        {"email": "dora@example.com", "username": "Ada.L", "full_name": "Zo\u00eb K\u0151", "role": Role.ADMIN},
        {"email": "Cleo@example.com", "username": "bob", "full_name": "Ada Byron", "plan": Plan.PRO},
        {"email": "adam@example.org", "username": "cy", "is_active": False},
        {"email": "bert@example.com", "username": "adxl", "plan": Plan.PRO, "is_active": False},
    ]
    for age, person in enumerate(people):
        full_name = person.get("full_name")
        key = None if full_name is None else full_name.casefold()
        await make_user(**person, full_name_key=key, created_at=DAY + timedelta(days=age))


ALL_PEOPLE = ["adxl", "cy", "bob", "Ada.L"]


class TestList:
    @pytest.mark.parametrize(
        ("sort", "names"),
        [
            (None, ALL_PEOPLE),
            ("-created_at", ALL_PEOPLE),
            ("created_at", ["Ada.L", "bob", "cy", "adxl"]),
            ("email", ["cy", "adxl", "bob", "Ada.L"]),
        ],
    )
    async def test_is_sorted_as_asked(self, client: AsyncClient, sort: str | None, names: list[str]) -> None:
        key = await make_api_key("users:read")
        await make_people()

        response = await client.get(USERS, params={"sort": sort} if sort else {}, headers=key.headers)

        assert response.status_code == 200
        assert names_in(response) == names

    @pytest.mark.parametrize(
        ("filters", "names"),
        [
            ({"q": "adam@"}, ["cy"]),
            ({"q": "CLEO@Ex"}, ["bob"]),
            ({"q": "ad"}, ALL_PEOPLE),
            ({"q": "ADA"}, ["cy", "bob", "Ada.L"]),
            ({"q": "ada.l"}, ["Ada.L"]),
            ({"q": "zo\u00cb"}, ["Ada.L"]),
            ({"q": "Zoe\u0308"}, ["Ada.L"]),
            ({"q": "byron"}, []),
            ({"q": "a.x"}, []),
            ({"q": ".*"}, []),
            ({"q": "ad("}, []),
            ({"q": "^ada"}, []),
            ({"role": "admin"}, ["Ada.L"]),
            ({"role": "user"}, ["adxl", "cy", "bob"]),
            ({"role": "superuser"}, []),
            ({"is_active": "false"}, ["adxl", "cy"]),
            ({"is_active": "true"}, ["bob", "Ada.L"]),
            ({"plan": "pro"}, ["adxl", "bob"]),
            ({"plan": "enterprise"}, []),
            ({"plan": "pro", "is_active": "true"}, ["bob"]),
            ({"q": "ada", "role": "user", "sort": "created_at"}, ["bob", "cy"]),
        ],
    )
    async def test_is_filtered_as_asked(self, client: AsyncClient, filters: dict[str, str], names: list[str]) -> None:
        key = await make_api_key("users:read")
        await make_people()

        response = await client.get(USERS, params=filters, headers=key.headers)

        assert response.status_code == 200
        assert names_in(response) == names

    async def test_shows_full_profiles(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)

        (row,) = (await client.get(USERS, headers=admin.headers)).json()

        assert row == (await client.get(f"{USERS}/{admin.id}", headers=admin.headers)).json()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"limit": "0"},
            {"limit": "201"},
            {"limit": "-1"},
            {"limit": "all"},
            {"sort": "hashed_password"},
            {"sort": "-email"},
            {"role": "king"},
            {"plan": "gold"},
            {"is_active": "perhaps"},
        ],
    )
    async def test_refuses_what_it_does_not_know(self, client: AsyncClient, wrong: dict[str, str]) -> None:
        key = await make_api_key("users:read")

        response = await client.get(USERS, params=wrong, headers=key.headers)

        assert refusal(response) == (422, "validation_error")
        assert [error["loc"] for error in response.json()["errors"]] == [["query", *wrong]]

    @pytest.mark.parametrize("q", ["\0", "ada\0"])
    async def test_survives_a_search_for_a_nul_character(self, client: AsyncClient, q: str) -> None:
        key = await make_api_key("users:read")

        response = await client.get(USERS, params={"q": q}, headers=key.headers)

        assert refusal(response) == (422, "validation_error")


async def pages(client: AsyncClient, query: str, headers: dict[str, str]) -> AsyncIterator[list[str]]:
    """The e-mail addresses of each page, by following the links."""
    url: str | None = f"{USERS}?{query}"
    while url:
        response = await client.get(url, headers=headers)
        assert response.status_code == 200
        yield [row["email"] for row in response.json()]
        url = response.links.get("next", {}).get("url")


async def make_users_at(*moments: datetime) -> list[str]:
    """Their addresses in the order given, which is not the order of the alphabet."""
    made = [await make_user(created_at=moment) for moment in moments]
    return [user.document.email for user in made]


async def cursor_of(client: AsyncClient, url: str, headers: dict[str, str]) -> str:
    response = await client.get(url, headers=headers)
    return response.links["next"]["url"].partition("cursor=")[2].partition("&")[0]


class TestPaging:
    @pytest.mark.parametrize("sort", ["created_at", "-created_at", "email"])
    async def test_shows_every_row_once_even_when_many_are_of_one_moment(self, client: AsyncClient, sort: str) -> None:
        key = await make_api_key("users:read")
        emails = await make_users_at(*[DAY + timedelta(seconds=at // 5) for at in range(13)])

        found = [page async for page in pages(client, f"limit=4&sort={sort}", key.headers)]

        rows = [email for page in found for email in page]
        assert [len(page) for page in found] == [4, 4, 4, 1]
        assert sorted(rows) == sorted(emails)
        whole = await client.get(USERS, params={"sort": sort}, headers=key.headers)
        assert rows == [row["email"] for row in whole.json()]

    @pytest.mark.parametrize("sort", ["created_at", "-created_at", "email"])
    async def test_neither_repeats_nor_loses_rows_when_others_are_added_meanwhile(
        self, client: AsyncClient, sort: str
    ) -> None:
        key = await make_api_key("users:read")
        emails = await make_users_at(*[DAY + timedelta(seconds=at) for at in range(9)])

        rows = []
        async for page in pages(client, f"limit=2&sort={sort}", key.headers):
            rows += page
            await make_users_at(DAY - timedelta(days=len(rows)), DAY + timedelta(days=len(rows)))
            assert len(rows) < 100

        assert len(rows) == len(set(rows))
        assert set(emails) <= set(rows)

    async def test_keeps_the_filter_of_the_first_page(self, client: AsyncClient) -> None:
        key = await make_api_key("users:read")
        await make_users_at(*[DAY] * 5)
        wanted = [await make_user(role=Role.SUPPORT, email=f"sam{at}@example.com") for at in range(5)]

        query = "role=support&q=SAM&limit=2"
        rows = [email async for page in pages(client, query, key.headers) for email in page]

        assert sorted(rows) == sorted(user.document.email for user in wanted)

    async def test_gives_no_link_on_the_last_page(self, client: AsyncClient) -> None:
        key = await make_api_key("users:read")
        await make_users_at(DAY, DAY)

        full = await client.get(f"{USERS}?limit=2", headers=key.headers)
        cut = await client.get(f"{USERS}?limit=1", headers=key.headers)

        assert (len(full.json()), "link" in full.headers) == (2, False)
        assert (len(cut.json()), "link" in cut.headers) == (1, True)

    @pytest.mark.parametrize("limit", [1, 200])
    async def test_takes_a_limit_at_the_bound(self, client: AsyncClient, limit: int) -> None:
        key = await make_api_key("users:read")
        await make_users_at(DAY, DAY, DAY)

        response = await client.get(f"{USERS}?limit={limit}", headers=key.headers)

        assert response.status_code == 200
        assert len(response.json()) == min(limit, 3)

    async def test_shows_fifty_rows_unless_asked_otherwise(self, client: AsyncClient) -> None:
        key = await make_api_key("users:read")
        await User.insert_many(
            [User(email=f"{at}@example.com", email_key=f"{at}@example.com", hashed_password="-") for at in range(51)]
        )

        assert len((await client.get(USERS, headers=key.headers)).json()) == 50

    @pytest.mark.parametrize("cursor", ["zebra", "%00", "=", "\u00e9", "A" * 64])
    async def test_refuses_what_is_no_cursor(self, client: AsyncClient, cursor: str) -> None:
        key = await make_api_key("users:read")

        response = await client.get(f"{USERS}?cursor={cursor}", headers=key.headers)

        assert refusal(response) == (400, "invalid_cursor")

    @pytest.mark.parametrize(
        "tamper",
        [
            lambda cursor: cursor[:-4],
            lambda cursor: cursor + "AAAA",
            lambda cursor: ("B" if cursor[0] == "A" else "A") + cursor[1:],
            lambda cursor: cursor[:40] + ("B" if cursor[40] == "A" else "A") + cursor[41:],
            lambda cursor: cursor[::-1],
        ],
    )
    async def test_refuses_a_cursor_that_was_tampered_with(
        self, client: AsyncClient, tamper: Callable[[str], str]
    ) -> None:
        key = await make_api_key("users:read")
        await make_users_at(DAY, DAY)
        cursor = await cursor_of(client, f"{USERS}?limit=1", key.headers)

        response = await client.get(f"{USERS}?limit=1&cursor={tamper(cursor)}", headers=key.headers)

        assert refusal(response) == (400, "invalid_cursor")

    @pytest.mark.parametrize(
        ("made_by", "used_by"),
        [
            (f"{USERS}?limit=1", f"{USERS}?sort=email"),
            (f"{USERS}?limit=1", f"{USERS}?sort=created_at"),
            (f"{USERS}?limit=1", f"{USERS}?role=user"),
            (f"{USERS}?limit=1&is_active=true", f"{USERS}?is_active=false"),
            (f"{USERS}?limit=1&sort=email", f"{USERS}?sort=email&q=a"),
            (f"{USERS}?limit=1", "/api/v1/api-keys?limit=1"),
            ("/api/v1/api-keys?limit=1&include_inactive=true", f"{USERS}?limit=1"),
        ],
    )
    async def test_refuses_the_cursor_of_another_list(self, client: AsyncClient, made_by: str, used_by: str) -> None:
        key = await make_api_key("admin")
        await make_api_key("admin")
        await make_users_at(DAY, DAY)
        cursor = await cursor_of(client, made_by, key.headers)

        response = await client.get(f"{used_by}&cursor={cursor}", headers=key.headers)

        assert refusal(response) == (400, "invalid_cursor")

    async def test_lets_the_limit_change_between_pages(self, client: AsyncClient) -> None:
        key = await make_api_key("users:read")
        await make_users_at(DAY, DAY, DAY)
        cursor = await cursor_of(client, f"{USERS}?limit=1", key.headers)

        response = await client.get(f"{USERS}?limit=2&cursor={cursor}", headers=key.headers)

        assert (response.status_code, len(response.json())) == (200, 2)


def url_of(user: StoredUser, own: str) -> str:
    return f"{USERS}/{own.format(id=user.id)}"


async def show(client: AsyncClient, user: SignedInUser) -> dict[str, Any]:
    response = await client.get(f"{USERS}/me", headers=user.headers)
    assert response.status_code == 200
    shown: dict[str, Any] = response.json()
    return shown


class TestViewOneself:
    @OWN_PATH
    async def test_shows_the_full_profile(self, client: AsyncClient, own: str) -> None:
        ada = await make_signed_in(email="ada@example.com", username="ada", full_name="Ada", created_at=DAY)

        response = await client.get(url_of(ada, own), headers=ada.headers)

        assert response.status_code == 200
        assert response.json() == {
            "id": str(ada.id),
            "email": "ada@example.com",
            "username": "ada",
            "full_name": "Ada",
            "role": "user",
            "staff_level": None,
            "is_active": True,
            "is_superuser": False,
            "is_verified": False,
            "mfa_enabled": False,
            "plan": "free",
            "created_at": "2026-03-01T00:00:00Z",
            "updated_at": response.json()["updated_at"],
            "last_login_at": None,
        }

    async def test_says_who_is_a_superuser(self, client: AsyncClient) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)

        assert (await show(client, root))["is_superuser"] is True


class TestChangeOneself:
    @OWN_PATH
    @OWN_WRITE
    async def test_changes_what_is_named_and_nothing_else(self, client: AsyncClient, own: str, method: str) -> None:
        ada = await make_signed_in(username="ada")
        before = await show(client, ada)

        response = await client.request(method, url_of(ada, own), json={"full_name": "Ada L"}, headers=ada.headers)

        after = await show(client, ada)
        assert response.status_code == 200
        assert response.json() == after
        assert after == {**before, "full_name": "Ada L", "updated_at": after["updated_at"]}
        assert after["updated_at"] > before["updated_at"]

    @OWN_PATH
    async def test_shows_a_new_username_to_everybody_at_once(self, warm_client: AsyncClient, own: str) -> None:
        ada = await make_signed_in(username="ada")
        await warm_client.get("/api/v1/auth/me", headers=ada.headers)

        await warm_client.patch(url_of(ada, own), json={"username": "Countess"}, headers=ada.headers)

        assert (await warm_client.get("/api/v1/auth/me", headers=ada.headers)).json()["name"] == "Countess"
        assert (await warm_client.get(f"{USERS}/username/countess")).json()["id"] == str(ada.id)
        assert refusal(await warm_client.get(f"{USERS}/username/ada")) == (404, "not_found")

    async def test_frees_a_username_that_is_given_up(self, client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada", full_name="Ada")

        body = {"username": None, "full_name": None}
        response = await client.patch(f"{USERS}/me", json=body, headers=ada.headers)

        assert (response.json()["username"], response.json()["full_name"]) == (None, None)
        assert (await client.post(USERS, json=account(username="ADA"))).status_code == 201

    async def test_finds_a_new_name_in_the_list(self, client: AsyncClient) -> None:
        ada, key = await make_signed_in(username="ada"), await make_api_key("users:read")

        await client.patch(f"{USERS}/me", json={"full_name": "Zo\u00eb"}, headers=ada.headers)

        assert names_in(await client.get(f"{USERS}?q=ZO\u00cb", headers=key.headers)) == ["ada"]

    @OWN_PATH
    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ({"email": "BOB@example.com", "current_password": PASSWORD}, "email_taken"),
            ({"username": "BOB"}, "username_taken"),
        ],
    )
    async def test_refuses_names_that_are_taken(
        self, client: AsyncClient, own: str, body: dict[str, str], code: str
    ) -> None:
        ada = await make_signed_in(password=PASSWORD)
        await make_user(email="bob@example.com", username="bob")
        before = await show(client, ada)

        response = await client.patch(url_of(ada, own), json=body, headers=ada.headers)

        assert refusal(response) == (409, code)
        assert await show(client, ada) == before

    @pytest.mark.parametrize("body", [{"username": "ADA"}, {"email": "ADA@example.com", "current_password": PASSWORD}])
    async def test_lets_the_case_of_ones_own_names_change(self, client: AsyncClient, body: dict[str, str]) -> None:
        ada = await make_signed_in(email="ada@example.com", username="ada", password=PASSWORD)

        response = await client.patch(f"{USERS}/me", json=body, headers=ada.headers)

        assert response.status_code == 200
        assert response.json().items() >= {name: body[name] for name in body if name != "current_password"}.items()

    @OWN_PATH
    @pytest.mark.parametrize(
        "wrong",
        [
            {"email": None},
            {"password": None},
            {"email": "zebra"},
            {"username": "z"},
            {"full_name": ""},
            {"nickname": "zebra"},
            {"plan": "pro"},
            {"is_verified": True},
            {"is_superuser": True},
            {"staff_level": 3},
            {"created_at": "2026-01-01T00:00:00Z"},
        ],
    )
    async def test_refuses_a_malformed_body_without_repeating_it(
        self, client: AsyncClient, own: str, wrong: dict[str, object]
    ) -> None:
        ada = await make_signed_in()
        before = await show(client, ada)

        body = {**wrong, "current_password": ada.password}
        response = await client.patch(url_of(ada, own), json=body, headers=ada.headers)

        assert refusal(response) == (422, "validation_error")
        assert "zebra" not in response.text
        assert ada.password not in response.text
        assert await show(client, ada) == before

    async def test_knows_no_role_and_no_activity_of_ones_own(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        for body in ({"role": "user"}, {"is_active": True}):
            response = await client.patch(f"{USERS}/me", json=body, headers=ada.headers)
            assert refusal(response) == (422, "validation_error")

    @OWN_PATH
    @OWN_WRITE
    @pytest.mark.parametrize("role", [Role.USER, Role.SUPERUSER])
    @pytest.mark.parametrize("change", [{"email": "new@example.com"}, {"password": NEW_PASSWORD}], ids=["email", "pw"])
    @pytest.mark.parametrize("proof", [{}, {"current_password": "a wrong password"}], ids=["no proof", "wrong proof"])
    async def test_needs_the_current_password_for_a_new_email_address_or_password(
        self,
        client: AsyncClient,
        own: str,
        method: str,
        role: Role,
        change: dict[str, str],
        proof: dict[str, str],
    ) -> None:
        ada = await make_signed_in(role=role)

        response = await client.request(method, url_of(ada, own), json={**change, **proof}, headers=ada.headers)

        assert refusal(response) == (401, "invalid_credentials")
        assert (await log_in(client, ada.document.email, ada.password)).status_code == 200

    @OWN_PATH
    @pytest.mark.parametrize("change", [{"email": "new@example.com"}, {"password": NEW_PASSWORD}], ids=["email", "pw"])
    async def test_needs_the_current_password_by_a_personal_key_too(
        self, client: AsyncClient, own: str, change: dict[str, str]
    ) -> None:
        ada = await make_user()
        key = await make_api_key("users:write", owner=ada)

        refused = await client.patch(url_of(ada, own), json=change, headers=key.headers)
        body = {**change, "current_password": ada.password}
        allowed = await client.patch(url_of(ada, own), json=body, headers=key.headers)

        assert refusal(refused) == (401, "invalid_credentials")
        assert allowed.status_code == 200

    @OWN_PATH
    async def test_makes_a_new_email_address_unverified(self, client: AsyncClient, own: str) -> None:
        ada = await make_signed_in(email="ada@example.com", is_verified=True)

        body = {"email": "Countess@EXAMPLE.com", "current_password": ada.password}
        response = await client.patch(url_of(ada, own), json=body, headers=ada.headers)

        assert (response.json()["email"], response.json()["is_verified"]) == ("Countess@example.com", False)
        assert (await log_in(client, "countess@example.com", ada.password)).status_code == 200
        assert refusal(await log_in(client, "ada@example.com", ada.password)) == (401, "invalid_credentials")

    async def test_leaves_an_email_address_verified_that_does_not_change(self, client: AsyncClient) -> None:
        ada = await make_signed_in(email="ada@example.com", is_verified=True)

        body = {"email": "ada@example.com", "full_name": "Ada", "current_password": ada.password}
        response = await client.patch(f"{USERS}/me", json=body, headers=ada.headers)

        assert (response.status_code, response.json()["is_verified"]) == (200, True)

    @OWN_PATH
    async def test_ends_the_other_sessions_with_a_new_password_but_not_the_one_in_use(
        self, warm_client: AsyncClient, own: str
    ) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        elsewhere = await sign_in(ada)
        await show(warm_client, elsewhere)

        body = {"password": NEW_PASSWORD, "current_password": ada.password}
        response = await warm_client.patch(url_of(ada, own), json=body, headers=ada.headers)

        assert response.status_code == 200
        assert refusal(await warm_client.get(f"{USERS}/me", headers=elsewhere.headers)) == (401, "token_revoked")
        assert await show(warm_client, ada) == response.json()
        assert await Session.count() == 2
        assert (await warm_client.get(f"{USERS}/me", headers=bob.headers)).status_code == 200

    async def test_lets_only_the_new_password_in(self, client: AsyncClient) -> None:
        ada = await make_signed_in(email="ada@example.com")

        body = {"password": NEW_PASSWORD, "current_password": ada.password}
        await client.patch(f"{USERS}/me", json=body, headers=ada.headers)

        assert (await log_in(client, "ada@example.com", NEW_PASSWORD)).status_code == 200
        assert refusal(await log_in(client, "ada@example.com", ada.password)) == (401, "invalid_credentials")

    async def test_ends_all_sessions_when_a_personal_key_changes_the_password(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("users:write", owner=ada)
        await show(warm_client, ada)

        body = {"password": NEW_PASSWORD, "current_password": ada.password}
        await warm_client.patch(f"{USERS}/me", json=body, headers=key.headers)

        assert refusal(await warm_client.get(f"{USERS}/me", headers=ada.headers)) == (401, "token_revoked")

    @pytest.mark.parametrize("password", ["turnip\tLantern-42-orbit", "turnip\0Lantern-42-orbit", "x" * 1020 + "hV7#"])
    async def test_takes_any_password_that_can_be_had_as_the_current_one(
        self, client: AsyncClient, password: str
    ) -> None:
        ada = await make_signed_in(password=password)

        body = {"email": "new@example.com", "current_password": password}
        response = await client.patch(f"{USERS}/me", json=body, headers=ada.headers)

        assert response.status_code == 200

    @OWN_PATH
    @pytest.mark.parametrize(
        "body",
        [
            {"password": "short"},
            {"password": "password1234"},
            {"password": "turnip-countess7-orbit"},
            {"password": "turnip-new.address-orbit", "email": "new.address@example.com"},
            {"password": "turnip-new.username-orbit", "username": "new.username"},
            {"password": "Vandersteen1815"},
            {"password": "Quillfeather1815", "full_name": "Ada Quillfeather"},
        ],
    )
    async def test_refuses_a_weak_new_password(self, client: AsyncClient, own: str, body: dict[str, str]) -> None:
        ada = await make_signed_in(username="countess7", full_name="Ada Vandersteen")

        body = {**body, "current_password": ada.password}
        response = await client.patch(url_of(ada, own), json=body, headers=ada.headers)

        assert refusal(response) == (422, "weak_password")
        assert body["password"] not in response.text
        assert (await log_in(client, ada.document.email, ada.password)).status_code == 200

    async def test_is_recorded_without_secrets(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        body = {"full_name": "Ada", "password": NEW_PASSWORD, "current_password": ada.password}
        response = await client.patch(f"{USERS}/me", json=body, headers=ada.headers)

        (event,) = await events("user:updated")
        assert (event.actor.kind, event.actor.id) == ("user", ada.id)
        assert (event.target.kind, event.target.id, event.outcome) == ("user", ada.id, "success")
        assert event.details == {"fields": ["full_name", "password"]}
        assert event.request_id == response.headers["X-Request-ID"]


class TestDeleteOneself:
    @OWN_PATH
    @pytest.mark.parametrize("role", [Role.USER, Role.SUPERUSER])
    @pytest.mark.parametrize("body", [{}, {"current_password": "a wrong password"}], ids=["no proof", "wrong proof"])
    async def test_needs_the_current_password(
        self, client: AsyncClient, own: str, role: Role, body: dict[str, str]
    ) -> None:
        ada = await make_signed_in(role=role)
        await make_user(role=Role.SUPERUSER)

        response = await client.request("DELETE", url_of(ada, own), json=body, headers=ada.headers)

        assert refusal(response) == (401, "invalid_credentials")
        assert (await show(client, ada))["id"] == str(ada.id)

    @OWN_PATH
    async def test_needs_the_current_password_by_a_personal_key_too(self, client: AsyncClient, own: str) -> None:
        ada = await make_user()
        key = await make_api_key("users:write", owner=ada)

        refused = await client.request("DELETE", url_of(ada, own), json={}, headers=key.headers)
        body = {"current_password": ada.password}
        allowed = await client.request("DELETE", url_of(ada, own), json=body, headers=key.headers)

        assert refusal(refused) == (401, "invalid_credentials")
        assert allowed.status_code == 204
        assert await User.count() == 0

    async def test_needs_a_body_at_ones_own_id_as_well(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await client.delete(f"{USERS}/{ada.id}", headers=ada.headers)

        assert refusal(response) == (401, "invalid_credentials")
        assert await User.count() == 1

    @OWN_PATH
    @pytest.mark.parametrize("wrong", [{"reason": ""}, {"reason": "zebra\0"}, {"password": "zebra"}])
    async def test_refuses_a_malformed_body_without_repeating_it(
        self, client: AsyncClient, own: str, wrong: dict[str, str]
    ) -> None:
        ada = await make_signed_in()

        body = {**wrong, "current_password": ada.password}
        response = await client.request("DELETE", url_of(ada, own), json=body, headers=ada.headers)

        assert refusal(response) == (422, "validation_error")
        assert "zebra" not in response.text
        assert await User.count() == 1

    @OWN_PATH
    async def test_moves_the_account_to_the_deleted_users(self, serve: Serve, own: str) -> None:
        async with serve(deleted_retention_days=7) as client:
            ada = await make_signed_in(email="Ada@example.com", username="Ada", full_name="Ada L", plan=Plan.PRO)
            before, as_it_was = utc_now(), await stored(ada)

            body = {"current_password": ada.password, "reason": "Moved on"}
            response = await client.request("DELETE", url_of(ada, own), json=body, headers=ada.headers)

            (archived,) = await DeletedUser.find().to_list()
        assert (response.status_code, response.content) == (204, b"")
        assert (archived.id, archived.deleted_by, archived.reason) == (ada.id, ada.id, "Moved on")
        assert before <= archived.deleted_at <= utc_now()
        assert archived.purge_at - archived.deleted_at == timedelta(days=7)
        assert User.model_validate(archived.user) == as_it_was

    async def test_keeps_the_account_for_thirty_days_unless_set_otherwise(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        await client.request("DELETE", f"{USERS}/me", json={"current_password": ada.password}, headers=ada.headers)

        (archived,) = await DeletedUser.find().to_list()
        assert archived.reason is None
        assert archived.purge_at - archived.deleted_at == timedelta(days=30)

    async def test_ends_every_credential_of_the_user_at_once(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        elsewhere, key = await sign_in(ada), await make_api_key("read", owner=ada)
        for headers in (elsewhere.headers, key.headers):
            assert (await warm_client.get(f"{USERS}/me", headers=headers)).status_code == 200

        await warm_client.request("DELETE", f"{USERS}/me", json={"current_password": ada.password}, headers=ada.headers)

        assert refusal(await warm_client.get(f"{USERS}/me", headers=ada.headers)) == (401, "token_revoked")
        assert refusal(await warm_client.get(f"{USERS}/me", headers=elsewhere.headers)) == (401, "token_revoked")
        assert refusal(await warm_client.get(f"{USERS}/me", headers=key.headers)) == (401, "invalid_api_key")
        assert refusal(await log_in(warm_client, ada.document.email, ada.password)) == (401, "invalid_credentials")
        assert await Session.count() == 0

    async def test_leaves_the_credentials_of_others(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        of_bob, service = await make_api_key("read", owner=bob), await make_api_key("read")

        await client.request("DELETE", f"{USERS}/me", json={"current_password": ada.password}, headers=ada.headers)

        for headers in (bob.headers, of_bob.headers, service.headers):
            assert (await client.get("/api/v1/auth/me", headers=headers)).status_code == 200

    async def test_frees_the_names(self, client: AsyncClient) -> None:
        ada = await make_signed_in(email="ada@example.com", username="ada")

        await client.request("DELETE", f"{USERS}/me", json={"current_password": ada.password}, headers=ada.headers)
        again = await client.post(USERS, json=account(username="ada"))

        assert again.status_code == 201
        assert again.json()["id"] != str(ada.id)
        assert (await log_in(client, "ada@example.com", PASSWORD)).status_code == 200

    async def test_can_be_done_twice_under_the_same_names(self, client: AsyncClient) -> None:
        for _ in range(2):
            ada = await make_signed_in(email="ada@example.com", username="ada")
            body = {"current_password": ada.password}
            response = await client.request("DELETE", f"{USERS}/me", json=body, headers=ada.headers)
            assert response.status_code == 204

        assert await DeletedUser.find({"email_key": "ada@example.com"}).count() == 2

    async def test_is_recorded(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        body = {"current_password": ada.password, "reason": "Moved on"}
        response = await client.request("DELETE", f"{USERS}/me", json=body, headers=ada.headers)

        (event,) = await events("user:deleted")
        assert (event.actor.id, event.target.kind, event.target.id) == (ada.id, "user", ada.id)
        assert event.details == {"reason": "Moved on"}
        assert event.request_id == response.headers["X-Request-ID"]
        assert ada.password not in event.model_dump_json()


class TestDeleteAnother:
    async def test_needs_no_body_and_hides_the_account(self, client: AsyncClient) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_user(username="ada")

        response = await client.delete(f"{USERS}/{ada.id}", headers=admin.headers)

        assert (response.status_code, response.content) == (204, b"")
        assert refusal(await client.get(f"{USERS}/{ada.id}", headers=admin.headers)) == (404, "not_found")
        assert refusal(await client.get(f"{USERS}/username/ada")) == (404, "not_found")
        assert len((await client.get(USERS, headers=admin.headers)).json()) == 1

    async def test_says_not_found_when_it_is_asked_twice(self, client: AsyncClient) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_user()
        await client.delete(f"{USERS}/{ada.id}", headers=admin.headers)

        response = await client.delete(f"{USERS}/{ada.id}", headers=admin.headers)

        assert refusal(response) == (404, "not_found")
        assert await DeletedUser.count() == 1

    async def test_happens_once_when_many_ask_at_once(self, client: AsyncClient) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_user()

        asked = [client.delete(f"{USERS}/{ada.id}", headers=admin.headers) for _ in range(10)]
        statuses = [response.status_code for response in await asyncio.gather(*asked)]

        assert sorted(statuses) == [204, *[404] * 9]
        assert len(await events("user:deleted")) == 1

    async def test_keeps_who_did_it_and_why(self, client: AsyncClient) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_user()

        await client.request("DELETE", f"{USERS}/{ada.id}", json={"reason": "Spam"}, headers=admin.headers)

        (archived,), (event,) = await DeletedUser.find().to_list(), await events("user:deleted")
        assert (archived.id, archived.deleted_by, archived.reason) == (ada.id, admin.id, "Spam")
        assert (event.actor.id, event.target.id, event.details) == (admin.id, ada.id, {"reason": "Spam"})


async def tag_of(client: AsyncClient, url: str, user: SignedInUser) -> str:
    return (await client.get(url, headers=user.headers)).headers["ETag"]


class TestConditionalRequest:
    @OWN_PATH
    @pytest.mark.parametrize("form", ["{tag}", "W/{tag}", '"other", {tag}', "*"])
    async def test_gets_nothing_new_for_a_tag_that_is_current(self, client: AsyncClient, own: str, form: str) -> None:
        ada = await make_signed_in()
        tag = await tag_of(client, url_of(ada, own), ada)

        headers = {**ada.headers, "If-None-Match": form.format(tag=tag)}
        response = await client.get(url_of(ada, own), headers=headers)

        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == tag

    @OWN_PATH
    async def test_gets_the_profile_when_it_has_changed(self, client: AsyncClient, own: str) -> None:
        ada = await make_signed_in()
        tag = await tag_of(client, url_of(ada, own), ada)
        await client.patch(f"{USERS}/me", json={"full_name": "Ada"}, headers=ada.headers)

        response = await client.get(url_of(ada, own), headers={**ada.headers, "If-None-Match": tag})

        assert (response.status_code, response.json()["full_name"]) == (200, "Ada")
        assert response.headers["ETag"] != tag

    async def test_gets_the_profile_again_after_a_sign_in(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        tag = await tag_of(client, f"{USERS}/me", ada)
        await log_in(client, ada.document.email, ada.password)

        response = await client.get(f"{USERS}/me", headers={**ada.headers, "If-None-Match": tag})

        assert response.status_code == 200
        assert response.json()["last_login_at"] is not None

    @OWN_PATH
    @OWN_WRITE
    async def test_changes_what_is_as_it_was_and_gives_the_new_tag(
        self, client: AsyncClient, own: str, method: str
    ) -> None:
        ada = await make_signed_in()
        headers = {**ada.headers, "If-Match": await tag_of(client, url_of(ada, own), ada)}

        response = await client.request(method, url_of(ada, own), json={"full_name": "Ada"}, headers=headers)

        assert response.status_code == 200
        assert response.headers["ETag"] == await tag_of(client, url_of(ada, own), ada)

    @OWN_PATH
    @pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
    async def test_changes_nothing_that_is_not_as_it_was(self, client: AsyncClient, own: str, method: str) -> None:
        ada = await make_signed_in()
        headers = {**ada.headers, "If-Match": await tag_of(client, url_of(ada, own), ada)}
        await client.patch(f"{USERS}/me", json={"full_name": "First"}, headers=ada.headers)

        body = {"current_password": ada.password} | ({} if method == "DELETE" else {"full_name": "Second"})
        response = await client.request(method, url_of(ada, own), json=body, headers=headers)

        assert refusal(response) == (412, "precondition_failed")
        assert (await show(client, ada))["full_name"] == "First"

    @pytest.mark.parametrize("tag", ["*", '"other", {tag}'])
    async def test_takes_any_form_of_a_tag_that_matches(self, client: AsyncClient, tag: str) -> None:
        ada = await make_signed_in()
        match = tag.format(tag=await tag_of(client, f"{USERS}/me", ada))

        headers = {**ada.headers, "If-Match": match}
        response = await client.patch(f"{USERS}/me", json={"full_name": "Ada"}, headers=headers)

        assert response.status_code == 200

    @pytest.mark.parametrize("tag", ['"other"', "other", '""', '"99"', ""])
    async def test_refuses_a_tag_that_was_never_given(self, client: AsyncClient, tag: str) -> None:
        ada = await make_signed_in()

        headers = {**ada.headers, "If-Match": tag}
        response = await client.patch(f"{USERS}/me", json={"full_name": "Ada"}, headers=headers)

        assert refusal(response) == (412, "precondition_failed")
        assert (await show(client, ada))["full_name"] is None

    async def test_deletes_another_only_as_it_was(self, client: AsyncClient) -> None:
        admin, ada = await make_signed_in(role=Role.ADMIN), await make_signed_in()
        tag = await tag_of(client, f"{USERS}/{ada.id}", admin)
        await client.patch(f"{USERS}/me", json={"full_name": "Ada"}, headers=ada.headers)
        present = await tag_of(client, f"{USERS}/{ada.id}", admin)

        late = await client.delete(f"{USERS}/{ada.id}", headers={**admin.headers, "If-Match": tag})
        in_time = await client.delete(f"{USERS}/{ada.id}", headers={**admin.headers, "If-Match": present})

        assert refusal(late) == (412, "precondition_failed")
        assert in_time.status_code == 204

    async def test_lets_one_of_many_change_one_version(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        headers = {**ada.headers, "If-Match": await tag_of(client, f"{USERS}/me", ada)}

        bodies = [{"full_name": f"Ada {at}"} for at in range(10)]
        asked = [client.patch(f"{USERS}/me", json=body, headers=headers) for body in bodies]
        responses = await asyncio.gather(*asked)

        (won,) = [response for response in responses if response.status_code == 200]
        assert [refusal(lost) for lost in responses if lost is not won] == [(412, "precondition_failed")] * 9
        assert await show(client, ada) == won.json()


async def everything() -> dict[str, list[dict[str, Any]]]:
    """All that is stored about accounts."""
    return {
        model.__name__: await model.get_pymongo_collection().find().sort("_id").to_list()
        for model in (User, DeletedUser, Session, AuditEvent)
    }


class TestUnrecordedChange:
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", USERS, {"email": "bob@example.com", "password": NEW_PASSWORD}),
            ("POST", LOGIN, {"email": "ada@example.com", "password": PASSWORD}),
            ("PATCH", f"{USERS}/me", {"password": NEW_PASSWORD, "current_password": PASSWORD}),
            ("DELETE", f"{USERS}/me", {"current_password": PASSWORD}),
            ("POST", "/api/v1/auth/logout", None),
            ("POST", "/api/v1/auth/logout-all", None),
        ],
    )
    async def test_does_not_happen(
        self, client: AsyncClient, method: str, path: str, body: dict[str, str] | None
    ) -> None:
        ada = await make_signed_in(email="ada@example.com", password=PASSWORD)
        headers = {} if path in {USERS, LOGIN} else ada.headers
        before = await everything()

        async with no_event_can_be_written():
            response = await client.request(method, path, json=body, headers=headers)

        assert refusal(response) == (500, "internal_error")
        assert await everything() == before
        assert (await client.get(f"{USERS}/me", headers=ada.headers)).status_code == 200

    async def test_does_not_happen_to_a_refresh_token(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        body = {"refresh_token": ada.refresh_token}
        before = await everything()

        async with no_event_can_be_written():
            response = await client.post("/api/v1/auth/refresh", json=body)

        assert refusal(response) == (500, "internal_error")
        assert await everything() == before
        assert (await client.post("/api/v1/auth/refresh", json=body)).status_code == 200
