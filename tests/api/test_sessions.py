"""Where a user is signed in, and what ends or changes a session that lives."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import jwt
import pytest
from httpx import AsyncClient, Response

from app.core.clock import utc_now
from app.core.scopes import Role
from app.models.session import Session
from tests.api.signing_in import AUTH, bearer, events, log_in, outcome, refresh, warmed, who_am_i
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import SignedInUser, StoredUser, make_api_key, make_signed_in, make_user, sign_in

SESSIONS = f"{AUTH}/sessions"
USERS = "/api/v1/users"
NO_SUCH_ID = "6746d0a8f8f8f8f8f8f8f8f8"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0"

Act = Callable[[AsyncClient, SignedInUser], Awaitable[Response]]


@pytest.fixture
async def warm_client(client: AsyncClient) -> AsyncClient:
    return await warmed(client)


class TestList:
    async def test_tells_device_address_and_times(self, client: AsyncClient) -> None:
        ada = await make_user()
        before = utc_now()
        client.headers["User-Agent"] = FIREFOX
        pair = (await log_in(client, ada)).json()

        (session,) = (await client.get(SESSIONS, headers=bearer(pair["access_token"]))).json()

        times = {name: datetime.fromisoformat(session.pop(name)) for name in ("created_at", "last_used_at")}
        expires_at = datetime.fromisoformat(session.pop("expires_at"))
        assert session == {
            "id": (await who_am_i(client, pair["access_token"])).json()["session_id"],
            "device": "Firefox on Linux",
            "user_agent": FIREFOX,
            "ip": "127.0.0.1",
            "has_mfa": False,
            "is_current": True,
        }
        assert all(before <= time <= utc_now() for time in times.values())
        assert timedelta(days=29) < expires_at - utc_now() <= timedelta(days=30)

    async def test_knows_no_device_of_a_client_that_does_not_say_what_it_is(self, client: AsyncClient) -> None:
        ada = await make_user()
        client.headers["User-Agent"] = ""
        pair = (await log_in(client, ada)).json()

        (session,) = (await client.get(SESSIONS, headers=bearer(pair["access_token"]))).json()

        assert (session["device"], session["user_agent"]) == (None, None)

    async def test_marks_the_one_that_asks(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)

        marks = []
        for asking in (ada, elsewhere):
            rows = (await client.get(SESSIONS, headers=asking.headers)).json()
            marks.append({row["id"]: row["is_current"] for row in rows})

        first, second = str(ada.session.id), str(elsewhere.session.id)
        assert marks == [{first: True, second: False}, {first: False, second: True}]

    async def test_moves_last_used_at_with_each_refresh(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        long_ago = utc_now() - timedelta(days=3)
        await Session.find_one({"_id": ada.session.id}).update({"$set": {"last_used_at": long_ago}})

        await refresh(client, ada.refresh_token)

        (session,) = (await client.get(SESSIONS, headers=ada.headers)).json()
        assert utc_now() - datetime.fromisoformat(session["last_used_at"]) < timedelta(minutes=1)

    async def test_leaves_out_the_expired(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await sign_in(ada, expires_at=utc_now() - timedelta(seconds=1))

        rows = (await client.get(SESSIONS, headers=ada.headers)).json()

        assert [row["id"] for row in rows] == [str(ada.session.id)]

    async def test_holds_ones_own_only_whatever_the_role(self, client: AsyncClient) -> None:
        await make_signed_in()
        root = await make_signed_in(role=Role.SUPERUSER)

        rows = (await client.get(SESSIONS, headers=root.headers)).json()

        assert [row["id"] for row in rows] == [str(root.session.id)]

    async def test_is_paged_newest_first_without_the_expired(self, client: AsyncClient) -> None:
        user = await make_user()
        made = []
        for number in range(5):
            expired = utc_now() - timedelta(seconds=1)
            made.append(await sign_in(user, expires_at=expired if number == 2 else None))
        headers = made[0].headers

        pages, url = [], f"{SESSIONS}?limit=2"
        while url:
            response = await client.get(url, headers=headers)
            pages.append([row["id"] for row in response.json()])
            url = response.links.get("next", {}).get("url", "")

        ids = [str(session.session.id) for session in made]
        assert pages == [[ids[4], ids[3]], [ids[1], ids[0]]]

    async def test_refuses_the_cursor_of_another(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        await sign_in(ada)
        link = (await client.get(f"{SESSIONS}?limit=1", headers=ada.headers)).links["next"]["url"]

        assert outcome(await client.get(link, headers=bob.headers)) == (400, "invalid_cursor")
        assert outcome(await client.get(link, headers=ada.headers)) == (200, None)

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=many"])
    async def test_refuses_a_limit_out_of_range(self, client: AsyncClient, query: str) -> None:
        ada = await make_signed_in()

        response = await client.get(f"{SESSIONS}?{query}", headers=ada.headers)

        assert outcome(response) == (422, "validation_error")

    async def test_shows_nothing_that_could_be_used(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        text = (await client.get(SESSIONS, headers=ada.headers)).text

        assert "digest" not in text
        assert ada.session.refresh_digest.hex() not in text
        assert ada.refresh_token.partition(".")[2] not in text


class TestEnd:
    async def test_ends_another_session_with_both_its_tokens_at_once(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)
        assert (await who_am_i(warm_client, elsewhere.access_token)).status_code == 200

        response = await warm_client.delete(f"{SESSIONS}/{elsewhere.session.id}", headers=ada.headers)

        assert (response.status_code, response.content) == (204, b"")
        assert outcome(await who_am_i(warm_client, elsewhere.access_token)) == (401, "token_revoked")
        assert outcome(await refresh(warm_client, elsewhere.refresh_token)) == (401, "token_revoked")
        assert (await who_am_i(warm_client, ada.access_token)).status_code == 200

    async def test_ends_the_one_in_use_too(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await client.delete(f"{SESSIONS}/{ada.session.id}", headers=ada.headers)

        assert response.status_code == 204
        assert outcome(await who_am_i(client, ada.access_token)) == (401, "token_revoked")

    async def test_does_not_find_it_a_second_time(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)
        await client.delete(f"{SESSIONS}/{elsewhere.session.id}", headers=ada.headers)

        response = await client.delete(f"{SESSIONS}/{elsewhere.session.id}", headers=ada.headers)

        assert outcome(response) == (404, "not_found")
        assert len(await events("session:ended")) == 1

    @pytest.mark.parametrize("role", [Role.USER, Role.ADMIN, Role.SUPERUSER])
    async def test_does_not_find_the_session_of_another(self, client: AsyncClient, role: Role) -> None:
        ada, bob = await make_signed_in(), await make_signed_in(role=role)

        response = await client.delete(f"{SESSIONS}/{ada.session.id}", headers=bob.headers)

        assert outcome(response) == (404, "not_found")
        assert (await who_am_i(client, ada.access_token)).status_code == 200

    @pytest.mark.parametrize("session_id", [NO_SUCH_ID, "zebra", "6746d0a8", "%24gt", "null"])
    async def test_does_not_find_what_is_no_id_of_a_session(self, client: AsyncClient, session_id: str) -> None:
        ada = await make_signed_in()

        response = await client.delete(f"{SESSIONS}/{session_id}", headers=ada.headers)

        assert outcome(response) == (404, "not_found")

    async def test_is_recorded(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)

        await client.delete(f"{SESSIONS}/{elsewhere.session.id}", headers=ada.headers)

        (event,) = await events("session:ended")
        assert (event.actor.id, event.target.kind, event.target.id) == (ada.id, "session", elsewhere.session.id)


async def begin(user: SignedInUser, **ago: float) -> None:
    """Let the session have begun so long ago."""
    await Session.find_one({"_id": user.session.id}).update({"$set": {"created_at": utc_now() - timedelta(**ago)}})


class TestAbsoluteEnd:
    async def test_comes_ninety_days_after_the_beginning_however_often_it_was_refreshed(
        self, client: AsyncClient
    ) -> None:
        ada = await make_signed_in()
        token, lives = ada.refresh_token, []
        for days in (59, 61, 89):
            await begin(ada, days=days)
            pair = (await refresh(client, token)).json()
            token = pair["refresh_token"]
            (row,) = (await client.get(SESSIONS, headers=bearer(pair["access_token"]))).json()
            left = datetime.fromisoformat(row["expires_at"]) - utc_now()
            lives.append((round(pair["refresh_expires_in"] / 86400, 2), round(left / timedelta(days=1), 2)))
        await begin(ada, days=90)

        assert lives == [(30, 30), (29, 29), (1, 1)]
        assert outcome(await refresh(client, token)) == (401, "token_revoked")

    async def test_comes_as_the_setting_says_at_once_and_also_for_those_that_live(self, serve: Serve) -> None:
        ada_ends, new_ends = [], []
        for days in (5, 3):
            async with serve(session_max_days=days) as client:
                ada = await make_signed_in()
                await begin(ada, days=4)
                ada_ends.append(outcome(await refresh(client, ada.refresh_token)))
                new_ends.append((await log_in(client, ada)).json()["refresh_expires_in"])

        assert ada_ends == [(200, None), (401, "token_revoked")]
        assert new_ends == [432000, 259200]

    async def test_is_told_by_a_repeated_answer_too(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await begin(ada, days=89)

        pairs = [(await refresh(client, ada.refresh_token)).json() for _ in range(2)]

        assert pairs[0]["refresh_token"] == pairs[1]["refresh_token"]
        assert [round(pair["refresh_expires_in"] / 60) for pair in pairs] == [1440, 1440]

    async def test_is_the_end_of_the_access_token(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await begin(ada, days=89, hours=23, minutes=50)

        pair = (await refresh(client, ada.refresh_token)).json()

        claims = jwt.decode(pair["access_token"], options={"verify_signature": False})
        assert 598 <= pair["expires_in"] <= pair["refresh_expires_in"] <= 600
        assert abs(claims["exp"] - utc_now().timestamp() - 600) <= 2

    async def test_lets_no_repeated_answer_by(self, serve: Serve) -> None:
        async with serve() as client:
            ada = await make_signed_in()
            await refresh(client, ada.refresh_token)
            await begin(ada, days=91)

            assert outcome(await refresh(client, ada.refresh_token)) == (401, "token_revoked")


async def make_sessions(user: StoredUser, count: int, *, expires_at: datetime | None = None) -> list[SignedInUser]:
    """The first was used longest ago, though it was begun last."""
    made = []
    for number in reversed(range(count)):
        session = await sign_in(user, expires_at=expires_at)
        used_at = utc_now() - timedelta(hours=count - number)
        await Session.find_one({"_id": session.session.id}).update({"$set": {"last_used_at": used_at}})
        made.append(session)
    return made[::-1]


class TestFiftyOfAUser:
    async def test_give_way_to_the_next_by_the_one_used_longest_ago(self, warm_client: AsyncClient) -> None:
        ada, bob = await make_user(), await make_signed_in()
        sessions = await make_sessions(ada, 50)
        assert (await who_am_i(warm_client, sessions[0].access_token)).status_code == 200

        pair = (await log_in(warm_client, ada)).json()

        alive = [(await who_am_i(warm_client, each.access_token)).status_code for each in sessions]
        assert alive == [401] + [200] * 49
        assert outcome(await refresh(warm_client, sessions[0].refresh_token)) == (401, "token_revoked")
        assert (await who_am_i(warm_client, pair["access_token"])).status_code == 200
        assert (await who_am_i(warm_client, bob.access_token)).status_code == 200
        (event,) = await events("sessions:ended")
        assert (event.actor.id, event.target.id, event.details) == (ada.id, ada.id, {"count": 1, "reason": "too many"})

    async def test_may_be_there(self, client: AsyncClient) -> None:
        ada = await make_user()
        await make_sessions(ada, 49)
        await make_sessions(ada, 3, expires_at=utc_now() - timedelta(seconds=1))

        await log_in(client, ada)

        assert await Session.find({"user_id": ada.id, "expires_at": {"$gt": utc_now()}}).count() == 50
        assert await events("sessions:ended") == []

    async def test_are_left_of_many_more(self, client: AsyncClient) -> None:
        ada = await make_user()
        sessions = await make_sessions(ada, 60)
        same = sessions[8].session.id, sessions[12].session.id  # those that were used at the same time are no exception
        used_at = utc_now() - timedelta(hours=50)
        await Session.find({"_id": {"$in": same}}).update({"$set": {"last_used_at": used_at}})

        await log_in(client, ada)

        assert await Session.find({"user_id": ada.id}).count() == 50
        (event,) = await events("sessions:ended")
        assert event.details["count"] == 11

    async def test_are_left_by_many_who_sign_in_at_the_same_time(self, client: AsyncClient) -> None:
        ada = await make_user()
        await make_sessions(ada, 48)

        responses = await asyncio.gather(*(log_in(client, ada) for _ in range(4)))

        assert [response.status_code for response in responses] == [200] * 4
        assert await Session.find({"user_id": ada.id}).count() == 50
        for response in responses:
            assert (await who_am_i(client, response.json()["access_token"])).status_code == 200

    async def test_stay_when_the_sign_in_fails(self, client: AsyncClient) -> None:
        ada = await make_user()
        await make_sessions(ada, 50)

        assert (await log_in(client, ada, "a wrong password")).status_code == 401
        async with no_event_can_be_written():
            assert (await log_in(client, ada)).status_code == 500

        assert await Session.find({"user_id": ada.id}).count() == 50


class TestWhoMay:
    @pytest.mark.parametrize(("method", "path"), [("GET", SESSIONS), ("DELETE", f"{SESSIONS}/{NO_SUCH_ID}")])
    async def test_asks_for_a_credential(self, client: AsyncClient, method: str, path: str) -> None:
        assert outcome(await client.request(method, path)) == (401, "not_authenticated")

    @pytest.mark.parametrize("scope", ["admin", "read", "write"])
    async def test_refuses_keys_whoever_owns_them(self, client: AsyncClient, scope: str) -> None:
        ada = await make_signed_in(role=Role.ADMIN)
        for key in (await make_api_key(scope), await make_api_key(scope, owner=ada)):
            listed = await client.get(SESSIONS, headers=key.headers)
            ended = await client.delete(f"{SESSIONS}/{ada.session.id}", headers=key.headers)

            assert outcome(listed) == outcome(ended) == (403, "forbidden")
        assert (await who_am_i(client, ada.access_token)).status_code == 200


class TestLogOutEverywhere:
    async def test_leaves_none_in_the_list_of_the_next_session(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)
        await warm_client.post(f"{AUTH}/logout-all", headers=ada.headers)

        pair = (await log_in(warm_client, ada)).json()

        rows = (await warm_client.get(SESSIONS, headers=bearer(pair["access_token"]))).json()
        assert [row["is_current"] for row in rows] == [True]
        for token in (ada.access_token, elsewhere.access_token):
            assert outcome(await who_am_i(warm_client, token)) == (401, "token_revoked")


async def change_own_password(client: AsyncClient, user: SignedInUser) -> Response:
    body = {"current_password": user.password, "password": "quartz-Lemon-17-violin"}
    return await client.post(f"{AUTH}/password/change", json=body, headers=user.headers)


async def patch_own_password(client: AsyncClient, user: SignedInUser) -> Response:
    body = {"current_password": user.password, "password": "quartz-Lemon-17-violin"}
    return await client.patch(f"{USERS}/me", json=body, headers=user.headers)


async def delete_oneself(client: AsyncClient, user: SignedInUser) -> Response:
    body = {"current_password": user.password}
    return await client.request("DELETE", f"{USERS}/me", json=body, headers=user.headers)


async def changed_by_root(client: AsyncClient, user: SignedInUser, body: dict[str, object] | None) -> Response:
    root = await make_signed_in(role=Role.SUPERUSER)
    method = "DELETE" if body is None else "PATCH"
    return await client.request(method, f"{USERS}/{user.id}", json=body, headers=root.headers)


async def be_deactivated(client: AsyncClient, user: SignedInUser) -> Response:
    return await changed_by_root(client, user, {"is_active": False})


async def be_deleted(client: AsyncClient, user: SignedInUser) -> Response:
    return await changed_by_root(client, user, None)


async def be_given_another_password(client: AsyncClient, user: SignedInUser) -> Response:
    return await changed_by_root(client, user, {"password": "quartz-Lemon-17-violin"})


class TestChangeOfTheUser:
    @pytest.mark.parametrize("change", [change_own_password, patch_own_password])
    async def test_of_its_own_password_ends_all_but_the_session_in_use(
        self, warm_client: AsyncClient, change: Act
    ) -> None:
        ada = await make_signed_in()
        elsewhere, bob = await sign_in(ada), await make_signed_in()
        assert (await who_am_i(warm_client, elsewhere.access_token)).status_code == 200

        assert (await change(warm_client, ada)).is_success

        assert outcome(await who_am_i(warm_client, elsewhere.access_token)) == (401, "token_revoked")
        assert outcome(await refresh(warm_client, elsewhere.refresh_token)) == (401, "token_revoked")
        assert (await who_am_i(warm_client, ada.access_token)).status_code == 200
        assert (await refresh(warm_client, ada.refresh_token)).status_code == 200
        assert (await who_am_i(warm_client, bob.access_token)).status_code == 200

    @pytest.mark.parametrize("act", [delete_oneself, be_deactivated, be_deleted, be_given_another_password])
    async def test_that_takes_the_account_away_ends_every_session_at_once(
        self, warm_client: AsyncClient, act: Act
    ) -> None:
        ada = await make_signed_in()
        elsewhere = await sign_in(ada)
        for session in (ada, elsewhere):
            assert (await who_am_i(warm_client, session.access_token)).status_code == 200

        assert (await act(warm_client, ada)).is_success

        for session in (ada, elsewhere):
            assert outcome(await who_am_i(warm_client, session.access_token)) == (401, "token_revoked")
            assert outcome(await refresh(warm_client, session.refresh_token)) == (401, "token_revoked")

    async def test_to_inactive_and_back_revives_no_session(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        await be_deactivated(warm_client, ada)

        await changed_by_root(warm_client, ada, {"is_active": True})

        assert outcome(await who_am_i(warm_client, ada.access_token)) == (401, "token_revoked")
        assert (await log_in(warm_client, ada)).status_code == 200

    async def test_to_a_higher_role_reaches_the_sessions_that_live(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in()
        assert outcome(await warm_client.get(USERS, headers=ada.headers)) == (403, "insufficient_scope")

        await changed_by_root(warm_client, ada, {"role": "admin"})

        assert (await warm_client.get(USERS, headers=ada.headers)).status_code == 200
        assert (await who_am_i(warm_client, ada.access_token)).json()["role"] == "admin"

    async def test_to_a_lower_role_reaches_the_sessions_that_live(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in(role=Role.ADMIN)
        assert (await warm_client.get(USERS, headers=ada.headers)).status_code == 200

        await changed_by_root(warm_client, ada, {"role": "user"})

        assert outcome(await warm_client.get(USERS, headers=ada.headers)) == (403, "insufficient_scope")
        assert "admin" not in (await who_am_i(warm_client, ada.access_token)).json()["scopes"]

    async def test_of_its_name_is_known_to_the_sessions_that_live(self, warm_client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada")
        assert (await who_am_i(warm_client, ada.access_token)).json()["name"] == "ada"

        await warm_client.patch(f"{USERS}/me", json={"username": "countess"}, headers=ada.headers)

        assert (await who_am_i(warm_client, ada.access_token)).json()["name"] == "countess"
