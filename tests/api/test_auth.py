"""Signing in, staying signed in and signing out."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core import live_cache
from app.core.clock import utc_now
from app.core.scopes import Role
from app.core.tokens import RefreshToken
from app.models.audit_event import AuditEvent
from app.models.session import Session
from app.models.user import User
from tests.conftest import SECRET, Serve
from tests.factories import SignedInUser, StoredUser, make_api_key, make_signed_in, make_user, sign_in

AUTH = "/api/v1/auth"
OTHER_SECRET = "Wq7Zr3Tn9Xk5Vb1Mj8Hd4Gs6Fp2Lc0Ya"
NO_SUCH_ID = "6746d0a8f8f8f8f8f8f8f8f8"
USER_SCOPES = [
    "api_keys:read",
    "api_keys:write",
    "conversations:read",
    "conversations:write",
    "items:read",
    "items:write",
    "uploads:read",
    "uploads:write",
    "users:read",
    "users:write",
]

SetClock = Callable[[float], None]


async def log_in(client: AsyncClient, user: StoredUser, password: str | None = None) -> Response:
    body = {"email": user.document.email, "password": password or user.password}
    return await client.post(f"{AUTH}/login", json=body)


async def refresh(client: AsyncClient, token: str) -> Response:
    return await client.post(f"{AUTH}/refresh", json={"refresh_token": token})


async def who_am_i(client: AsyncClient, access_token: str) -> Response:
    return await client.get(f"{AUTH}/me", headers={"Authorization": f"Bearer {access_token}"})


def refusal(response: Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["code"] if response.is_error else None


async def events(action: str) -> list[AuditEvent]:
    return await AuditEvent.find({"action": action}).to_list()


@pytest.fixture
async def warm_client(client: AsyncClient) -> AsyncClient:
    """The application once it believes what it remembers of credentials, so that forgetting counts."""
    async with asyncio.timeout(5):
        while live_cache._State.heard_until < time.monotonic():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    return client


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Let the given number of seconds have passed for whoever exchanges refresh tokens."""

    def let_pass(seconds: float) -> None:
        monkeypatch.setattr("app.services.session_service.utc_now", lambda: utc_now() + timedelta(seconds=seconds))

    return let_pass


class TestLogIn:
    @pytest.mark.parametrize(
        "account",
        [
            {"email": "Ada@example.com"},
            {"email": "aDA@Example.COM"},
            {"username": "Ada.Lovelace"},
            {"username": "aDA.lOVELACE"},
        ],
    )
    async def test_knows_the_account_by_email_and_username_in_any_case(
        self, client: AsyncClient, account: dict[str, str]
    ) -> None:
        ada = await make_user(email="Ada@example.com", username="Ada.Lovelace")

        response = await client.post(f"{AUTH}/login", json={**account, "password": ada.password})

        assert response.status_code == 200
        assert (await who_am_i(client, response.json()["access_token"])).json()["id"] == str(ada.id)

    async def test_gives_both_tokens_and_says_how_long_they_live(self, client: AsyncClient) -> None:
        ada = await make_user()

        pair = (await log_in(client, ada)).json()

        assert {name: pair[name] for name in ("token_type", "expires_in", "refresh_expires_in")} == {
            "token_type": "bearer",
            "expires_in": 1800,
            "refresh_expires_in": 2592000,
        }
        assert pair.keys() - {"token_type", "expires_in", "refresh_expires_in"} == {
            "access_token",
            "refresh_token",
            "scope",
        }

    async def test_follows_the_settings_about_the_life_of_tokens(self, serve: Serve) -> None:
        async with serve(access_token_expire_minutes=5, refresh_token_expire_days=2) as client:
            pair = (await log_in(client, await make_user())).json()

        claims = jwt.decode(pair["access_token"], options={"verify_signature": False})
        assert (pair["expires_in"], pair["refresh_expires_in"]) == (300, 172800)
        assert claims["exp"] - claims["iat"] == 300

    async def test_lists_what_a_user_may_do_as_scopes(self, client: AsyncClient) -> None:
        ada = await make_user()

        pair = (await log_in(client, ada)).json()

        assert sorted(pair["scope"].split(" ")) == USER_SCOPES

    async def test_gives_a_guest_nothing_to_write_with(self, client: AsyncClient) -> None:
        guest = await make_user(role=Role.GUEST)

        pair = (await log_in(client, guest)).json()

        assert "users:read" in pair["scope"].split(" ")
        assert ":write" not in pair["scope"]

    async def test_is_remembered_in_the_profile(self, client: AsyncClient) -> None:
        ada = await make_user()
        before = utc_now()

        pair = (await log_in(client, ada)).json()

        headers = {"Authorization": f"Bearer {pair['access_token']}"}
        profile = (await client.get("/api/v1/users/me", headers=headers)).json()
        assert before <= datetime.fromisoformat(profile["last_login_at"]) <= utc_now()

    async def test_begins_a_session_of_its_own_each_time(self, client: AsyncClient) -> None:
        ada = await make_user()

        first, second = [(await log_in(client, ada)).json() for _ in range(2)]

        ids = {(await who_am_i(client, pair["access_token"])).json()["session_id"] for pair in (first, second)}
        assert ids == {str(session.id) async for session in Session.find({"user_id": ada.id})}
        assert len(ids) == 2

    @pytest.mark.parametrize(
        ("known", "unknown"),
        [
            ({"email": "ada@example.com"}, {"email": "bob@example.com"}),
            ({"username": "ada"}, {"username": "bob"}),
        ],
        ids=["email", "username"],
    )
    async def test_answers_alike_for_a_wrong_password_and_an_unknown_account(
        self, client: AsyncClient, known: dict[str, str], unknown: dict[str, str]
    ) -> None:
        await make_user(email="ada@example.com", username="ada")

        wrong = await client.post(f"{AUTH}/login", json={**known, "password": "not the password"})
        nobody = await client.post(f"{AUTH}/login", json={**unknown, "password": "not the password"})

        assert refusal(wrong) == refusal(nobody) == (401, "invalid_credentials")
        assert {**wrong.json(), "request_id": ""} == {**nobody.json(), "request_id": ""}
        assert wrong.headers.keys() == nobody.headers.keys()
        assert wrong.headers["www-authenticate"] == nobody.headers["www-authenticate"]

    async def test_works_as_hard_for_an_unknown_account_as_for_a_wrong_password(self, serve: Serve) -> None:
        async with serve(bcrypt_rounds=10) as client:
            body = {"email": "ada@example.com", "password": "turnip-Lantern-42-orbit"}
            assert (await client.post("/api/v1/users", json=body)).status_code == 201

            wrong = await least_work(client, "ada@example.com")
            unknown = await least_work(client, "bob@example.com")

        assert 0.5 < unknown / wrong < 2

    @pytest.mark.parametrize(
        ("password", "expected"),
        [("turnip-Lantern-42-orbit", (403, "account_disabled")), ("a wrong password", (401, "invalid_credentials"))],
    )
    async def test_tells_that_an_account_is_deactivated_only_to_who_knows_the_password(
        self, client: AsyncClient, password: str, expected: tuple[int, str]
    ) -> None:
        ada = await make_user(password="turnip-Lantern-42-orbit", is_active=False)

        response = await log_in(client, ada, password)

        assert refusal(response) == expected
        assert await Session.count() == 0

    @pytest.mark.parametrize(
        "body",
        [
            {"password": "zebra-secret"},
            {"email": "ada@example.com"},
            {"email": "ada@example.com", "username": "ada", "password": "zebra-secret"},
            {"email": "", "password": "zebra-secret"},
            {"email": "a\0da@example.com", "password": "zebra-secret"},
            {"email": {"$gt": ""}, "password": "zebra-secret"},
            {"email": "ada@example.com", "password": {"$gt": "zebra-secret"}},
            {"email": "ada@example.com", "password": ["zebra-secret"]},
            {"email": "ada@example.com", "password": None},
            {"email": "ada@example.com", "password": "zebra-secret", "remember": True},
            {"email": "ada@example.com", "password": "zebra-secret" * 400},
            ["zebra-secret"],
        ],
    )
    async def test_refuses_a_malformed_body_without_repeating_it(self, client: AsyncClient, body: object) -> None:
        response = await client.post(f"{AUTH}/login", json=body)

        assert refusal(response) == (422, "validation_error")
        assert response.json()["errors"]
        assert "zebra" not in response.text

    async def test_is_recorded(self, client: AsyncClient) -> None:
        ada = await make_user(username="ada")

        response = await log_in(client, ada)

        session = await Session.find_one({"user_id": ada.id})
        (event,) = await events("session:created")
        assert session is not None
        assert (event.actor.kind, event.actor.id, event.actor.name) == ("user", ada.id, "ada")
        assert (event.target.kind, event.target.id, event.outcome) == ("session", session.id, "success")
        assert (event.ip, event.request_id) == ("127.0.0.1", response.headers["X-Request-ID"])

    @pytest.mark.parametrize(
        ("email", "password", "is_known"),
        [
            ("ada@example.com", "zebra-secret", True),
            ("bob@example.com", "zebra-secret", False),
            ("gone@example.com", "turnip-Lantern-42-orbit", True),
        ],
        ids=["wrong password", "unknown account", "deactivated account"],
    )
    async def test_is_recorded_when_it_fails(
        self, client: AsyncClient, email: str, password: str, *, is_known: bool
    ) -> None:
        await make_user(email="ada@example.com")
        await make_user(email="gone@example.com", is_active=False)

        await client.post(f"{AUTH}/login", json={"email": email, "password": password})

        user = await User.find_one({"email": email})
        (event,) = await events("session:refused")
        assert (event.actor.kind, event.actor.id, event.outcome) == ("anonymous", None, "failure")
        assert event.target.id == (user.id if user else None)
        assert (user is not None) == is_known
        assert password not in event.model_dump_json()

    async def test_leaves_a_hash_alone_that_was_made_with_the_present_settings(self, client: AsyncClient) -> None:
        ada = await make_user()

        assert (await log_in(client, ada)).status_code == 200

        assert (await User.find_one({"_id": ada.id})).hashed_password == ada.document.hashed_password  # type: ignore[union-attr]

    async def test_renews_a_hash_that_was_made_with_other_rounds(self, serve: Serve) -> None:
        async with serve(bcrypt_rounds=5) as client:
            ada = await make_user()

            assert (await log_in(client, ada)).status_code == 200

            stored = await User.find_one({"_id": ada.id})
            assert stored is not None
            assert stored.hashed_password.startswith("$bcrypt-sha256$v=2,t=2b,r=5$")
            assert (await log_in(client, ada)).status_code == 200
            assert refusal(await log_in(client, ada, "a wrong password")) == (401, "invalid_credentials")

    async def test_leaves_the_hash_of_a_wrong_password_alone(self, serve: Serve) -> None:
        async with serve(bcrypt_rounds=5) as client:
            ada = await make_user()

            await log_in(client, ada, "a wrong password")

            stored = await User.find_one({"_id": ada.id})
        assert stored is not None
        assert stored.hashed_password == ada.document.hashed_password

    async def test_lets_everybody_in_who_comes_while_the_hash_is_renewed(self, serve: Serve) -> None:
        async with serve(bcrypt_rounds=5) as client:
            ada = await make_user()

            responses = await asyncio.gather(*[log_in(client, ada) for _ in range(10)])

        assert [response.status_code for response in responses] == [200] * 10


async def least_work(client: AsyncClient, email: str) -> float:
    """The processor time of a sign-in that fails, on all threads, the least of five."""
    spent = []
    for _ in range(5):
        before = time.process_time()
        await client.post(f"{AUTH}/login", json={"email": email, "password": "a wrong password"})
        spent.append(time.process_time() - before)
    return min(spent)


class TestTokenForm:
    @pytest.mark.parametrize("username", ["ada@example.com", "ADA@example.com", "ada", "ADA"])
    async def test_signs_in_with_a_password(self, client: AsyncClient, username: str) -> None:
        ada = await make_user(email="ada@example.com", username="ada")

        form = {"grant_type": "password", "username": username, "password": ada.password}
        response = await client.post(f"{AUTH}/token", data=form)

        assert response.status_code == 200
        assert response.json()["token_type"] == "bearer"
        assert (await who_am_i(client, response.json()["access_token"])).json()["id"] == str(ada.id)

    async def test_takes_what_the_documentation_page_sends(self, client: AsyncClient) -> None:
        ada = await make_user(username="ada")

        form = {"grant_type": "password", "username": "ada", "password": ada.password, "scope": "", "client_id": ""}
        response = await client.post(f"{AUTH}/token", data=form)

        assert response.status_code == 200

    async def test_exchanges_a_refresh_token(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        form = {"grant_type": "refresh_token", "refresh_token": ada.refresh_token}
        response = await client.post(f"{AUTH}/token", data=form)

        assert response.status_code == 200
        assert response.json()["refresh_token"] != ada.refresh_token
        assert (await refresh(client, response.json()["refresh_token"])).status_code == 200

    @pytest.mark.parametrize(
        ("form", "expected"),
        [
            ({"grant_type": "password", "username": "ada", "password": "zebra-secret"}, (401, "invalid_credentials")),
            ({"grant_type": "password", "username": "bob", "password": "zebra-secret"}, (401, "invalid_credentials")),
            ({"grant_type": "refresh_token", "refresh_token": "zebra-secret"}, (401, "invalid_token")),
            ({"grant_type": "client_credentials", "password": "zebra-secret"}, (422, "validation_error")),
            ({"grant_type": "password", "password": "zebra-secret"}, (422, "validation_error")),
            ({"grant_type": "password", "username": "ada"}, (422, "validation_error")),
            ({"grant_type": "refresh_token", "password": "zebra-secret"}, (422, "validation_error")),
            ({"username": "ada", "password": "zebra-secret"}, (422, "validation_error")),
        ],
    )
    async def test_refuses_what_is_wrong_or_missing(
        self, client: AsyncClient, form: dict[str, str], expected: tuple[int, str]
    ) -> None:
        await make_user(username="ada")

        response = await client.post(f"{AUTH}/token", data=form)

        assert refusal(response) == expected
        assert "zebra" not in response.text
        assert await Session.count() == 0

    async def test_refuses_json(self, client: AsyncClient) -> None:
        ada = await make_user(username="ada")

        body = {"grant_type": "password", "username": "ada", "password": ada.password}
        response = await client.post(f"{AUTH}/token", json=body)

        assert refusal(response) == (415, "unsupported_media_type")


class TestRefresh:
    async def test_gives_a_new_pair_for_the_same_session(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        pair = (await refresh(client, ada.refresh_token)).json()

        assert pair["refresh_token"] != ada.refresh_token
        assert (await who_am_i(client, pair["access_token"])).json()["session_id"] == str(ada.session.id)
        assert (await refresh(client, pair["refresh_token"])).status_code == 200

    async def test_starts_the_life_of_the_session_anew(self, client: AsyncClient) -> None:
        ada = await sign_in(await make_user(), expires_at=utc_now() + timedelta(hours=1))

        await refresh(client, ada.refresh_token)

        session = await Session.find_one({"_id": ada.session.id})
        assert session is not None
        assert timedelta(days=29) < session.expires_at - utc_now() <= timedelta(days=30)

    @pytest.mark.usefixtures("patience")
    async def test_gives_one_successor_to_fifty_who_ask_at_once(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        responses = await asyncio.gather(*[refresh(client, ada.refresh_token) for _ in range(50)])

        session = await Session.find_one({"_id": ada.session.id})
        assert [response.status_code for response in responses] == [200] * 50
        assert len({response.json()["refresh_token"] for response in responses}) == 1
        assert session is not None
        assert session.generation == 1
        assert len(await events("session:refreshed")) == 1

    async def test_gives_the_same_successor_within_ten_seconds(self, client: AsyncClient, set_clock: SetClock) -> None:
        ada = await make_signed_in()
        first = (await refresh(client, ada.refresh_token)).json()

        set_clock(9)
        second, third = [(await refresh(client, ada.refresh_token)).json() for _ in range(2)]

        assert first["refresh_token"] == second["refresh_token"] == third["refresh_token"]
        assert (await who_am_i(client, second["access_token"])).status_code == 200
        assert (await refresh(client, second["refresh_token"])).status_code == 200

    async def test_ends_the_session_when_a_spent_token_comes_back_later(
        self, warm_client: AsyncClient, set_clock: SetClock
    ) -> None:
        ada = await make_signed_in()
        pair = (await refresh(warm_client, ada.refresh_token)).json()
        for token in (ada.access_token, pair["access_token"]):
            assert (await who_am_i(warm_client, token)).status_code == 200

        set_clock(11)
        response = await refresh(warm_client, ada.refresh_token)

        assert refusal(response) == (401, "token_revoked")
        assert refusal(await refresh(warm_client, pair["refresh_token"])) == (401, "token_revoked")
        assert refusal(await who_am_i(warm_client, pair["access_token"])) == (401, "token_revoked")
        assert refusal(await who_am_i(warm_client, ada.access_token)) == (401, "token_revoked")

    async def test_ends_the_session_when_a_token_of_two_generations_ago_comes_back(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        second = (await refresh(client, ada.refresh_token)).json()
        third = (await refresh(client, second["refresh_token"])).json()

        response = await refresh(client, ada.refresh_token)

        assert refusal(response) == (401, "token_revoked")
        assert refusal(await who_am_i(client, third["access_token"])) == (401, "token_revoked")

    async def test_leaves_the_other_sessions_of_a_user_whose_token_was_stolen(
        self, client: AsyncClient, set_clock: SetClock
    ) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)
        await refresh(client, ada.refresh_token)

        set_clock(11)
        await refresh(client, ada.refresh_token)

        assert (await who_am_i(client, elsewhere.access_token)).status_code == 200

    async def test_records_a_theft_once_however_often_the_token_comes_back(
        self, client: AsyncClient, set_clock: SetClock
    ) -> None:
        ada = await make_signed_in()
        await refresh(client, ada.refresh_token)

        set_clock(11)
        responses = await asyncio.gather(*[refresh(client, ada.refresh_token) for _ in range(5)])

        (event,) = await events("session:reuse_detected")
        assert {refusal(response) for response in responses} == {(401, "token_revoked")}
        assert (event.actor.id, event.target.kind, event.target.id) == (ada.id, "session", ada.session.id)
        assert event.outcome == "failure"

    @pytest.mark.parametrize(("age", "code", "session"), [(5000, "token_revoked", 401), (5001, "invalid_token", 200)])
    async def test_knows_a_spent_token_of_five_thousand_generations_ago(
        self, client: AsyncClient, age: int, code: str, session: int
    ) -> None:
        ada = await make_signed_in()
        present = RefreshToken.parse(ada.refresh_token)
        assert present is not None
        for _ in range(age):
            (present,) = present.successors()
        await ada.session.set({"refresh_digest": present.digest, "generation": age})

        response = await refresh(client, ada.refresh_token)

        assert refusal(response) == (401, code)
        assert (await who_am_i(client, ada.access_token)).status_code == session

    async def test_looks_for_a_forged_token_in_a_thread_and_not_for_ever(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_signed_in()
        await ada.session.set({"generation": 1_000_000})
        walks: list[tuple[bool, int]] = []

        def walk(_: RefreshToken, __: bytes, *, within: int) -> bool:
            walks.append((threading.current_thread() is threading.main_thread(), within))
            return False

        monkeypatch.setattr(RefreshToken, "precedes", walk)

        response = await refresh(client, f"{ada.session.id}.{'A' * 43}")

        assert refusal(response) == (401, "invalid_token")
        assert walks == [(False, 5000)]

    async def test_leaves_the_session_alone_when_the_secret_is_forged(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        bob = await make_signed_in()
        await refresh(client, bob.refresh_token)
        _, _, foreign_secret = bob.refresh_token.partition(".")
        forged = [f"{ada.session.id}.{'A' * 43}", f"{ada.session.id}.{foreign_secret}"]

        responses = [await refresh(client, token) for token in forged]

        assert [refusal(response) for response in responses] == [(401, "invalid_token")] * 2
        assert (await who_am_i(client, ada.access_token)).status_code == 200
        assert (await refresh(client, ada.refresh_token)).status_code == 200

    @pytest.mark.parametrize(
        ("token", "code"),
        [
            ("", "invalid_token"),
            ("zebra", "invalid_token"),
            (f"zebra.{'A' * 43}", "invalid_token"),
            (f"{NO_SUCH_ID}.zebra", "invalid_token"),
            (f"{NO_SUCH_ID}.{'é' * 43}", "invalid_token"),
            (f"{NO_SUCH_ID}.{'A' * 43}", "token_revoked"),
        ],
    )
    async def test_refuses_what_is_no_token_of_a_living_session(
        self, client: AsyncClient, token: str, code: str
    ) -> None:
        response = await refresh(client, token)

        assert refusal(response) == (401, code)
        assert response.headers["www-authenticate"].startswith("Bearer")

    @pytest.mark.parametrize(
        "body", [{}, {"refresh_token": None}, {"refresh_token": ["zebra"]}, {"refresh_token": "zebra", "scope": "all"}]
    )
    async def test_refuses_a_malformed_body_without_repeating_it(
        self, client: AsyncClient, body: dict[str, object]
    ) -> None:
        response = await client.post(f"{AUTH}/refresh", json=body)

        assert refusal(response) == (422, "validation_error")
        assert "zebra" not in response.text

    async def test_does_not_take_an_access_token(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        assert refusal(await refresh(client, ada.access_token)) == (401, "invalid_token")

    async def test_fails_when_the_session_has_expired(self, client: AsyncClient) -> None:
        ada = await sign_in(await make_user(), expires_at=utc_now() - timedelta(seconds=1))

        assert refusal(await refresh(client, ada.refresh_token)) == (401, "token_revoked")
        assert refusal(await who_am_i(client, ada.access_token)) == (401, "token_revoked")

    async def test_fails_after_the_end_of_the_session(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await client.post(f"{AUTH}/logout", headers=ada.headers)

        assert refusal(await refresh(client, ada.refresh_token)) == (401, "token_revoked")

    async def test_gives_the_scopes_of_the_role_that_the_user_has_by_now(self, client: AsyncClient) -> None:
        superuser, ada = await make_signed_in(role=Role.SUPERUSER), await make_signed_in()
        body = {"role": "admin"}
        await client.patch(f"/api/v1/users/{ada.id}", json=body, headers=superuser.headers)

        pair = (await refresh(client, ada.refresh_token)).json()

        assert "admin" in pair["scope"].split(" ")
        assert jwt.decode(pair["access_token"], options={"verify_signature": False})["role"] == "admin"

    async def test_stores_no_token_that_could_be_used(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        pair = (await refresh(client, ada.refresh_token)).json()

        stored = str(await Session.get_pymongo_collection().find_one({"_id": ada.session.id}))

        for token in (ada.refresh_token, pair["refresh_token"]):
            assert token.partition(".")[2] not in stored

    async def test_is_recorded(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await refresh(client, ada.refresh_token)

        (event,) = await events("session:refreshed")
        assert (event.actor.kind, event.actor.id, event.outcome) == ("user", ada.id, "success")
        assert (event.target.kind, event.target.id) == ("session", ada.session.id)
        assert event.request_id == response.headers["X-Request-ID"]


class TestChangeOfTheSecretKey:
    async def test_keeps_sessions_while_the_previous_secret_is_known(self, serve: Serve) -> None:
        async with serve():
            ada = await make_signed_in()

        async with serve(secret_key=OTHER_SECRET, previous_secret_keys=SECRET) as client:
            assert (await who_am_i(client, ada.access_token)).status_code == 200
            first, again = [(await refresh(client, ada.refresh_token)).json() for _ in range(2)]
            assert first["refresh_token"] == again["refresh_token"]
            assert (await who_am_i(client, first["access_token"])).status_code == 200

    async def test_gives_the_same_successor_to_who_asked_under_the_previous_secret(self, serve: Serve) -> None:
        async with serve() as client:
            ada = await make_signed_in()
            first = (await refresh(client, ada.refresh_token)).json()

        async with serve(secret_key=OTHER_SECRET, previous_secret_keys=SECRET) as client:
            again = (await refresh(client, ada.refresh_token)).json()

        assert first["refresh_token"] == again["refresh_token"]

    async def test_ends_access_tokens_when_the_previous_secret_is_forgotten(self, serve: Serve) -> None:
        async with serve():
            ada = await make_signed_in()

        async with serve(secret_key=OTHER_SECRET) as client:
            assert refusal(await who_am_i(client, ada.access_token)) == (401, "invalid_token")


class TestLogOut:
    async def test_ends_the_session_in_use_at_once(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        assert (await who_am_i(warm_client, ada.access_token)).status_code == 200

        response = await warm_client.post(f"{AUTH}/logout", headers=ada.headers)

        assert (response.status_code, response.content) == (204, b"")
        assert refusal(await who_am_i(warm_client, ada.access_token)) == (401, "token_revoked")
        assert await Session.count() == 0

    async def test_ends_every_access_token_of_the_session(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        younger = (await refresh(warm_client, ada.refresh_token)).json()["access_token"]
        assert (await who_am_i(warm_client, younger)).status_code == 200

        await warm_client.post(f"{AUTH}/logout", headers=ada.headers)

        assert refusal(await who_am_i(warm_client, younger)) == (401, "token_revoked")

    async def test_leaves_other_sessions_of_the_user(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)

        await client.post(f"{AUTH}/logout", headers=ada.headers)

        assert (await who_am_i(client, elsewhere.access_token)).status_code == 200

    async def test_says_that_the_session_is_over_when_it_is_asked_twice(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await client.post(f"{AUTH}/logout", headers=ada.headers)

        response = await client.post(f"{AUTH}/logout", headers=ada.headers)

        assert refusal(response) == (401, "token_revoked")
        assert len(await events("session:ended")) == 1

    async def test_is_recorded(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        await client.post(f"{AUTH}/logout", headers=ada.headers)

        (event,) = await events("session:ended")
        assert (event.actor.id, event.target.kind, event.target.id) == (ada.id, "session", ada.session.id)

    @pytest.mark.parametrize("path", ["logout", "logout-all"])
    async def test_refuses_nobody_and_a_service_key(self, client: AsyncClient, path: str) -> None:
        key = await make_api_key("admin")

        nobody = await client.post(f"{AUTH}/{path}")
        service = await client.post(f"{AUTH}/{path}", headers=key.headers)

        assert refusal(nobody) == (401, "not_authenticated")
        assert refusal(service) == (403, "forbidden")

    @pytest.mark.parametrize("path", ["logout", "logout-all"])
    async def test_does_not_let_a_key_that_only_reads_sign_its_owner_out(self, client: AsyncClient, path: str) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada)

        response = await client.post(f"{AUTH}/{path}", headers=key.headers)

        assert response.status_code == 403
        assert (await who_am_i(client, ada.access_token)).status_code == 200


class TestLogOutEverywhere:
    async def test_ends_all_sessions_of_the_user_at_once(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)
        assert (await who_am_i(warm_client, elsewhere.access_token)).status_code == 200

        response = await warm_client.post(f"{AUTH}/logout-all", headers=ada.headers)

        assert (response.status_code, response.content) == (204, b"")
        assert refusal(await who_am_i(warm_client, ada.access_token)) == (401, "token_revoked")
        assert refusal(await who_am_i(warm_client, elsewhere.access_token)) == (401, "token_revoked")
        assert refusal(await refresh(warm_client, elsewhere.refresh_token)) == (401, "token_revoked")

    async def test_leaves_the_sessions_of_others_and_lets_the_user_sign_in_again(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()

        await client.post(f"{AUTH}/logout-all", headers=ada.headers)

        assert (await who_am_i(client, bob.access_token)).status_code == 200
        assert (await log_in(client, ada)).status_code == 200

    async def test_is_recorded(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await sign_in(ada)

        await client.post(f"{AUTH}/logout-all", headers=ada.headers)

        (event,) = await events("sessions:ended")
        assert (event.actor.id, event.target.kind, event.target.id) == (ada.id, "user", ada.id)
        assert event.details == {"count": 2}


class TestMe:
    async def test_describes_a_signed_in_user(self, client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada")

        response = await who_am_i(client, ada.access_token)

        assert response.json() == {
            "kind": "user",
            "id": str(ada.id),
            "name": "ada",
            "user_id": str(ada.id),
            "role": "user",
            "scopes": USER_SCOPES,
            "session_id": str(ada.session.id),
            "key_id": None,
        }

    async def test_describes_a_service_key(self, client: AsyncClient) -> None:
        key = await make_api_key("read", name="ci")

        response = await client.get(f"{AUTH}/me", headers=key.headers)

        assert response.json() == {
            "kind": "api_key",
            "id": str(key.document.id),
            "name": "ci",
            "user_id": None,
            "role": None,
            "scopes": ["conversations:read", "items:read", "uploads:read", "users:read"],
            "session_id": None,
            "key_id": str(key.document.id),
        }

    async def test_describes_a_personal_key(self, client: AsyncClient) -> None:
        ada = await make_user()
        key = await make_api_key("users:read", owner=ada, name="phone")

        response = await client.get(f"{AUTH}/me", headers=key.headers)

        assert response.json() == {
            "kind": "api_key",
            "id": str(key.document.id),
            "name": "phone",
            "user_id": str(ada.id),
            "role": "user",
            "scopes": ["users:read"],
            "session_id": None,
            "key_id": str(key.document.id),
        }


async def signed_in_some_time_ago(monkeypatch: pytest.MonkeyPatch, **ago: float) -> SignedInUser:
    """A user whose access token was made then, to live for 30 minutes."""
    with monkeypatch.context() as then:
        then.setattr("app.core.tokens.utc_now", lambda: utc_now() - timedelta(**ago))
        return await make_signed_in()


def tampered(token: str) -> str:
    head, payload, signature = token.split(".")
    claims = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).replace(b'"user"', b'"admin"')
    return f"{head}.{base64.urlsafe_b64encode(claims).rstrip(b'=').decode()}.{signature}"


def of_a_session_that_never_was(token: str) -> str:
    claims = jwt.decode(token, options={"verify_signature": False})
    return jwt.encode({**claims, "sid": str(ObjectId())}, SECRET, "HS256")


def of_the_session_of(other: SignedInUser, token: str) -> str:
    claims = jwt.decode(token, options={"verify_signature": False})
    return jwt.encode({**claims, "sid": str(other.session.id)}, SECRET, "HS256")


class TestCredentials:
    @pytest.mark.parametrize(
        ("headers", "code"),
        [
            ({}, "not_authenticated"),
            ({"Authorization": ""}, "invalid_token"),
            ({"Authorization": "Bearer"}, "invalid_token"),
            ({"Authorization": "Bearer zebra"}, "invalid_token"),
            ({"Authorization": "Bearer a.b.c"}, "invalid_token"),
            ({"Authorization": "Basic YWRhOnplYnJh"}, "invalid_token"),
            ({"Octopus-API-Key": ""}, "invalid_api_key"),
            ({"Octopus-API-Key": "zebra"}, "invalid_api_key"),
        ],
    )
    async def test_are_asked_for_when_missing_or_malformed(
        self, client: AsyncClient, headers: dict[str, str], code: str
    ) -> None:
        response = await client.get(f"{AUTH}/me", headers=headers)

        assert refusal(response) == (401, code)
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert "zebra" not in response.text

    @pytest.mark.parametrize(
        ("alter", "code"), [(tampered, "invalid_token"), (of_a_session_that_never_was, "token_revoked")]
    )
    async def test_are_refused_when_altered(self, client: AsyncClient, alter: Callable[[str], str], code: str) -> None:
        ada = await make_signed_in()

        response = await who_am_i(client, alter(ada.access_token))

        assert refusal(response) == (401, code)
        assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'

    async def test_do_not_reach_the_session_of_another_user(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()

        response = await who_am_i(client, of_the_session_of(bob, ada.access_token))

        assert refusal(response) == (401, "token_revoked")

    async def test_are_refused_when_there_are_two(self, client: AsyncClient) -> None:
        ada, key = await make_signed_in(), await make_api_key("admin")

        response = await client.get(f"{AUTH}/me", headers={**ada.headers, **key.headers})

        assert refusal(response) == (400, "ambiguous_credentials")

    async def test_are_refused_in_pairs_where_none_is_needed(self, client: AsyncClient) -> None:
        ada, key = await make_signed_in(), await make_api_key("admin")
        body = {"email": "bob@example.com", "password": "turnip-Lantern-42-orbit"}

        response = await client.post("/api/v1/users", json=body, headers={**ada.headers, **key.headers})

        assert refusal(response) == (400, "ambiguous_credentials")
        assert await User.find_one({"email": "bob@example.com"}) is None

    async def test_expire(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await signed_in_some_time_ago(monkeypatch, minutes=31)

        response = await who_am_i(client, ada.access_token)

        assert refusal(response) == (401, "token_expired")
        assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'

    async def test_expire_while_they_are_in_use(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await signed_in_some_time_ago(monkeypatch, minutes=29, seconds=57)
        ends_at = jwt.decode(ada.access_token, options={"verify_signature": False})["exp"]
        assert (await who_am_i(client, ada.access_token)).status_code == 200

        async with asyncio.timeout(10):
            while (response := await who_am_i(client, ada.access_token)).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # nothing tells of it

        assert refusal(response) == (401, "token_expired")
        assert datetime.now(UTC).timestamp() - ends_at < 1.5

    async def test_keep_working_for_the_refresh_of_an_expired_access_token(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await signed_in_some_time_ago(monkeypatch, minutes=31)

        pair = (await refresh(client, ada.refresh_token)).json()

        assert (await who_am_i(client, pair["access_token"])).status_code == 200


class TestAnswers:
    async def test_never_hold_a_hash_a_digest_or_a_password(self, client: AsyncClient) -> None:
        bodies: list[str] = []

        async def keep(response: Response) -> None:
            bodies.append((await response.aread()).decode())

        client.event_hooks = {"response": [keep]}
        secrets = await walk_through_everything(client)

        assert len(bodies) > 15
        for text in bodies:
            assert not [secret for secret in secrets if secret in text]
            assert "hashed_password" not in text
            assert "digest" not in text


async def walk_through_everything(client: AsyncClient) -> list[str]:
    """Do all that can be done about accounts and sessions. What may not be seen in any answer."""
    password, users = "turnip-Lantern-42-orbit", "/api/v1/users"
    account = {"email": "ada@example.com", "username": "ada", "password": password}
    admin = await make_signed_in(role=Role.ADMIN)
    await client.post(users, json=account)
    await client.post(users, json=account)
    await client.post(users, json={**account, "role": "admin"})
    await client.post(f"{AUTH}/login", json={"username": "ada", "password": f"{password}!"})
    pair = (await client.post(f"{AUTH}/login", json={"username": "ada", "password": password})).json()
    pair = (await refresh(client, pair["refresh_token"])).json()
    mine = {"Authorization": f"Bearer {pair['access_token']}"}
    user = await User.find_one({"username": "ada"})
    session = await Session.find_one({"user_id": user.id}) if user else None
    assert user is not None
    assert session is not None
    for path in (f"{users}/me", f"{users}/{user.id}", f"{users}/username/ada", f"{AUTH}/me"):
        assert (await client.get(path, headers=mine)).status_code == 200
    for path in (users, f"{users}/{user.id}"):
        assert (await client.get(path, headers=admin.headers)).status_code == 200
    await client.patch(f"{users}/me", json={"full_name": "Ada"}, headers=mine)
    await client.patch(f"{users}/me", json={"password": f"{password}-2"}, headers=mine)
    body = {"password": f"{password}-2", "current_password": password}
    assert (await client.patch(f"{users}/{user.id}", json=body, headers=mine)).status_code == 200
    changed = await User.find_one({"username": "ada"})
    assert changed is not None
    await client.request("DELETE", f"{users}/me", json={"current_password": f"{password}?"}, headers=mine)
    deleted = await client.request("DELETE", f"{users}/me", json={"current_password": f"{password}-2"}, headers=mine)
    assert deleted.status_code == 204
    digest = session.refresh_digest
    return [
        password,
        user.hashed_password,
        changed.hashed_password,
        digest.hex(),
        base64.b64encode(digest).decode().rstrip("="),
        base64.urlsafe_b64encode(digest).decode().rstrip("="),
    ]
