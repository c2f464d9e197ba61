"""The file that other services copy, `docs/integration/octopus_auth.py`, against the application on a real socket."""

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import octopus_auth
import pytest
from jwt.utils import base64url_decode, base64url_encode
from octopus_auth import Caller, Octopus, OctopusAuth, RefusedError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from app.core.config import Settings
from app.main import create_app
from tests.api.test_api_keys import sealed
from tests.factories import SignedInUser, make_api_key, make_signed_in
from tests.live_server import live
from tests.signing_keys import key_file, key_of, private_pem, public_pem

JWKS, VERIFY, INTROSPECT = "/.well-known/jwks.json", "/api/v1/api-keys/verify", "/api/v1/auth/introspect"
AWAY = (503, "authentication_unavailable")
UNKNOWN = sealed("octopus_Ab3dEf9H_" + "0" * 32)


class Clock:
    """The clocks of the file: they stand, and a test puts them forward."""

    def __init__(self) -> None:
        self.ahead, self.began = 0.0, (time.monotonic(), time.time())

    def monotonic(self) -> float:
        return self.began[0] + self.ahead

    def time(self) -> float:
        return self.began[1] + self.ahead


class Asking:
    """What a service holds: the client of Octopus, and here what it has asked."""

    def __init__(self, url: str, clock: Clock, **options: Any) -> None:
        self.octopus, self.clock = Octopus(url, **options), clock
        self.asked: Counter[str] = Counter()
        self.octopus._client.event_hooks = {"request": [lambda request: self.asked.update([request.url.path])]}

    async def who(self, headers: dict[str, str], *, ip: str | None = None) -> Caller:
        return await self.octopus.verify_async({name.lower(): value for name, value in headers.items()}, ip=ip)

    async def refusal(self, headers: dict[str, str], *, ip: str | None = None) -> tuple[int, str]:
        with pytest.raises(RefusedError) as refused:
            await self.who(headers, ip=ip)
        return refused.value.status, refused.value.code


Open = Callable[..., Any]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(octopus_auth, "time", clock)
    return clock


@pytest.fixture
def serving(make_settings: Callable[..., Settings], tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """A service beside an Octopus that signs as it is told."""
    opened: list[Asking] = []

    @asynccontextmanager
    async def start(algorithm: str = "HS256", name: str = "new", **options: Any) -> AsyncIterator[Asking]:
        more: dict[str, Any] = {"auth_cache_seconds": 0, "jwt_algorithm": algorithm}
        if algorithm != "HS256":
            more["jwt_private_key_file"] = key_file(tmp_path, private_pem(key_of(algorithm, name)))
        async with live(create_app(make_settings(**more))) as url:
            key = await make_api_key("tokens:introspect", name="gateway")
            opened.append(Asking(url, clock, **{"api_key": key.text, **options}))
            yield opened[-1]

    yield start
    for asking in opened:
        asking.octopus.close()


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def forged(user: SignedInUser, key: Any, algorithm: str, **changes: Any) -> dict[str, str]:
    """The token of the user with other claims or another signature."""
    header = jwt.get_unverified_header(user.access_token)
    claims = json.loads(base64url_decode(user.access_token.split(".")[1])) | changes
    if algorithm == "HS256":  # the library refuses to take a public key for a secret, an attacker does not
        signed = [base64url_encode(json.dumps(part).encode()) for part in (header | {"alg": algorithm}, claims)]
        digest = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(b".".join(signed), key)
        return bearer(b".".join([*signed, base64url_encode(digest)]).decode())
    return bearer(jwt.encode(claims, key, algorithm, headers={"kid": header["kid"]}))


class TestToken:
    async def test_is_verified_without_asking_once_the_keys_are_known(self, serving: Open) -> None:
        async with serving("ES256", api_key=None) as asking:
            ada = await make_signed_in()

            callers = await asyncio.gather(*(asking.who(ada.headers) for _ in range(20)))

            assert set(callers) == {callers[0]}
            assert (callers[0].kind, callers[0].user_id, callers[0].role) == ("user", str(ada.id), "user")
            assert callers[0].session_id == str(ada.session.id)
            assert "items:read" in callers[0].scopes
            assert "admin" not in callers[0].scopes
            assert asking.asked == {JWKS: 1}

    async def test_is_refused_for_every_flaw(self, serving: Open) -> None:
        private = key_of("ES256", "new")
        async with serving("ES256") as asking:
            ada, key = await make_signed_in(), await make_api_key("read")
            flaws: dict[str, list[dict[str, str]]] = {
                "invalid_token": [
                    {"authorization": f"Basic {ada.access_token}"},
                    bearer("a.b.c"),
                    bearer(ada.access_token[:-8] + "AAAAAAAA"),
                    bearer(key.text),
                    forged(ada, key_of("ES256", "foreign"), "ES256"),
                    forged(ada, public_pem(private).encode(), "HS256"),  # the key that everybody knows, as a secret
                    forged(ada, private, "ES256", aud="another"),
                    forged(ada, private, "ES256", iss="another"),
                    bearer(jwt.encode({"sub": str(ada.id)}, "", "none")),
                    bearer(ada.access_token + "x" * 9000),
                ],
                "mfa_required": [forged(ada, private, "ES256", scope="")],
                "token_expired": [forged(ada, private, "ES256", exp=int(time.time()) - 10)],
                "not_authenticated": [{}],
            }

            for code, shown in flaws.items():
                assert [await asking.refusal(headers) for headers in shown] == [(401, code)] * len(shown)

            both = {**ada.headers, **key.headers}
            assert await asking.refusal(both) == (400, "ambiguous_credentials")
            assert (await asking.who(forged(ada, private, "ES256"))).user_id == str(ada.id)
            assert asking.asked == {JWKS: 1}

    async def test_is_refused_also_where_the_library_breaks_on_it(
        self, serving: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def too_deep(_: str) -> dict[str, Any]:  # as PyJWT before 2.15 does when a header is nothing but brackets
            raise RecursionError

        async with serving("ES256") as asking:
            monkeypatch.setattr(jwt, "get_unverified_header", too_deep)
            assert await asking.refusal(bearer("a.b.c")) == (401, "invalid_token")

    async def test_under_a_new_key_is_good_and_strange_keys_cost_one_question_in_ten_seconds(
        self, serving: Open
    ) -> None:
        async with serving("ES256", "old") as asking:
            ada = await make_signed_in()
            await asking.who(ada.headers)
        async with serving("ES256", "new", api_key=None) as renewed:
            asking = renewed
            asking.octopus._keys = {"old": jwt.PyJWK.from_dict(jwk("old"))}
            asking.octopus._keys_at = asking.octopus._keys_asked_at = asking.clock.monotonic() - 11
            ada = await make_signed_in()

            assert (await asking.who(ada.headers)).user_id == str(ada.id)

            strange = bearer(jwt.encode({}, key_of("ES256", "foreign"), "ES256", headers={"kid": "strange"}))
            for _ in range(5):
                assert await asking.refusal(strange) == (401, "invalid_token")
            assert asking.asked == {JWKS: 1}
            asking.clock.ahead = 11
            assert await asking.refusal(strange) == (401, "invalid_token")
            assert asking.asked == {JWKS: 2}

    @pytest.mark.parametrize("options", [("HS256", {}), ("ES256", {"introspect": True})], ids=["HS256", "asked to"])
    async def test_is_asked_about(self, serving: Open, options: tuple[str, dict[str, Any]]) -> None:
        async with serving(options[0], **options[1]) as asking:
            ada, key = await make_signed_in(), await make_api_key("read")

            callers = await asyncio.gather(*(asking.who(ada.headers) for _ in range(20)))
            assert {caller.user_id for caller in callers} == {str(ada.id)}
            assert asking.asked[INTROSPECT] == 1
            assert await asking.refusal(bearer(ada.access_token[:-8] + "AAAAAAAA")) == (401, "invalid_token")
            assert await asking.refusal(bearer(key.text)) == (401, "invalid_token")

            await ada.session.delete()
            assert (await asking.who(ada.headers)).user_id == str(ada.id)
            asking.clock.ahead = 10.1
            assert await asking.refusal(ada.headers) == (401, "invalid_token")


def jwk(name: str) -> dict[str, Any]:
    return dict(jwt.algorithms.ECAlgorithm.to_jwk(key_of("ES256", name).public_key(), as_dict=True))


class TestKey:
    async def test_is_asked_about_once_in_the_cache_time_and_dead_after_it(self, serving: Open) -> None:
        async with serving() as asking:
            ada = await make_signed_in()
            personal, service = await make_api_key("items:read", owner=ada), await make_api_key("items:write")

            callers = await asyncio.gather(*(asking.who(personal.headers) for _ in range(50)))
            stranger = await asking.who(service.headers)

            assert {(caller.kind, caller.user_id, caller.scopes) for caller in callers} == {
                ("user", str(ada.id), frozenset({"items:read"}))
            }
            assert callers[0].key_id == personal.document.key_id
            assert (stranger.kind, stranger.user_id, stranger.scopes) == ("service", None, frozenset({"items:write"}))
            assert asking.asked == {VERIFY: 2}

            await personal.document.set({"is_active": False})
            asking.clock.ahead = 9.9
            assert (await asking.who(personal.headers)).user_id == str(ada.id)
            asking.clock.ahead = 10.1
            assert await asking.refusal(personal.headers) == (401, "invalid_api_key")
            assert await asking.refusal(personal.headers) == (401, "invalid_api_key")
            assert asking.asked == {VERIFY: 3}

            await personal.document.set({"is_active": True})
            asking.clock.ahead = 15.2
            assert (await asking.who(personal.headers)).user_id == str(ada.id)

    async def test_that_expires_is_not_remembered_longer(self, serving: Open) -> None:
        async with serving(cache_seconds=300) as asking:
            at = datetime.fromtimestamp(asking.clock.time() + 60, UTC)
            key = await make_api_key("read", expires_at=at)
            assert (await asking.who(key.headers)).expires_at == pytest.approx(at.timestamp(), abs=0.01)

            await key.document.set({"expires_at": at - timedelta(seconds=120)})
            asking.clock.ahead = 59
            assert (await asking.who(key.headers)).kind == "service"
            asking.clock.ahead = 61
            assert await asking.refusal(key.headers) == (401, "api_key_expired")

    async def test_is_refused_as_octopus_would(self, serving: Open) -> None:
        async with serving() as asking:
            bound = await make_api_key("read", allowed_ips=["192.0.2.0/24"])
            used_up = await make_api_key("read", quota={"limit": 1, "period": "month"})

            assert await asking.refusal({"Octopus-API-Key": UNKNOWN}) == (401, "invalid_api_key")
            assert await asking.refusal(bound.headers) == (403, "ip_not_allowed")
            assert await asking.refusal(bound.headers, ip="198.51.100.7") == (403, "ip_not_allowed")
            assert (await asking.who(bound.headers, ip="192.0.2.7")).kind == "service"
            assert (await asking.who(used_up.headers)).kind == "service"
            assert await asking.refusal(used_up.headers, ip="192.0.2.7") == (429, "quota_exceeded")

    async def test_that_is_none_by_its_form_is_refused_without_asking(self, serving: Open) -> None:
        async with serving() as asking:
            typo = UNKNOWN[:-1] + ("x" if UNKNOWN[-1] != "x" else "y")
            for text in ("", "x", typo, UNKNOWN + "0", "octopus_Ab3dEf9H_" + "é" * 38):
                assert await asking.refusal({"Octopus-API-Key": text}) == (401, "invalid_api_key")

            assert asking.asked == {}

    async def test_is_nowhere_in_the_memory_which_has_bounds(self, serving: Open) -> None:
        async with serving(cache_size=3) as asking:
            keys = [await make_api_key("read") for _ in range(5)]
            for key in keys:
                await asking.who(key.headers)
                await asking.refusal({"Octopus-API-Key": sealed(key.text[:-7] + ("1" if key.text[-7] == "0" else "0"))})

            known = [*asking.octopus._good._known.items(), *asking.octopus._bad._known.items()]
            assert len(known) == 6
            assert not [key for key in keys if key.text[17:49] in repr(known)]
            await asking.who(keys[-1].headers)
            assert asking.asked == {VERIFY: 10}


class TestAway:
    async def test_octopus_lets_in_who_is_remembered_and_nobody_else(self, serving: Open) -> None:
        async with serving("ES256") as asking:
            ada, known, other = await make_signed_in(), await make_api_key("read"), await make_api_key("read")
            for headers in (ada.headers, known.headers):
                await asking.who(headers)
        asking.asked.clear()

        assert (await asking.who(known.headers)).kind == "service"
        assert [await asking.refusal(other.headers) for _ in range(20)] == [AWAY] * 20
        assert asking.asked == {VERIFY: 1}  # and then left alone for a second
        asking.clock.ahead = 61
        assert (await asking.who(ada.headers)).user_id == str(ada.id)
        assert await asking.refusal(known.headers) == AWAY
        renewed = jwt.encode({}, key_of("ES256", "foreign"), "ES256", headers={"kid": "renewed"})
        assert await asking.refusal(bearer(renewed)) == AWAY
        asking.clock.ahead = 301
        assert await asking.refusal(ada.headers) == AWAY
        with pytest.raises(RefusedError) as refused:
            await asking.who(ada.headers)
        assert refused.value.headers["Retry-After"] == "2"
        assert json.loads(refused.value.body)["code"] == "authentication_unavailable"

    async def test_octopus_keeps_nobody_waiting(self, clock: Clock) -> None:
        keys = [sealed(f"octopus_Ab3dEf9H_{number:032}") for number in range(30)]
        with socket.create_server(("127.0.0.1", 0)) as silent:  # nobody accepts what it is asked
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            asking = Asking(url, clock, api_key=UNKNOWN, timeout=0.2)
            began = time.monotonic()

            answers = await asyncio.gather(*(asking.refusal({"octopus-api-key": key}) for key in keys))
            with pytest.raises(RefusedError):
                await asyncio.to_thread(asking.octopus.verify, {"authorization": "Bearer a.b.c"})

            assert answers == [AWAY] * 30
            assert time.monotonic() - began < 5
            asking.octopus.close()

    async def test_octopus_may_also_answer_what_nobody_understands(
        self, serving: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serving("ES256", api_key=UNKNOWN) as asking:
            ada, key = await make_signed_in(), await make_api_key("read")

            assert await asking.refusal(key.headers) == AWAY  # it does not know the one who asks
            monkeypatch.setattr(asking.octopus, "_call", lambda *_, **__: {"keys": 1, "valid": True})
            assert await asking.refusal(ada.headers) == AWAY
            assert await asking.refusal({"Octopus-API-Key": UNKNOWN}) == AWAY


async def whoami(request: Request) -> JSONResponse:
    if request.url.path == "/secret":
        request.state.caller.require("admin")
    caller = request.state.caller
    return JSONResponse(caller and {"user_id": caller.user_id, "scopes": sorted(caller.scopes)})


def guarded(asking: Asking, **options: Any) -> Starlette:
    app = Starlette(routes=[Route(path, whoami) for path in ("/", "/secret", "/open")])
    app.add_middleware(OctopusAuth, octopus=asking.octopus, **options)
    return app


class TestMiddleware:
    async def test_lets_in_callers_and_refuses_others_with_a_problem(self, serving: Open) -> None:
        async with serving("ES256") as asking:
            ada = await make_signed_in()
            app = guarded(asking, public={"/open"}, scopes={"items:read"})
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                told = await client.get("/", headers=ada.headers)
                nothing, secret = await client.get("/"), await client.get("/secret", headers=ada.headers)
                wrong = await client.get("/", headers=[*ada.headers.items(), *ada.headers.items()])
                weak = await client.get("/", headers=(await make_api_key("usage:write")).headers)
                public = await client.get("/open")

        assert (told.status_code, told.json()["user_id"]) == (200, str(ada.id))
        assert (public.status_code, public.json()) == (200, None)
        refusals = {nothing: 401, wrong: 401, secret: 403, weak: 403}
        assert {answer: answer.status_code for answer in refusals} == refusals
        assert {answer.headers["content-type"] for answer in refusals} == {"application/problem+json"}
        assert (nothing.headers["www-authenticate"], wrong.headers["www-authenticate"]) == (
            "Bearer",
            'Bearer error="invalid_token"',
        )
        assert secret.json() == {
            "type": "about:blank",
            "title": "Forbidden",
            "status": 403,
            "detail": "This needs the scope admin.",
            "code": "insufficient_scope",
        }

    @pytest.mark.parametrize(
        ("extensions", "sent"),
        [
            ({}, [("websocket.close", 1008)]),
            (
                {"websocket.http.response": {}},
                [("websocket.http.response.start", 401), ("websocket.http.response.body",)],
            ),
        ],
    )
    async def test_guards_web_sockets_and_leaves_the_lifespan_alone(
        self, serving: Open, extensions: dict[str, Any], sent: list[tuple[Any, ...]]
    ) -> None:
        seen: list[dict[str, Any]] = []
        told: list[tuple[Any, ...]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
            seen.append(scope)

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            told.append((message["type"], *(message[name] for name in ("code", "status") if name in message)))

        async with serving("ES256") as asking:
            ada = await make_signed_in()
            shown = [(name.lower().encode(), value.encode()) for name, value in ada.headers.items()]
            guard = OctopusAuth(app, asking.octopus)
            connecting = {"type": "websocket", "path": "/", "extensions": extensions, "state": {"pool": 1}}
            await guard({**connecting, "headers": []}, receive, send)
            assert (seen, told) == ([], sent)
            await guard({**connecting, "headers": shown}, receive, send)
            await guard({"type": "lifespan"}, receive, send)

        assert seen[0]["state"]["pool"] == 1
        assert seen[0]["state"]["caller"].user_id == str(ada.id)
        assert seen[1] == {"type": "lifespan"}

    @pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}], ids=["plain", "extended"])
    async def test_closes_a_web_socket_that_is_open_when_a_scope_is_missed(
        self, serving: Open, extensions: dict[str, Any]
    ) -> None:
        told: list[dict[str, Any]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
            await send({"type": "websocket.accept"})
            scope["state"]["caller"].require("admin")

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            told.append(dict(message))

        async with serving("ES256") as asking:
            shown = [
                (name.lower().encode(), value.encode()) for name, value in (await make_signed_in()).headers.items()
            ]
            scope = {"type": "websocket", "path": "/", "extensions": extensions, "headers": shown}
            await OctopusAuth(app, asking.octopus)(scope, receive, send)

        assert told == [
            {"type": "websocket.accept"},
            {"type": "websocket.close", "code": 1008, "reason": "insufficient_scope"},
        ]

    async def test_takes_one_string_for_one_name(self, serving: Open) -> None:
        async with serving() as asking:
            transport = httpx.ASGITransport(guarded(asking, public="/open", scopes="items:read"))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                key = await make_api_key("items:read")
                answers = [await client.get(path) for path in ("/open", "/")]
                answers.append(await client.get("/", headers=key.headers))

        assert [answer.status_code for answer in answers] == [200, 401, 200]
