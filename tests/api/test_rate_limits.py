from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response

from app.api import json_stream
from app.core.config import Settings
from app.core.rate_limit import MemoryRateLimiter
from app.core.scopes import Role
from app.main import create_app
from app.models.audit_event import AuditEvent
from tests.api.test_errors import assert_problem
from tests.conftest import SECRET, client_of, running
from tests.factories import PASSWORD, make_api_key, make_conversation, make_messages, make_signed_in, sign_in

LOGIN = {"email": "nobody@example.com", "password": "wrong-Password-1"}
WINDOW_STARTS = 1_800_000_000


class Clock:
    """Ten seconds into a minute, until somebody turns it."""

    now = WINDOW_STARTS + 10.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Limited:
    """The application whose limits go by that clock."""

    app: FastAPI
    clock: Clock

    def client(self, address: str = "192.0.2.1") -> AsyncClient:
        return client_of(self.app, address)


Limit = Callable[..., AbstractAsyncContextManager[Limited]]


@pytest.fixture
def limit(make_settings: Callable[..., Settings]) -> Limit:
    """Serve with limits of the test's own.

    `async with limit(rate_limit_auth="3/minute") as limited: ...`
    """

    @asynccontextmanager
    async def start(**overrides: Any) -> AsyncIterator[Limited]:
        app, clock = create_app(make_settings(**overrides)), Clock()
        app.state.rate_limiter = MemoryRateLimiter(clock)
        async with running(app):
            yield Limited(app, clock)

    return start


def statuses(responses: list[Response]) -> list[int]:
    return [response.status_code for response in responses]


class TestDefaults:
    async def test_are_those_of_the_contract(self, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for purpose in ("ANONYMOUS", "AUTH", "KEY_CREATE", "AUTHENTICATED"):
            monkeypatch.delenv(f"RATE_LIMIT_{purpose}", raising=False)
        settings = Settings(
            _env_file=None, environment="test", database_url=database_url, secret_key=SECRET, bcrypt_rounds=4
        )
        app = create_app(settings)
        async with running(app), client_of(app) as client:
            ada = await make_signed_in()
            body = {"name": "ci", "scopes": ["read"]}

            anonymous = await client.get("/")
            login = await client.post("/api/v1/auth/login", json=LOGIN)
            authenticated = await client.get("/api/v1/auth/me", headers=ada.headers)
            created = await client.post("/api/v1/api-keys", headers=ada.headers, json=body)

        shown = [answer.headers["x-ratelimit-limit"] for answer in (anonymous, login, authenticated, created)]
        assert shown == ["100", "10", "1000", "5"]


class TestRefusal:
    async def test_says_when_to_come_back(self, limit: Limit) -> None:
        async with limit(rate_limit_anonymous="1/minute") as limited, limited.client() as client:
            await client.get("/")
            response = await client.get("/")

        assert_problem(response, 429, "rate_limited")
        assert response.headers["retry-after"] == "50"
        assert response.headers["x-ratelimit-limit"] == "1"
        assert response.headers["x-ratelimit-remaining"] == "0"
        assert response.headers["x-ratelimit-reset"] == str(WINDOW_STARTS + 60)

    async def test_ends_with_the_window(self, limit: Limit) -> None:
        async with limit(rate_limit_anonymous="1/minute") as limited, limited.client() as client:
            first, refused = await client.get("/"), await client.get("/")
            limited.clock.now = WINDOW_STARTS + 59.9
            still_refused = await client.get("/")
            limited.clock.now = WINDOW_STARTS + 60
            freed, refused_again = await client.get("/"), await client.get("/")

        assert statuses([first, refused, still_refused, freed, refused_again]) == [200, 429, 429, 200, 429]
        assert still_refused.headers["retry-after"] == "1"
        assert freed.headers["x-ratelimit-reset"] == str(WINDOW_STARTS + 120)


class TestAnonymous:
    async def test_are_counted_by_address(self, limit: Limit) -> None:
        async with limit(rate_limit_anonymous="2/minute") as limited:
            one, other = limited.client("192.0.2.1"), limited.client("2001:db8::1")
            of_one = [await one.get("/") for _ in range(3)]
            of_other = [await other.get("/") for _ in range(3)]

        assert statuses(of_one) == statuses(of_other) == [200, 200, 429]

    async def test_have_one_budget_for_everything(self, limit: Limit) -> None:
        async with limit(rate_limit_anonymous="2/minute") as limited, limited.client() as client:
            responses = [
                await client.get("/"),
                await client.get("/api/v1/users/username/nobody"),
                await client.get("/api/v1/conversations"),
            ]

        assert statuses(responses) == [200, 404, 429]

    async def test_are_also_those_who_register(self, limit: Limit) -> None:
        async with limit(rate_limit_anonymous="1/minute") as limited, limited.client() as client:
            responses = [
                await client.post("/api/v1/users", json={"email": f"{name}@example.com", "password": PASSWORD})
                for name in ("ada", "bob")
            ]

        assert statuses(responses) == [201, 429]

    async def test_are_seen_at_one_address_in_both_notations(self, limit: Limit) -> None:
        async with limit(rate_limit_anonymous="1/minute") as limited:
            first = await limited.client("192.0.2.1").get("/")
            second = await limited.client("::ffff:192.0.2.1").get("/")

        assert statuses([first, second]) == [200, 429]

    async def test_of_ipv6_are_counted_by_the_network_that_one_customer_is_given(self, limit: Limit) -> None:
        async with limit(rate_limit_anonymous="2/minute") as limited:
            addresses = ("2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:3::1")
            responses = [await limited.client(address).get("/") for address in addresses]

        assert statuses(responses) == [200, 200, 429, 200]


class TestPresentedCredentials:
    @pytest.mark.parametrize(
        ("path", "body", "refused_as"),
        [
            ("/auth/login", {"json": LOGIN}, 401),
            ("/auth/token", {"data": {"grant_type": "password", "username": "nobody", "password": "wrong"}}, 401),
            ("/auth/refresh", {"json": {"refresh_token": "nonsense"}}, 401),
            ("/auth/login", {"json": {}}, 422),
        ],
    )
    async def test_are_refused_after_as_many_as_allowed(
        self, limit: Limit, path: str, body: dict[str, Any], refused_as: int
    ) -> None:
        async with limit(rate_limit_auth="3/minute") as limited, limited.client() as client:
            responses = [await client.post(f"/api/v1{path}", **body) for _ in range(4)]

        assert statuses(responses) == [refused_as] * 3 + [429]

    async def test_are_refused_even_when_they_are_right(self, limit: Limit) -> None:
        async with limit(rate_limit_auth="1/minute") as limited, limited.client() as client:
            ada = await make_signed_in()
            account = {"email": ada.document.email, "password": ada.password}

            responses = [await client.post("/api/v1/auth/login", json=account) for _ in range(2)]

        assert statuses(responses) == [200, 429]

    async def test_share_one_budget_by_address(self, limit: Limit) -> None:
        async with limit(rate_limit_auth="3/minute") as limited:
            client, other = limited.client("192.0.2.1"), limited.client("192.0.2.2")
            responses = [
                await client.post("/api/v1/auth/login", json=LOGIN),
                await client.post("/api/v1/auth/refresh", json={"refresh_token": "nonsense"}),
                await client.get("/api/v1/auth/me", headers={"Authorization": "Bearer nonsense"}),
                await client.get("/api/v1/auth/me", headers={"Octopus-API-Key": "nonsense"}),
            ]
            elsewhere = await other.post("/api/v1/auth/login", json=LOGIN)

        assert statuses(responses) == [401, 401, 401, 429]
        assert elsewhere.status_code == 401

    async def test_of_one_ipv6_network_share_one_budget_and_are_recorded_by_address(self, limit: Limit) -> None:
        async with limit(rate_limit_auth="2/minute") as limited:
            addresses = ("2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:2::3")
            responses = [await limited.client(address).post("/api/v1/auth/login", json=LOGIN) for address in addresses]
            events = await AuditEvent.find({"action": "session:refused"}).sort("_id").to_list()

        assert statuses(responses) == [401, 401, 429]
        assert [event.ip for event in events] == ["2001:db8:1:2::1", "2001:db8:1:2::2"]

    async def test_are_counted_when_they_are_a_bootstrap_token(self, limit: Limit) -> None:
        async with limit(rate_limit_auth="2/minute", bootstrap_token="of-the-operator") as limited:
            client = limited.client()
            responses = [await client.post("/bootstrap", headers={"X-Bootstrap-Token": "guess"}) for _ in range(3)]

        assert statuses(responses) == [401, 401, 429]


class TestRejectedCredentials:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer nonsense"},
            {"Authorization": "Basic YWRhOng="},
            {"Octopus-API-Key": "nonsense"},
            {"Octopus-API-Key": "octopus_AAAAAAAA_" + "A" * 38},
        ],
        ids=["token", "scheme", "key", "likely key"],
    )
    async def test_turn_into_a_refusal(self, limit: Limit, headers: dict[str, str]) -> None:
        async with limit(rate_limit_auth="2/minute") as limited, limited.client() as client:
            responses = [await client.get("/api/v1/conversations", headers=headers) for _ in range(3)]

        assert statuses(responses) == [401, 401, 429]
        assert_problem(responses[2], 429, "rate_limited")

    async def test_leave_good_ones_of_the_same_address_alone(self, limit: Limit) -> None:
        async with limit(rate_limit_auth="1/minute") as limited, limited.client() as client:
            ada = await make_signed_in()
            for _ in range(3):
                await client.get("/api/v1/auth/me", headers={"Octopus-API-Key": "nonsense"})

            response = await client.get("/api/v1/auth/me", headers=ada.headers)

        assert response.status_code == 200

    @pytest.mark.parametrize("kind", ["ended session", "expired key", "inactive key", "foreign address"])
    async def test_are_counted_when_they_were_good_once(self, limit: Limit, kind: str) -> None:
        async with limit(rate_limit_auth="2/minute", rate_limit_authenticated="2/minute") as limited:
            client, headers = limited.client(), await _spent_credential(kind)

            responses = [await client.get("/api/v1/auth/me", headers=headers) for _ in range(3)]

        assert [status in {401, 403} for status in statuses(responses)] == [True, True, False]
        assert_problem(responses[2], 429, "rate_limited")


async def _spent_credential(kind: str) -> dict[str, str]:
    if kind == "ended session":
        ada = await make_signed_in()
        await ada.session.delete()
        return ada.headers
    if kind == "expired key":
        ada = await make_signed_in()
        return (await make_api_key("read", expires_at=ada.document.created_at)).headers
    if kind == "inactive key":
        return (await make_api_key("read", is_active=False)).headers
    return (await make_api_key("read", allowed_ips=["198.51.100.0/24"])).headers


class TestEveryRequest:
    @pytest.mark.parametrize("kind", ["broken json", "wrong type", "both credentials", "unknown path", "wrong method"])
    async def test_is_counted_however_it_is_refused(self, limit: Limit, kind: str) -> None:
        async with limit(rate_limit_anonymous="2/minute", rate_limit_auth="2/minute") as limited:
            client = limited.client()

            responses = [await _refused(client, kind) for _ in range(3)]

        assert responses[0].status_code != 429
        assert_problem(responses[2], 429, "rate_limited")


async def _refused(client: AsyncClient, kind: str) -> Response:
    if kind == "broken json":
        return await client.post("/api/v1/auth/login", content="{", headers={"Content-Type": "application/json"})
    if kind == "wrong type":
        return await client.post("/api/v1/auth/login", content="{}", headers={"Content-Type": "text/plain"})
    if kind == "both credentials":
        return await client.get("/api/v1/auth/me", headers={"Authorization": "Bearer x", "Octopus-API-Key": "x"})
    if kind == "unknown path":
        return await client.get("/wp-login.php")
    return await client.put("/api/v1/auth/login")


class TestKeyCreation:
    async def test_is_counted_by_principal(self, limit: Limit) -> None:
        async with limit(rate_limit_key_create="2/minute") as limited, limited.client() as client:
            ada, bob = await make_signed_in(), await make_signed_in()
            body = {"name": "ci", "scopes": ["read"]}

            of_ada = [await client.post("/api/v1/api-keys", headers=ada.headers, json=body) for _ in range(3)]
            of_bob = await client.post("/api/v1/api-keys", headers=bob.headers, json=body)
            kept = await client.get("/api/v1/api-keys", headers=ada.headers)

        assert statuses(of_ada) == [201, 201, 429]
        assert of_bob.status_code == 201
        assert len(kept.json()) == 2

    async def test_leaves_other_requests_alone(self, limit: Limit) -> None:
        async with limit(rate_limit_key_create="1/minute") as limited, limited.client() as client:
            ada = await make_signed_in()
            for _ in range(3):
                await client.post("/api/v1/api-keys", headers=ada.headers, json={"name": "ci", "scopes": ["read"]})

            response = await client.get("/api/v1/api-keys", headers=ada.headers)

        assert response.status_code == 200


class TestAuthenticated:
    async def test_are_counted_by_principal_at_one_address(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="2/minute") as limited, limited.client() as client:
            ada, bob = await make_signed_in(), await make_signed_in()

            of_ada = [await client.get("/api/v1/auth/me", headers=ada.headers) for _ in range(3)]
            of_bob = [await client.get("/api/v1/auth/me", headers=bob.headers) for _ in range(3)]

        assert statuses(of_ada) == statuses(of_bob) == [200, 200, 429]

    async def test_are_counted_together_at_all_addresses_and_in_all_sessions(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="2/minute") as limited:
            ada = await make_signed_in()
            again = await sign_in(ada)

            responses = [
                await limited.client("192.0.2.1").get("/api/v1/auth/me", headers=ada.headers),
                await limited.client("192.0.2.2").get("/api/v1/auth/me", headers=ada.headers),
                await limited.client("192.0.2.3").get("/api/v1/auth/me", headers=again.headers),
            ]

        assert statuses(responses) == [200, 200, 429]

    async def test_do_not_spend_the_anonymous_budget(self, limit: Limit) -> None:
        async with limit(rate_limit_anonymous="1/minute") as limited, limited.client() as client:
            ada = await make_signed_in()

            responses = [await client.get("/api/v1/auth/me", headers=ada.headers) for _ in range(3)]
            anonymous = await client.get("/")

        assert statuses([*responses, anonymous]) == [200] * 4

    async def test_by_a_key_have_a_budget_of_their_own(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="1/minute") as limited, limited.client() as client:
            ada = await make_signed_in()
            key = await make_api_key("read", owner=ada)

            responses = [
                await client.get("/api/v1/auth/me", headers=ada.headers),
                await client.get("/api/v1/auth/me", headers=key.headers),
                await client.get("/api/v1/auth/me", headers=key.headers),
            ]

        assert statuses(responses) == [200, 200, 429]

    @pytest.mark.parametrize(("own", "allowed"), [("1/minute", 1), ("4/minute", 4), ("3/hour", 3)])
    async def test_by_a_key_follow_its_own_rate(self, limit: Limit, own: str, allowed: int) -> None:
        async with limit(rate_limit_authenticated="2/minute") as limited, limited.client() as client:
            key = await make_api_key("read", rate_limit=own)

            responses = [await client.get("/api/v1/auth/me", headers=key.headers) for _ in range(allowed + 1)]

        assert statuses(responses) == [200] * allowed + [429]
        assert responses[0].headers["x-ratelimit-limit"] == str(allowed)


class TestHeaders:
    async def test_are_on_every_answer(self, limit: Limit) -> None:
        async with limit() as limited, limited.client() as client:
            ada, bob = await make_signed_in(), await make_signed_in()
            theirs = await make_conversation(bob)
            answers = {
                200: await client.get("/api/v1/auth/me", headers=ada.headers),
                201: await client.post("/api/v1/conversations", headers=ada.headers, json={}),
                204: await client.post("/api/v1/auth/logout-all", headers=bob.headers),
                401: await client.get("/api/v1/auth/me"),
                403: await client.get("/api/v1/users", headers=ada.headers),
                404: await client.get(f"/api/v1/conversations/{theirs.id}", headers=ada.headers),
                422: await client.post("/api/v1/conversations", headers=ada.headers, json={"a": 1}),
            }

        assert [answer.status_code for answer in answers.values()] == list(answers)
        for answer in answers.values():
            assert int(answer.headers["x-ratelimit-remaining"]) < int(answer.headers["x-ratelimit-limit"])
            assert answer.headers["x-ratelimit-reset"] == str(WINDOW_STARTS + 60)

    async def test_are_on_an_answer_that_is_streamed(self, limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(json_stream, "CHUNK_BYTES", 100)
        async with limit() as limited, limited.client() as client:
            ada = await make_signed_in()
            await make_messages(await make_conversation(ada), 20, by=ada)

            answers = [await client.get("/api/v1/users/me/export", headers=ada.headers) for _ in range(11)]

        assert statuses(answers) == [200] * 10 + [429]
        names = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
        shown = [[answer.headers.get_list(name) for name in names] for answer in answers]
        assert shown == [[["10"], [left], [str(WINDOW_STARTS + 3600)]] for left in [*"9876543210", "0"]]

    async def test_count_down(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="3/minute") as limited, limited.client() as client:
            admin = await make_signed_in(role=Role.ADMIN)

            responses = [await client.get("/api/v1/users", headers=admin.headers) for _ in range(4)]

        assert [response.headers["x-ratelimit-remaining"] for response in responses] == ["2", "1", "0", "0"]
        assert [response.headers.get_list("x-ratelimit-limit") for response in responses] == [["3"]] * 4


class TestForwardedAddress:
    @pytest.mark.parametrize("trusted", [(), ("198.51.100.0/24",)])
    async def test_changes_nothing_when_the_peer_is_not_trusted(self, limit: Limit, trusted: tuple[str, ...]) -> None:
        async with limit(rate_limit_anonymous="2/minute", trusted_proxies=trusted) as limited:
            client = limited.client("192.0.2.1")
            responses = [
                await client.get("/", headers={"X-Forwarded-For": f"203.0.113.{number}"}) for number in range(3)
            ]

        assert statuses(responses) == [200, 200, 429]

    async def test_is_the_last_hop_that_no_trusted_proxy_wrote(self, limit: Limit) -> None:
        chains = ["203.0.113.7", "8.8.8.8, 203.0.113.7", "9.9.9.9, 203.0.113.7, 198.51.100.9", "203.0.113.8"]
        async with limit(rate_limit_anonymous="2/minute", trusted_proxies=("198.51.100.0/24",)) as limited:
            client = limited.client("198.51.100.1")
            responses = [await client.get("/", headers={"X-Forwarded-For": chain}) for chain in chains]

        assert statuses(responses) == [200, 200, 429, 200]

    async def test_counts_over_several_headers(self, limit: Limit) -> None:
        async with limit(rate_limit_anonymous="1/minute", trusted_proxies=("198.51.100.1",)) as limited:
            client = limited.client("198.51.100.1")
            first = await client.get("/", headers=[("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-For", "203.0.113.7")])
            second = await client.get("/", headers={"X-Forwarded-For": "203.0.113.7"})

        assert statuses([first, second]) == [200, 429]


class TestSecretsInsideOfRequests:
    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    async def test_are_not_even_tried_once_the_budget_is_spent(self, limit: Limit, method: str) -> None:
        async with limit(rate_limit_auth="2/minute") as limited, limited.client() as client:
            ada = await make_signed_in()
            body = {"email": "new@example.com"} if method == "PATCH" else {}
            guesses = [
                await client.request(
                    method, "/api/v1/users/me", headers=ada.headers, json=body | {"current_password": guess}
                )
                for guess in ("wrong", "wrong", PASSWORD)
            ]
            still_there = await client.get("/api/v1/users/me", headers=ada.headers)

        assert statuses(guesses) == [401, 401, 429]
        assert still_there.json()["email"] == ada.document.email

    async def test_are_bootstrap_tokens_too(self, limit: Limit) -> None:
        async with limit(rate_limit_auth="2/minute", bootstrap_token="the-token-of-the-operator") as limited:
            client = limited.client()
            guesses = [
                await client.post("/bootstrap", headers={"X-Bootstrap-Token": guess})
                for guess in ("wrong", "wrong", "the-token-of-the-operator")
            ]

        assert statuses(guesses) == [401, 401, 429]


class TestOwnRateOfAKey:
    async def test_widens_no_personal_key(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="2/minute") as limited, limited.client() as client:
            ada = await make_signed_in()
            key = await make_api_key("read", owner=ada, rate_limit="1000/second")

            responses = [await client.get("/api/v1/auth/me", headers=key.headers) for _ in range(3)]

        assert statuses(responses) == [200, 200, 429]

    async def test_takes_the_place_of_the_common_one_for_a_service(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="2/minute") as limited, limited.client() as client:
            key = await make_api_key("read", rate_limit="3/minute")

            responses = [await client.get("/api/v1/auth/me", headers=key.headers) for _ in range(4)]

        assert statuses(responses) == [200, 200, 200, 429]


class TestShownBudget:
    """It is the narrowest that a request has met."""

    async def test_is_of_the_common_rate_when_less_of_it_is_left(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="2/minute") as limited, limited.client() as client:
            key = await make_api_key("read", owner=await make_signed_in(), rate_limit="5/hour")

            answers = [await client.get("/api/v1/auth/me", headers=key.headers) for _ in range(3)]

        assert [shown(answer) for answer in answers] == [
            (200, "2", "1", str(WINDOW_STARTS + 60)),
            (200, "2", "0", str(WINDOW_STARTS + 60)),
            (429, "2", "0", str(WINDOW_STARTS + 60)),
        ]
        assert answers[2].headers["retry-after"] == "50"

    async def test_is_of_the_own_rate_when_less_of_that_is_left(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="5/minute") as limited, limited.client() as client:
            key = await make_api_key("read", owner=await make_signed_in(), rate_limit="1/hour")

            answers = [await client.get("/api/v1/auth/me", headers=key.headers) for _ in range(2)]

        assert [shown(answer)[:3] for answer in answers] == [(200, "1", "0"), (429, "1", "0")]

    async def test_is_of_what_was_spent_first_when_less_of_it_is_left(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="2/minute", rate_limit_key_create="9/minute") as limited:
            client, ada = limited.client(), await make_signed_in()

            answer = await client.post("/api/v1/api-keys", headers=ada.headers, json={"name": "ci", "scopes": ["read"]})

        assert shown(answer)[:3] == (201, "2", "1")

    async def test_is_of_the_one_that_refused(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="2/minute", rate_limit_key_create="1/minute") as limited:
            client, ada = limited.client(), await make_signed_in()
            body = {"name": "ci", "scopes": ["read"]}

            answers = [await client.post("/api/v1/api-keys", headers=ada.headers, json=body) for _ in range(2)]

        assert [shown(answer)[:3] for answer in answers] == [(201, "1", "0"), (429, "1", "0")]

    @pytest.mark.parametrize("kind", ["foreign host", "declared body"])
    async def test_is_on_answers_that_no_route_has_seen(self, limit: Limit, kind: str) -> None:
        async with (
            limit(rate_limit_anonymous="2/minute", trusted_hosts=("test",), max_body_bytes=1024) as limited,
            limited.client() as client,
        ):
            host, content = ("evil.example", b"") if kind == "foreign host" else ("test", b"x" * 1025)
            answers = [
                await client.post("/api/v1/auth/login", headers={"Host": host}, content=content) for _ in range(3)
            ]

        first = 400 if kind == "foreign host" else 413
        assert [shown(answer)[:3] for answer in answers] == [(first, "2", "1"), (first, "2", "0"), (429, "2", "0")]
        assert_problem(answers[2], 429, "rate_limited")

    @pytest.mark.parametrize(("origin", "status"), [("https://app.example", 200), ("https://evil.example", 400)])
    async def test_is_on_no_preflight_for_it_spends_nothing(self, limit: Limit, origin: str, status: int) -> None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        async with limit(rate_limit_anonymous="1/minute", cors_origins=("https://app.example",)) as limited:
            client = limited.client()
            preflights = [await client.options("/api/v1/users", headers=headers) for _ in range(3)]
            after = await client.get("/")

        assert [shown(answer) for answer in preflights] == [(status, None, None, None)] * 3
        assert shown(after)[:3] == (200, "1", "0")

    @pytest.mark.parametrize("host", ["test", "evil.example"])
    async def test_is_on_no_probe_of_health(self, limit: Limit, host: str) -> None:
        async with limit(rate_limit_anonymous="1/minute", trusted_hosts=("test",)) as limited:
            client = limited.client()
            probes = [await client.get("/health/live", headers={"Host": host}) for _ in range(3)]

        assert {shown(answer)[1:] for answer in probes} == {(None, None, None)}
        assert {answer.status_code for answer in probes} == {200 if host == "test" else 400}


def shown(answer: Response) -> tuple[int, str | None, str | None, str | None]:
    limit, left, end = (answer.headers.get(f"x-ratelimit-{name}") for name in ("limit", "remaining", "reset"))
    return answer.status_code, limit, left, end


class TestDocumentation:
    @pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
    async def test_is_counted_as_any_page(self, limit: Limit, path: str) -> None:
        async with limit(rate_limit_anonymous="1/minute") as limited, limited.client() as client:
            responses = [await client.get(path) for _ in range(2)]

        assert statuses(responses) == [200, 429]


class TestRateOfAPlan:
    @pytest.mark.parametrize(("own", "allowed"), [(1, 1), (3, 3)])
    async def test_takes_the_place_of_the_common_one(self, limit: Limit, own: int, allowed: int) -> None:
        async with limit(rate_limit_authenticated="2/minute") as limited, limited.client() as client:
            ada = await make_signed_in(limits={"requests_per_minute": own})

            responses = [await client.get("/api/v1/auth/me", headers=ada.headers) for _ in range(allowed + 1)]

        assert statuses(responses) == [200] * allowed + [429]
        assert responses[0].headers["x-ratelimit-limit"] == str(own)

    @pytest.mark.parametrize(("plan", "rate"), [("free", "2"), ("pro", "3000"), ("enterprise", "10000")])
    async def test_is_that_of_the_owner_for_a_personal_key(self, limit: Limit, plan: str, rate: str) -> None:
        async with limit(rate_limit_authenticated="2/minute") as limited, limited.client() as client:
            ada = await make_signed_in(plan=plan)
            key = await make_api_key("read", owner=ada)

            responses = [await client.get("/api/v1/auth/me", headers=headers) for headers in (ada.headers, key.headers)]

        assert [response.headers["x-ratelimit-limit"] for response in responses] == [rate, rate]

    async def test_stays_the_widest_for_a_personal_key_with_a_rate_of_its_own(self, limit: Limit) -> None:
        async with limit() as limited, limited.client() as client:
            ada = await make_signed_in(limits={"requests_per_minute": 2})
            wide = await make_api_key("read", owner=ada, rate_limit="100/minute")
            narrow = await make_api_key("read", owner=ada, rate_limit="1/minute")

            by_wide = [await client.get("/api/v1/auth/me", headers=wide.headers) for _ in range(3)]
            by_narrow = [await client.get("/api/v1/auth/me", headers=narrow.headers) for _ in range(2)]

        assert statuses(by_wide) == [200, 200, 429]
        assert statuses(by_narrow) == [200, 429]

    async def test_follows_the_plan_at_once(self, limit: Limit) -> None:
        async with limit(rate_limit_authenticated="50/minute") as limited, limited.client() as client:
            ada, admin = await make_signed_in(), await make_signed_in(role=Role.ADMIN)
            key = await make_api_key("read", owner=ada)
            shown = []
            for changes in (
                {},
                {"plan": "pro"},
                {"limits": {"requests_per_minute": 7}},
                {"limits": {}, "plan": "free"},
            ):
                changed = await client.patch(f"/api/v1/admin/users/{ada.id}", headers=admin.headers, json=changes)
                assert changed.status_code == 200
                for headers in (ada.headers, key.headers):
                    response = await client.get("/api/v1/auth/me", headers=headers)
                    shown.append(response.headers["x-ratelimit-limit"])

        assert shown == ["50", "50", "3000", "3000", "7", "7", "50", "50"]
