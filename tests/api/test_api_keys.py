import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import structlog
from bson import json_util
from httpx import AsyncClient, Response

from app.core import background, live_cache
from app.core.clock import utc_now
from app.core.config import Settings
from app.core.rate_limit import MemoryRateLimiter
from app.core.scopes import Role
from app.main import create_app
from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from app.models.outgoing_mail import OutgoingMail
from tests.commands import Commands
from tests.conftest import Serve, client_of, no_event_can_be_written, running
from tests.factories import StoredKey, make_api_key, make_signed_in, make_user
from tests.mailbox import Mailbox, html_of, text_of

API_KEYS = "/api/v1/api-keys"
ME = "/api/v1/auth/me"
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Act(NamedTuple):
    """A request about one key."""

    method: str
    path: str = ""
    body: dict[str, Any] | None = None

    async def on(self, key: StoredKey, client: AsyncClient, headers: dict[str, str] | None = None) -> Response:
        return await client.request(self.method, url_of(key) + self.path, json=self.body, headers=headers)


GET = Act("GET")
ROTATE = Act("POST", "/rotate")
RENAME = Act("PATCH", "", {"name": "new"})
DEACTIVATE = Act("POST", "/deactivate")
ACTIVATE = Act("POST", "/activate")
DELETE = Act("DELETE")
ALL_ACTS = [GET, RENAME, DEACTIVATE, ACTIVATE, ROTATE, DELETE]


def url_of(key: StoredKey) -> str:
    return f"{API_KEYS}/{key.document.id}"


async def create(client: AsyncClient, headers: dict[str, str], **body: Any) -> Response:
    return await client.post(API_KEYS, json={"name": "ci", "scopes": ["read"]} | body, headers=headers)


async def use(client: AsyncClient, key: StoredKey | str) -> Response:
    text = key if isinstance(key, str) else key.text
    return await client.get(ME, headers={"Octopus-API-Key": text})


async def stored(key: StoredKey) -> dict[str, Any] | None:
    found: dict[str, Any] | None = await ApiKey.get_pymongo_collection().find_one({"_id": key.document.id})
    return found


def sealed(body: str) -> str:
    """The text with the checksum that a key ends with: its CRC-32 in base62."""
    value, digits = zlib.crc32(body.encode()), ""
    while len(digits) < 6:
        value, digit = divmod(value, 62)
        digits = BASE62[digit] + digits
    return body + digits


def verdict(response: Response) -> tuple[int, str]:
    return response.status_code, response.json().get("code")


@pytest.fixture
def remembering(client: AsyncClient) -> AsyncClient:
    """The client, of an application that remembers whom it looked up, as it does once it hears of changes."""
    live_cache.hear(60)
    return client


class TestCreate:
    @pytest.mark.parametrize("maker", ["administrator", "superuser", "service"])
    async def test_makes_a_service_key_for_who_administers(self, client: AsyncClient, maker: str) -> None:
        master, admin = await make_api_key("admin"), await make_signed_in(role=Role.ADMIN)
        superuser = await make_signed_in(role=Role.SUPERUSER)
        maker_id, headers = {
            "administrator": (admin.id, admin.headers),
            "superuser": (superuser.id, superuser.headers),
            "service": (master.document.id, master.headers),
        }[maker]

        created = await create(client, headers, scopes=["admin"])

        assert created.status_code == 201
        assert created.json()["owner_id"] is None
        assert created.json()["created_by"] == str(maker_id)
        caller = (await use(client, created.json()["key"])).json()
        assert (caller["kind"], caller["user_id"]) == ("api_key", None)

    @pytest.mark.parametrize("role", [Role.USER, Role.SUPPORT])
    async def test_makes_a_personal_key_for_a_user(self, client: AsyncClient, role: Role) -> None:
        ada = await make_signed_in(role=role)

        created = await create(client, ada.headers)

        assert created.status_code == 201
        assert (created.json()["owner_id"], created.json()["created_by"]) == (str(ada.id), str(ada.id))
        caller = (await use(client, created.json()["key"])).json()
        assert (caller["kind"], caller["user_id"], caller["role"]) == ("api_key", str(ada.id), role)

    async def test_makes_a_personal_key_of_the_same_owner_for_a_personal_key(self, client: AsyncClient) -> None:
        ada = await make_user()
        maker = await make_api_key("api_keys:write", "read", owner=ada)

        created = await create(client, maker.headers)

        assert created.status_code == 201
        assert created.json()["owner_id"] == str(ada.id)
        assert created.json()["created_by"] == str(maker.document.id)

    async def test_gives_a_key_of_the_published_form(self, client: AsyncClient) -> None:
        created = await create(client, (await make_signed_in()).headers)

        text = created.json()["key"]
        assert re.fullmatch(r"octopus_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}", text)
        assert text == sealed(text[:-6])
        assert created.json()["key_id"] == text[8:16]

    async def test_shows_what_it_was_given(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        given = {
            "name": "ci",
            "description": "For the\nbuild",
            "scopes": ["conversations:read", "items:*"],
            "allowed_ips": ["192.0.2.0/24", "2001:db8::/32"],
            "expires_at": "2031-01-01T00:00:00Z",
            "rate_limit": "600/minute",
        }
        created = await create(client, ada.headers, **given)

        assert created.status_code == 201
        assert created.json() | given | {"is_active": True} == created.json()

    async def test_needs_no_more_than_a_name_and_scopes(self, client: AsyncClient) -> None:
        created = await create(client, (await make_signed_in()).headers)

        assert created.status_code == 201
        rest = [created.json()[name] for name in ("description", "allowed_ips", "expires_at", "rate_limit")]
        assert rest == [None, [], None, None]

    async def test_answers_with_what_is_read_later(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        created = (await create(client, ada.headers, expires_at="2031-01-01T00:00:00.123456Z")).json()

        read = await client.get(f"{API_KEYS}/{created['id']}", headers=ada.headers)
        assert read.json() == {name: value for name, value in created.items() if name != "key"}

    async def test_never_shows_the_key_again(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        created = (await create(client, ada.headers)).json()
        url = f"{API_KEYS}/{created['id']}"

        listed = await client.get(API_KEYS, headers=ada.headers)
        changed = await client.patch(url, json={"name": "new"}, headers=ada.headers)
        read = await client.get(url, headers=ada.headers)

        for answer in (listed, changed, read):
            assert created["key_id"] in answer.text
            assert created["key"][17:49] not in answer.text
            assert "hash" not in answer.text

    async def test_leaves_nothing_usable_behind(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        with structlog.testing.capture_logs() as logged:
            created = (await create(client, ada.headers)).json()
            await use(client, created["key"])
        keys = await ApiKey.get_pymongo_collection().find().to_list()
        events = await AuditEvent.get_pymongo_collection().find().to_list()

        for place in (json_util.dumps(keys), json_util.dumps(events), json_util.dumps(logged, default=str)):
            assert created["id"] in place
            assert created["key"][17:49] not in place

    @pytest.mark.parametrize(
        "scopes",
        [["items:read", "conversations:*"], "conversations:*,items:read", " items:read , conversations:*,,items:read"],
        ids=str,
    )
    async def test_takes_scopes_as_a_list_or_in_one_line(self, client: AsyncClient, scopes: Any) -> None:
        ada = await make_signed_in()

        created = await create(client, ada.headers, scopes=scopes)

        assert created.status_code == 201
        assert sorted(created.json()["scopes"]) == ["conversations:*", "items:read"]
        assert (await use(client, created.json()["key"])).json()["scopes"] == [
            "conversations:read",
            "conversations:write",
            "items:read",
        ]

    @pytest.mark.parametrize("blocks", [["192.0.2.0/24", "2001:db8::/32"], "192.0.2.0/24, 2001:db8::/32"], ids=str)
    async def test_takes_addresses_as_a_list_or_in_one_line(self, client: AsyncClient, blocks: Any) -> None:
        created = await create(client, (await make_signed_in()).headers, allowed_ips=blocks)

        assert created.status_code == 201
        assert created.json()["allowed_ips"] == ["192.0.2.0/24", "2001:db8::/32"]

    @pytest.mark.parametrize(
        ("given", "shown"),
        [
            ("2031-01-01T00:00:00", "2031-01-01T00:00:00Z"),
            ("2031-01-01T00:00:00Z", "2031-01-01T00:00:00Z"),
            ("2031-01-01T00:00:00+02:00", "2030-12-31T22:00:00Z"),
        ],
    )
    async def test_takes_a_time_without_an_offset_as_utc(self, client: AsyncClient, given: str, shown: str) -> None:
        created = await create(client, (await make_signed_in()).headers, expires_at=given)

        assert created.status_code == 201
        assert created.json()["expires_at"] == shown

    @pytest.mark.parametrize(
        "body",
        [
            {"name": None},
            {"name": ""},
            {"name": "x" * 201},
            {"name": "a\nb"},
            {"description": "x" * 2001},
            {"scopes": []},
            {"scopes": ""},
            {"scopes": None},
            {"scopes": ["everything"]},
            {"scopes": "read,items:delete"},
            {"scopes": ["items:READ"]},
            {"scopes": [7]},
            {"scopes": {"$ne": None}},
            {"expires_at": "tomorrow"},
            {"expires_at": "9999-12-31T23:59:59-01:00"},
            {"expires_at": "0001-01-01T00:00:00+01:00"},
            {"allowed_ips": ["192.0.2.256"]},
            {"allowed_ips": ["192.0.2.0/33"]},
            {"allowed_ips": ["example.com"]},
            {"allowed_ips": None},
            {"allowed_ips": ["192.0.2.1"] * 101},
            {"rate_limit": "often"},
            {"rate_limit": "-1/minute"},
            {"rate_limit": "600/minute; 10/second"},
            {"rate_limit": 600},
            {"quota": {"limit": 0, "period": "day"}},
            {"quota": {"limit": True, "period": "day"}},
            {"quota": {"limit": 5, "period": "week"}},
            {"quota": {"limit": 5}},
            {"quota": {"limit": 5, "period": "day", "used": 0}},
            {"owner_id": "6746d0a8f8f8f8f8f8f8f8f8"},
            {"key": "octopus_mine"},
        ],
        ids=lambda body: str(body)[:40],
    )
    async def test_refuses_a_bad_body(self, client: AsyncClient, body: dict[str, Any]) -> None:
        master = await make_api_key("admin")

        response = await create(client, master.headers, **body)

        assert verdict(response) == (422, "validation_error")
        assert [error["loc"][:2] for error in response.json()["errors"]] == [["body", next(iter(body))]]
        assert await ApiKey.count() == 1

    async def test_is_limited_on_its_own(self, serve: Serve) -> None:
        async with serve(rate_limit_key_create="2/day") as client:
            ada, bob = await make_signed_in(), await make_signed_in()

            answers = [await create(client, ada.headers) for _ in range(3)]
            of_another = await create(client, bob.headers)

            assert [answer.status_code for answer in answers] == [201, 201, 429]
            assert answers[2].json()["code"] == "rate_limited"
            assert of_another.status_code == 201

    async def test_is_refused_to_nobody(self, client: AsyncClient) -> None:
        response = await create(client, {})

        assert verdict(response) == (401, "not_authenticated")
        assert await ApiKey.count() == 0


class TestScopes:
    """What a key may be given, and what it may do then."""

    @pytest.mark.parametrize(
        ("name", "held"),
        [
            ("items:*", ["items:read", "items:write"]),
            ("api_keys:*", ["api_keys:read", "api_keys:write"]),
            ("audit:read", ["audit:read"]),
            ("read", ["conversations:read", "items:read", "uploads:read", "users:read"]),
            ("write", ["conversations:write", "items:write", "uploads:write", "users:write"]),
            (
                "admin",
                [
                    "admin",
                    *("api_keys:read", "api_keys:write", "audit:read", "conversations:read", "conversations:write"),
                    *("items:read", "items:write", "staff:assist", "staff:manage", "staff:view"),
                    *("tokens:introspect", "uploads:read", "uploads:write"),
                    *("usage:write", "users:read", "users:write"),
                ],
            ),
        ],
    )
    async def test_of_a_name_are_these(self, client: AsyncClient, name: str, held: list[str]) -> None:
        key = await make_api_key(name)

        response = await use(client, key)

        assert response.json()["scopes"] == held

    @pytest.mark.parametrize(
        ("scope", "method", "path"),
        [
            ("read", "GET", API_KEYS),
            ("read", "POST", "/api/v1/conversations"),
            ("write", "POST", API_KEYS),
            ("write", "GET", "/api/v1/conversations"),
            ("items:*", "GET", "/api/v1/conversations"),
        ],
    )
    async def test_that_are_lacking_are_refused(self, client: AsyncClient, scope: str, method: str, path: str) -> None:
        key = await make_api_key(scope)

        response = await client.request(method, path, json={"name": "x", "scopes": "read"}, headers=key.headers)

        assert verdict(response) == (403, "insufficient_scope")

    @pytest.mark.parametrize(
        ("role", "asked"),
        [
            *((Role.USER, asked) for asked in ("admin", "audit:read", "usage:write", "tokens:introspect")),
            (Role.SUPPORT, "admin"),
            (Role.GUEST, "read"),
        ],
    )
    async def test_are_never_more_than_a_user_holds(self, client: AsyncClient, role: Role, asked: str) -> None:
        ada = await make_signed_in(role=role)

        response = await create(client, ada.headers, scopes=["read", asked])

        assert verdict(response) == (403, "insufficient_scope")
        assert await ApiKey.count() == 0

    @pytest.mark.parametrize("asked", ["conversations:write", "conversations:*", "write", "items:read", "admin"])
    async def test_are_never_more_than_the_key_that_makes_it_holds(self, client: AsyncClient, asked: str) -> None:
        maker = await make_api_key("api_keys:*", "conversations:read", owner=await make_user())

        within = await create(client, maker.headers, scopes=["conversations:read"])
        beyond = await create(client, maker.headers, scopes=["conversations:read", asked])

        assert within.status_code == 201
        assert verdict(beyond) == (403, "insufficient_scope")
        assert await ApiKey.count() == 2

    async def test_are_never_widened_beyond_what_the_key_that_widens_holds(self, client: AsyncClient) -> None:
        ada = await make_user()
        maker, other = await make_api_key("api_keys:*", owner=ada), await make_api_key("items:read", owner=ada)

        response = await client.patch(url_of(other), json={"scopes": ["items:*"]}, headers=maker.headers)

        assert verdict(response) == (403, "insufficient_scope")
        assert (await use(client, other)).json()["scopes"] == ["items:read"]

    async def test_of_a_user_are_never_widened_beyond_the_user(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("items:read", owner=ada)

        response = await client.patch(url_of(key), json={"scopes": ["admin"]}, headers=ada.headers)

        assert verdict(response) == (403, "insufficient_scope")
        assert (await use(client, key)).json()["scopes"] == ["items:read"]

    @pytest.mark.parametrize("asked", [["read"], ["api_keys:write"]], ids=str)
    async def test_let_no_service_make_keys_unless_it_administers(self, client: AsyncClient, asked: list[str]) -> None:
        maker = await make_api_key("api_keys:*", "read")

        response = await create(client, maker.headers, scopes=asked)

        assert verdict(response) == (403, "insufficient_scope")
        assert await ApiKey.count() == 1

    @pytest.mark.parametrize("act", ALL_ACTS, ids=str)
    async def test_let_no_service_reach_a_stronger_key_unless_it_administers(
        self, client: AsyncClient, act: Act
    ) -> None:
        weak, master = await make_api_key("api_keys:*"), await make_api_key("admin")
        before = await stored(master)

        response = await act.on(master, client, weak.headers)

        assert verdict(response) == (403, "insufficient_scope")
        assert await stored(master) == before

    async def test_let_no_service_list_keys_unless_it_administers(self, client: AsyncClient) -> None:
        weak = await make_api_key("api_keys:*")

        response = await client.get(API_KEYS, headers=weak.headers)

        assert verdict(response) == (403, "insufficient_scope")


class TestUse:
    @pytest.mark.parametrize("at", [0, 7, 8, 15, 16, 17, 30, 48, 49, 54])
    async def test_with_one_character_changed_asks_no_database(self, serve: Serve, commands: Commands, at: int) -> None:
        async with serve(auth_cache_seconds=0) as client:
            key = await make_api_key()
            await background.drain()
            commands.taken()

            changed = key.text[:at] + ("x" if key.text[at] != "x" else "y") + key.text[at + 1 :]
            response = await use(client, changed)

            assert verdict(response) == (401, "invalid_api_key")
            assert commands.taken() == []
            assert (await use(client, key)).status_code == 200
            assert commands.taken() != []

    @pytest.mark.parametrize(
        "text", ["x", "octopus_", "octopus_AAAAAAAA_" + "A" * 38, "Bearer x", "octopus_\u00e9", "x" * 10_000]
    )
    async def test_of_what_is_no_key_is_refused(self, client: AsyncClient, text: str) -> None:
        response = await client.get(ME, headers={b"Octopus-API-Key": text.encode()})

        assert verdict(response) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert text not in response.text or text == "x"

    async def test_of_an_unknown_key_is_refused(self, client: AsyncClient) -> None:
        await make_api_key()

        response = await use(client, sealed("octopus_AAAAAAAA_" + "A" * 32))

        assert verdict(response) == (401, "invalid_api_key")

    async def test_of_the_right_id_with_a_wrong_secret_is_refused(self, client: AsyncClient) -> None:
        key = await make_api_key()

        response = await use(client, sealed(key.text[:17] + "A" * 32))

        assert verdict(response) == (401, "invalid_api_key")

    async def test_of_a_key_under_another_secret_of_the_service_is_refused(self, serve: Serve) -> None:
        async with serve():
            key = await make_api_key()

        async with serve(secret_key="Qz7Xw2Vb9Nt4Mh6Kj1Lf8Gd3Sa5Pr0Yc") as client:
            assert verdict(await use(client, key)) == (401, "invalid_api_key")

    async def test_goes_on_while_the_secret_is_a_previous_one(self, serve: Serve) -> None:
        async with serve(secret_key="Qz7Xw2Vb9Nt4Mh6Kj1Lf8Gd3Sa5Pr0Yc"):
            key = await make_api_key()

        async with serve(previous_secret_keys="Qz7Xw2Vb9Nt4Mh6Kj1Lf8Gd3Sa5Pr0Yc") as client:
            assert (await use(client, key)).status_code == 200

    async def test_is_refused_after_the_expiry(self, client: AsyncClient) -> None:
        key = await make_api_key(expires_at=LONG_AGO)

        response = await use(client, key)

        assert verdict(response) == (401, "api_key_expired")

    async def test_ends_with_the_expiry(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        expiry = utc_now() + timedelta(hours=1)
        async with serve(auth_cache_seconds=0) as client:
            key = await make_api_key(expires_at=expiry)

            before = await use(client, key)
            monkeypatch.setattr("app.services.auth_service.utc_now", lambda: expiry)
            after = await use(client, key)

            assert before.status_code == 200
            assert verdict(after) == (401, "api_key_expired")

    @pytest.mark.usefixtures("remembering")
    async def test_ends_with_the_expiry_though_the_key_is_remembered(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passed = [0.0]
        clock = SimpleNamespace(monotonic=lambda: passed[0])
        monkeypatch.setattr("app.core.live_cache.time", clock)
        monkeypatch.setattr("app.services.auth_service.utc_now", lambda: LONG_AGO + timedelta(seconds=passed[0]))
        key = await make_api_key(expires_at=LONG_AGO + timedelta(seconds=0.5))

        before = await use(client, key)
        passed[0] = 0.6
        after = await use(client, key)

        assert before.status_code == 200
        assert verdict(after) == (401, "api_key_expired")

    @pytest.mark.parametrize(
        ("allowed", "address"),
        [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.0/24", "192.0.2.200"),
            ("192.0.2.77/24", "192.0.2.1"),
            ("198.51.100.1,192.0.2.7", "192.0.2.7"),
            ("2001:db8::7", "2001:db8:0:0::7"),
            ("2001:db8::/32", "2001:db8:ffff::1"),
            ("192.0.2.7", "::ffff:192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.0/120", "192.0.2.200"),
            ("", "203.0.113.9"),
        ],
    )
    async def test_is_open_from_an_allowed_address(self, serve: Serve, allowed: str, address: str) -> None:
        async with serve(address=address) as client:
            created = await create(client, (await make_signed_in()).headers, allowed_ips=allowed)

            response = await use(client, created.json()["key"])

            assert response.status_code == 200

    @pytest.mark.parametrize(
        ("allowed", "address"),
        [
            ("192.0.2.7", "192.0.2.8"),
            ("192.0.2.0/24", "192.0.3.0"),
            ("2001:db8::/32", "2001:db9::1"),
            ("192.0.2.7", "::ffff:192.0.2.8"),
            ("::/0", "192.0.2.7"),
            ("0.0.0.0/0", "2001:db8::1"),
            ("192.0.2.7", "testclient"),
        ],
    )
    async def test_is_refused_from_another_address(self, serve: Serve, allowed: str, address: str) -> None:
        async with serve(address=address) as client:
            created = await create(client, (await make_signed_in()).headers, allowed_ips=allowed)
            live_cache.hear(60)

            # What it says of itself changes nothing; and the second time the key is remembered.
            headers = {"Octopus-API-Key": created.json()["key"], "X-Forwarded-For": allowed}
            answers = [await client.get(ME, headers=headers) for _ in range(2)]

            assert [verdict(answer) for answer in answers] == [(403, "ip_not_allowed")] * 2

    async def test_is_limited_to_the_rate_of_the_key(self, make_settings: Callable[..., Settings]) -> None:
        app = create_app(make_settings())
        app.state.rate_limiter = MemoryRateLimiter(clock=lambda: 1_700_000_030.0)
        async with running(app), client_of(app) as client:
            key, other = await make_api_key(rate_limit="3/minute"), await make_api_key(rate_limit="3/minute")

            answers = [await use(client, key) for _ in range(4)]
            of_another = await use(client, other)

            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
            assert answers[3].json()["code"] == "rate_limited"
            assert answers[3].headers["retry-after"] == "10"
            assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
            assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"3"}
            assert {answer.headers["x-ratelimit-reset"] for answer in answers} == {"1700000040"}
            assert of_another.status_code == 200

    async def test_of_wrong_keys_is_limited_by_address(self, serve: Serve) -> None:
        async with serve(rate_limit_auth="2/day") as client:
            wrong = sealed("octopus_AAAAAAAA_" + "A" * 32)
            key = await make_api_key()

            answers = [await use(client, wrong) for _ in range(3)]
            right = await use(client, key)

            assert [answer.status_code for answer in answers] == [401, 401, 429]
            assert right.status_code == 200


@pytest.mark.usefixtures("remembering")
class TestPersonalKey:
    async def test_loses_what_its_owner_loses(self, client: AsyncClient) -> None:
        superuser, support = await make_signed_in(role=Role.SUPERUSER), await make_user(role=Role.SUPPORT)
        key = await make_api_key("read", "write", owner=support)

        before = await client.get("/api/v1/users", headers=key.headers)
        demoted = await client.patch(f"/api/v1/users/{support.id}", json={"role": "guest"}, headers=superuser.headers)
        read = await client.get("/api/v1/users", headers=key.headers)
        written = await client.post("/api/v1/conversations", json={}, headers=key.headers)

        assert (before.status_code, demoted.status_code) == (200, 200)
        assert verdict(read) == (403, "insufficient_scope")
        assert verdict(written) == (403, "insufficient_scope")

    async def test_gains_nothing_beyond_its_scopes_when_its_owner_rises(self, client: AsyncClient) -> None:
        superuser, ada = await make_signed_in(role=Role.SUPERUSER), await make_user()
        key = await make_api_key("conversations:read", owner=ada)

        raised = await client.patch(f"/api/v1/users/{ada.id}", json={"role": "admin"}, headers=superuser.headers)
        caller = (await use(client, key)).json()

        assert raised.status_code == 200
        assert (caller["role"], caller["scopes"]) == ("admin", ["conversations:read"])

    async def test_rests_while_its_owner_is_deactivated(self, client: AsyncClient) -> None:
        master, ada = await make_api_key("admin"), await make_user()
        key = await make_api_key("read", owner=ada)
        statuses = [(await use(client, key)).status_code]

        for is_active in (False, True):
            body = {"is_active": is_active}
            changed = await client.patch(f"/api/v1/users/{ada.id}", json=body, headers=master.headers)
            assert changed.status_code == 200
            statuses.append((await use(client, key)).status_code)

        assert statuses == [200, 401, 200]

    async def test_dies_with_its_owner(self, client: AsyncClient) -> None:
        master, ada = await make_api_key("admin"), await make_user()
        key = await make_api_key("read", owner=ada)
        before = await use(client, key)

        deleted = await client.delete(f"/api/v1/users/{ada.id}", headers=master.headers)

        assert (before.status_code, deleted.status_code) == (200, 204)
        assert verdict(await use(client, key)) == (401, "invalid_api_key")
        shown = await client.get(url_of(key), headers=master.headers)
        assert shown.json()["is_active"] is False


class TestList:
    async def test_shows_a_user_its_own(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_user()
        older, newer = [await make_api_key(owner=ada, created_at=LONG_AGO + timedelta(days=day)) for day in range(2)]
        await make_api_key(owner=bob)
        await make_api_key()

        listed = await client.get(API_KEYS, headers=ada.headers)

        assert listed.status_code == 200
        assert [row["id"] for row in listed.json()] == [str(newer.document.id), str(older.document.id)]

    async def test_shows_a_personal_key_those_of_its_owner(self, client: AsyncClient) -> None:
        key = await make_api_key("api_keys:read", owner=await make_user())
        await make_api_key(owner=await make_user())

        listed = await client.get(API_KEYS, headers=key.headers)

        assert [row["id"] for row in listed.json()] == [str(key.document.id)]

    @pytest.mark.parametrize("reader", ["administrator", "service"])
    async def test_shows_all_to_who_administers(self, client: AsyncClient, reader: str) -> None:
        admin, master = await make_signed_in(role=Role.ADMIN), await make_api_key()
        personal = await make_api_key("read", owner=await make_user())

        headers = admin.headers if reader == "administrator" else master.headers
        listed = await client.get(API_KEYS, headers=headers)

        assert [row["id"] for row in listed.json()] == [str(personal.document.id), str(master.document.id)]

    @pytest.mark.parametrize(("query", "names"), [("", ["on"]), ("false", ["on"]), ("true", ["on", "off"])])
    async def test_leaves_out_the_inactive_unless_asked(
        self, client: AsyncClient, query: str, names: list[str]
    ) -> None:
        ada = await make_signed_in()
        await make_api_key(owner=ada, name="off", is_active=False)
        await make_api_key(owner=ada, name="on")

        params = {"include_inactive": query} if query else {}
        listed = await client.get(API_KEYS, params=params, headers=ada.headers)

        assert [row["name"] for row in listed.json()] == names

    @pytest.mark.parametrize("caller", ["user", "administrator"])
    async def test_pages_without_repeating_or_losing_any(self, client: AsyncClient, caller: str) -> None:
        role = Role.USER if caller == "user" else Role.ADMIN
        ada = await make_signed_in(role=role)
        # Two for each moment, so that pages end between keys of the same one.
        made = [
            await make_api_key(owner=ada, created_at=LONG_AGO + timedelta(days=at // 2), is_active=at % 3 == 0)
            for at in range(7)
        ]

        pages, url = [], f"{API_KEYS}?limit=3&include_inactive=true"
        for _ in range(3):
            response = await client.get(url, headers=ada.headers)
            pages.append([row["id"] for row in response.json()])
            await make_api_key(owner=ada)  # something newer meanwhile
            url = response.links.get("next", {}).get("url", "")

        assert [len(page) for page in pages] == [3, 3, 1]
        assert [row for page in pages for row in page] == [str(key.document.id) for key in reversed(made)]
        assert url == ""

    async def test_refuses_a_cursor_of_another_reader(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        for _ in range(2):
            await make_api_key(owner=ada)
        first = await client.get(f"{API_KEYS}?limit=1", headers=ada.headers)

        response = await client.get(first.links["next"]["url"], headers=bob.headers)

        assert verdict(response) == (400, "invalid_cursor")

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "include_inactive=perhaps"])
    async def test_refuses_a_bad_query(self, client: AsyncClient, query: str) -> None:
        ada = await make_signed_in()

        response = await client.get(f"{API_KEYS}?{query}", headers=ada.headers)

        assert verdict(response) == (422, "validation_error")


class TestCallers:
    @pytest.mark.parametrize("act", ALL_ACTS, ids=str)
    async def test_nobody_is_refused(self, client: AsyncClient, act: Act) -> None:
        key = await make_api_key()
        before = await stored(key)

        response = await act.on(key, client)

        assert verdict(response) == (401, "not_authenticated")
        assert await stored(key) == before

    @pytest.mark.parametrize(
        ("scope", "act"),
        [
            ("api_keys:write", GET),
            *[("api_keys:read", act) for act in (RENAME, DEACTIVATE, ACTIVATE, ROTATE, DELETE)],
        ],
        ids=str,
    )
    async def test_a_key_without_the_scope_is_refused(self, client: AsyncClient, scope: str, act: Act) -> None:
        ada = await make_user()
        weak, key = await make_api_key(scope, owner=ada), await make_api_key(owner=ada)
        before = await stored(key)

        response = await act.on(key, client, weak.headers)

        assert verdict(response) == (403, "insufficient_scope")
        assert await stored(key) == before

    @pytest.mark.parametrize("act", ALL_ACTS, ids=str)
    @pytest.mark.parametrize("is_service_key", [False, True], ids=["personal", "service"])
    async def test_a_user_does_not_find_the_keys_of_others(
        self, client: AsyncClient, act: Act, *, is_service_key: bool
    ) -> None:
        ada = await make_signed_in()
        key = await make_api_key(owner=None if is_service_key else await make_user())
        before = await stored(key)

        response = await act.on(key, client, ada.headers)

        assert verdict(response) == (404, "not_found")
        assert await stored(key) == before

    @pytest.mark.parametrize(
        ("act", "status"), [(GET, 200), (RENAME, 200), (DEACTIVATE, 200), (ACTIVATE, 200), (ROTATE, 200), (DELETE, 204)]
    )
    @pytest.mark.parametrize("caller", ["owner", "administrator", "service"])
    async def test_the_owner_and_who_administers_reach_it(
        self, client: AsyncClient, caller: str, act: Act, status: int
    ) -> None:
        ada, admin = await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        key, master = await make_api_key("read", owner=ada), await make_api_key()

        headers = {"owner": ada.headers, "administrator": admin.headers, "service": master.headers}[caller]
        response = await act.on(key, client, headers)

        assert response.status_code == status

    @pytest.mark.parametrize("key_id", ["nonsense", "6746d0a8f8f8f8f8f8f8f8f8"])
    @pytest.mark.parametrize("act", ALL_ACTS, ids=str)
    async def test_does_not_find_an_unknown_id(self, client: AsyncClient, act: Act, key_id: str) -> None:
        master = await make_api_key()

        url = f"{API_KEYS}/{key_id}{act.path}"
        response = await client.request(act.method, url, json=act.body, headers=master.headers)

        assert verdict(response) == (404, "not_found")


@pytest.mark.usefixtures("remembering")
class TestUpdate:
    async def test_changes_what_is_named_and_keeps_the_rest(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        created = (await create(client, ada.headers, description="Old", rate_limit="9/minute")).json()
        url = f"{API_KEYS}/{created['id']}"

        changes = {"name": "new", "scopes": "items:read", "allowed_ips": ["192.0.2.0/24"], "description": None}
        changed = await client.patch(url, json=changes, headers=ada.headers)

        assert changed.status_code == 200
        expected = created | changes | {"scopes": ["items:read"], "updated_at": changed.json()["updated_at"]}
        assert changed.json() == {name: value for name, value in expected.items() if name != "key"}
        assert (await client.get(url, headers=ada.headers)).json() == changed.json()

    @pytest.mark.parametrize(
        ("changes", "refusal"),
        [
            ({"is_active": False}, (401, "invalid_api_key")),
            ({"expires_at": "2026-01-01T00:00:00Z"}, (401, "api_key_expired")),
            ({"allowed_ips": "192.0.2.7"}, (403, "ip_not_allowed")),
            ({"scopes": ["items:read"]}, (403, "insufficient_scope")),
            ({"rate_limit": "1/day"}, (429, "rate_limited")),
        ],
        ids=str,
    )
    async def test_takes_effect_at_once(
        self, client: AsyncClient, changes: dict[str, Any], refusal: tuple[int, str]
    ) -> None:
        ada = await make_signed_in()
        key = await make_api_key("conversations:read", "items:read", owner=ada)
        before = await client.get("/api/v1/conversations", headers=key.headers)

        changed = await client.patch(url_of(key), json=changes, headers=ada.headers)
        if "rate_limit" in changes:
            await use(client, key)
        after = await client.get("/api/v1/conversations", headers=key.headers)

        assert (before.status_code, changed.status_code) == (200, 200)
        assert verdict(after) == refusal

    async def test_clears_limits_with_null(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada, expires_at=LONG_AGO, rate_limit="0/day")

        changes = {"expires_at": None, "rate_limit": None, "quota": None}
        changed = await client.patch(url_of(key), json=changes, headers=ada.headers)

        assert changed.status_code == 200
        assert (await use(client, key)).status_code == 200

    @pytest.mark.parametrize(
        "body",
        [
            {"name": None},
            {"scopes": None},
            {"scopes": []},
            {"scopes": ["everything"]},
            {"allowed_ips": None},
            {"allowed_ips": ["here"]},
            {"is_active": None},
            {"rate_limit": "often"},
            {"expires_at": "tomorrow"},
            {"key_hash": "x"},
            {"owner_id": None},
        ],
        ids=str,
    )
    async def test_refuses_a_bad_body(self, client: AsyncClient, body: dict[str, Any]) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada)
        before = await stored(key)

        response = await client.patch(url_of(key), json=body, headers=ada.headers)

        assert verdict(response) == (422, "validation_error")
        assert await stored(key) == before


@pytest.mark.usefixtures("remembering")
class TestDeactivate:
    async def test_ends_the_key_until_it_is_activated(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada)
        verdicts, shown = [(await use(client, key)).status_code], []

        for act in (DEACTIVATE, DEACTIVATE, ACTIVATE, ACTIVATE):  # twice is the same as once
            response = await act.on(key, client, ada.headers)
            shown.append((response.status_code, response.json()["is_active"]))
            verdicts.append((await use(client, key)).status_code)

        assert shown == [(200, False), (200, False), (200, True), (200, True)]
        assert verdicts == [200, 401, 401, 200, 200]

    async def test_is_answered_as_an_unknown_key_is(self, client: AsyncClient) -> None:
        key = await make_api_key(is_active=False)

        response = await use(client, key)

        assert verdict(response) == (401, "invalid_api_key")


@pytest.mark.usefixtures("remembering")
class TestDelete:
    async def test_removes_the_key_for_good(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada)
        before = await use(client, key)

        deleted = await DELETE.on(key, client, ada.headers)

        assert verdict(await use(client, key)) == (401, "invalid_api_key")
        assert (before.status_code, deleted.status_code) == (200, 204)
        assert verdict(await DELETE.on(key, client, ada.headers)) == (404, "not_found")
        assert verdict(await ACTIVATE.on(key, client, ada.headers)) == (404, "not_found")
        assert await stored(key) is None


class TestKeyInUse:
    @pytest.mark.parametrize("is_personal", [False, True], ids=["service", "personal"])
    @pytest.mark.parametrize(
        "act",
        [
            DELETE,
            DEACTIVATE,
            Act("PATCH", "", {"is_active": False}),
            Act("PATCH", "", {"scopes": ["api_keys:*"]}),
            Act("PATCH", "", {"expires_at": "2031-01-01T00:00:00Z"}),
            Act("PATCH", "", {"allowed_ips": ["192.0.2.7"]}),
            Act("PATCH", "", {"rate_limit": "1/minute"}),
            Act("PATCH", "", {"quota": {"limit": 1, "period": "day"}}),
            ROTATE,
        ],
        ids=str,
    )
    async def test_can_not_end_or_limit_itself(self, client: AsyncClient, act: Act, *, is_personal: bool) -> None:
        if is_personal:
            key = await make_api_key("api_keys:*", "read", owner=await make_user())
        else:
            key = await make_api_key("admin")
        before = await stored(key)

        response = await act.on(key, client, key.headers)

        assert verdict(response) == (400, "invalid_request")
        assert await stored(key) == before

    async def test_can_rename_itself(self, client: AsyncClient) -> None:
        key = await make_api_key("api_keys:*", owner=await make_user())

        changes = {"name": "new", "description": "Of the build", "scopes": ["api_keys:read", "api_keys:write"]}
        response = await client.patch(url_of(key), json=changes, headers=key.headers)

        assert response.status_code == 200
        assert (response.json()["name"], response.json()["description"]) == ("new", "Of the build")

    async def test_can_end_another(self, client: AsyncClient) -> None:
        master, other = await make_api_key("admin"), await make_api_key("admin")

        response = await DELETE.on(other, client, master.headers)

        assert response.status_code == 204


class TestAudit:
    async def test_records_who_created_it_and_what_it_may_do(self, client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada")

        created = await create(client, ada.headers, name="ci", scopes=["read"])

        [event] = await AuditEvent.find_all().to_list()
        assert (event.action, event.outcome) == ("api_key:created", "success")
        assert (event.actor.kind, event.actor.id, event.actor.name) == ("user", ada.id, "ada")
        assert (event.target.kind, str(event.target.id)) == ("api_key", created.json()["id"])
        assert event.details == {"name": "ci", "scopes": ["read"]}
        assert event.request_id == created.headers["x-request-id"]

    @pytest.mark.parametrize(
        ("act", "action"),
        [
            (RENAME, "api_key:updated"),
            (DEACTIVATE, "api_key:deactivated"),
            (Act("PATCH", "", {"is_active": False}), "api_key:deactivated"),
            (ACTIVATE, "api_key:activated"),
            (DELETE, "api_key:deleted"),
        ],
        ids=str,
    )
    async def test_records_every_change_once(self, client: AsyncClient, act: Act, action: str) -> None:
        key, master = await make_api_key("read"), await make_api_key(name="master")

        await act.on(key, client, master.headers)

        [event] = await AuditEvent.find_all().to_list()
        assert (event.action, event.outcome) == (action, "success")
        assert (event.actor.kind, event.actor.id, event.actor.name) == ("api_key", master.document.id, "master")
        assert (event.target.kind, event.target.id) == ("api_key", key.document.id)

    @pytest.mark.parametrize("act", [RENAME, DEACTIVATE, ROTATE, DELETE], ids=str)
    async def test_what_can_not_be_recorded_does_not_happen(self, client: AsyncClient, act: Act) -> None:
        key, master = await make_api_key("read"), await make_api_key()
        before = await stored(key)

        async with no_event_can_be_written():
            response = await act.on(key, client, master.headers)

        assert verdict(response) == (500, "internal_error")
        assert await stored(key) == before
        assert (await use(client, key)).status_code == 200

    async def test_does_not_create_what_can_not_be_recorded(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        async with no_event_can_be_written():
            response = await create(client, ada.headers)

        assert verdict(response) == (500, "internal_error")
        assert await ApiKey.count() == 0


class TestMail:
    @pytest.fixture
    async def client(self, serve: Serve, mailbox: Mailbox) -> AsyncIterator[AsyncClient]:
        async with serve(smtp_url=mailbox.url) as client:
            yield client

    async def test_tells_the_owner_of_a_key_made_in_a_session(self, client: AsyncClient, mailbox: Mailbox) -> None:
        ada = await make_signed_in()

        key = (await create(client, ada.headers, name="backup <b> of photos")).json()

        mail = await mailbox.next()
        assert (mail["To"], mail["Subject"]) == (ada.document.email, "An API key was made")
        assert "\u201cbackup <b> of photos\u201d" in text_of(mail)
        assert "from 127.0.0.1" in text_of(mail)
        assert re.search(r" on \d\d \w+ 20\d\d, \d\d:\d\d UTC", text_of(mail))
        assert "<b>" not in html_of(mail)
        assert key["key"] not in mail.as_string()

    @pytest.mark.parametrize("name", ["https://evil.example/verify", "www.evil.example", "call a@evil.example"])
    async def test_names_no_key_that_would_be_a_link(self, client: AsyncClient, mailbox: Mailbox, name: str) -> None:
        ada = await make_signed_in()

        key = (await create(client, ada.headers, name=name)).json()

        mail = await mailbox.next("An API key was made")
        assert f"\u201c{key['key_id']}\u201d" in text_of(mail)
        assert "evil" not in text_of(mail) + html_of(mail)

    async def test_is_for_personal_keys_alone_whatever_they_are_made_with(
        self, client: AsyncClient, mailbox: Mailbox
    ) -> None:
        ada, root = await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        maker = await make_api_key("api_keys:*", "read", owner=ada)
        for headers in (root.headers, (await make_api_key("admin")).headers):
            assert (await create(client, headers, name="quiet")).status_code == 201
        assert await OutgoingMail.count() == 0

        await create(client, maker.headers, name="loud")

        assert "loud" in text_of(await mailbox.next())

    async def test_is_sent_of_no_key_that_was_not_made(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        async with no_event_can_be_written():
            assert verdict(await create(client, ada.headers)) == (500, "internal_error")

        assert await OutgoingMail.count() == 0


class TestKeysOfASuperuser:
    @pytest.mark.parametrize("who", ["admin", "service"])
    @pytest.mark.parametrize(("method", "body"), [("PATCH", {"scopes": ["admin"]}), ("DELETE", None)])
    async def test_are_left_alone_by_others(
        self, client: AsyncClient, who: str, method: str, body: dict[str, Any] | None
    ) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)
        key = await make_api_key("read", owner=root)
        caller = await make_signed_in(role=Role.ADMIN) if who == "admin" else await make_api_key("admin")

        response = await client.request(method, url_of(key), headers=caller.headers, json=body)

        assert verdict(response) == (403, "forbidden")
        assert (await stored(key) or {})["scopes"] == ["read"]

    async def test_are_in_the_hands_of_superusers(self, client: AsyncClient) -> None:
        root, other = await make_signed_in(role=Role.SUPERUSER), await make_signed_in(role=Role.SUPERUSER)
        key = await make_api_key("read", owner=root)

        response = await client.delete(url_of(key), headers=other.headers)

        assert response.status_code == 204
        assert await stored(key) is None


class TestStrongerKeys:
    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    async def test_are_left_alone_by_weaker_ones(self, client: AsyncClient, method: str) -> None:
        ada = await make_signed_in()
        strong = await make_api_key("read", "write", owner=ada, is_active=False)
        weak = await make_api_key("api_keys:*", owner=ada)

        response = await client.request(method, url_of(strong), headers=weak.headers, json={"is_active": True})

        assert verdict(response) == (403, "insufficient_scope")
        assert (await stored(strong) or {})["is_active"] is False


Make = Callable[..., Awaitable[StoredKey]]


def plain(key: dict[str, Any], name: str) -> Any:
    """What a key was given; of its quota without what is left of it."""
    value = key[name]
    return {part: value[part] for part in ("limit", "period")} if name == "quota" and value else value


OFFICE = ["10.1.0.0/16", "2001:db8::/32"]
LIMITS: dict[str, Any] = {
    "allowed_ips": OFFICE,
    "expires_at": "2031-01-01T00:00:00Z",
    "rate_limit": "60/minute",
    "quota": {"limit": 3100, "period": "month"},
}
BEYOND = [
    ("allowed_ips", []),
    ("allowed_ips", ["10.0.0.0/8"]),
    ("allowed_ips", ["10.1.2.3", "192.0.2.7"]),
    ("allowed_ips", ["::/0"]),
    ("expires_at", None),
    ("expires_at", "2031-01-01T00:00:00.001Z"),
    ("rate_limit", None),
    ("rate_limit", "61/minute"),
    ("rate_limit", "2/second"),
    ("rate_limit", "3601/hour"),
    ("quota", None),
    ("quota", {"limit": 3101, "period": "month"}),
    ("quota", {"limit": 101, "period": "day"}),
]
WITHIN = [
    ("allowed_ips", ["10.1.2.3", "2001:db8:7::/48"]),
    ("allowed_ips", ["::ffff:10.1.2.3"]),
    ("expires_at", "2031-01-01T00:00:00Z"),
    ("expires_at", "2030-12-31T00:00:00Z"),
    ("rate_limit", "1/second"),
    ("rate_limit", "3600/hour"),
    ("rate_limit", "5/minute"),
    ("quota", {"limit": 3100, "period": "month"}),
    ("quota", {"limit": 100, "period": "day"}),
]


@pytest.mark.parametrize("is_personal", [False, True], ids=["service", "personal"])
class TestLimitsOfAMaker:
    """A key that is limited makes no key, and changes none, that is less limited."""

    @pytest.fixture
    async def client(self, serve: Serve) -> AsyncIterator[AsyncClient]:
        async with serve(address="10.1.2.3") as client:
            yield client

    @pytest.fixture
    async def make(self, *, is_personal: bool) -> Make:
        """Keys of the same owner, or of none."""
        owner = await make_user() if is_personal else None

        async def make(**limits: Any) -> StoredKey:
            if isinstance(limits.get("expires_at"), str):
                limits["expires_at"] = datetime.fromisoformat(limits["expires_at"])
            scopes = ("api_keys:*", "read") if owner else ("admin",)
            return await make_api_key(*scopes, owner=owner, **limits)

        return make

    async def test_are_inherited(self, client: AsyncClient, make: Make) -> None:
        response = await create(client, (await make(**LIMITS)).headers)

        assert response.status_code == 201
        assert {name: plain(response.json(), name) for name in LIMITS} == LIMITS

    @pytest.mark.parametrize(("field", "value"), BEYOND)
    async def test_are_not_exceeded_by_a_new_key(self, client: AsyncClient, make: Make, field: str, value: Any) -> None:
        maker = await make(**LIMITS)

        response = await create(client, maker.headers, **{field: value})

        assert verdict(response) == (403, "forbidden")
        assert response.json()["detail"] == f"`{field}` can't exceed that of the key you are using."
        assert await ApiKey.count() == 1

    @pytest.mark.parametrize(("field", "value"), WITHIN)
    async def test_may_be_narrowed(self, client: AsyncClient, make: Make, field: str, value: Any) -> None:
        maker, other = await make(**LIMITS), await make(**LIMITS)

        created = await create(client, maker.headers, **{field: value})
        changed = await client.patch(url_of(other), json={field: value}, headers=maker.headers)

        assert (created.status_code, changed.status_code) == (201, 200)
        assert created.json()[field] == changed.json()[field]
        assert created.json()[field]

    @pytest.mark.parametrize(("field", "value"), BEYOND)
    async def test_are_not_exceeded_by_a_changed_key(
        self, client: AsyncClient, make: Make, field: str, value: Any
    ) -> None:
        maker, other = await make(**LIMITS), await make(**LIMITS)
        before = await stored(other)

        response = await client.patch(url_of(other), json={"name": "new", field: value}, headers=maker.headers)

        assert verdict(response) == (403, "forbidden")
        assert field in response.json()["detail"]
        assert await stored(other) == before

    @pytest.mark.parametrize("field", list(LIMITS))
    @pytest.mark.parametrize("act", [ACTIVATE, Act("PATCH", "", {"scopes": ["read"]})], ids=str)
    async def test_let_it_give_no_power_to_a_key_that_is_less_limited(
        self, client: AsyncClient, make: Make, act: Act, field: str
    ) -> None:
        maker, other = (
            await make(**LIMITS),
            await make(is_active=False, **{**LIMITS, field: [] if field == "allowed_ips" else None}),
        )

        assert verdict(await act.on(other, client, maker.headers)) == (403, "forbidden")

        assert (await stored(other) or {})["is_active"] is False

    @pytest.mark.parametrize("act", [RENAME, DEACTIVATE, DELETE, Act("PATCH", "", LIMITS)], ids=str)
    async def test_let_it_take_power_from_a_key_that_is_less_limited(
        self, client: AsyncClient, make: Make, act: Act
    ) -> None:
        maker, other = await make(**LIMITS), await make()

        assert (await act.on(other, client, maker.headers)).status_code in {200, 204}

    async def test_are_not_given_where_it_has_none(self, client: AsyncClient, make: Make) -> None:
        maker, other = await make(), await make(**LIMITS)

        created = await create(client, maker.headers)
        changes: dict[str, Any] = {"allowed_ips": [], "expires_at": None, "rate_limit": None, "quota": None}
        changed = await client.patch(url_of(other), json=changes, headers=maker.headers)

        assert [{name: key.json()[name] for name in LIMITS} for key in (created, changed)] == [changes] * 2
