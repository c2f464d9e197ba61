"""Who is calling? Asks Octopus. One file to copy into another service; needs Python 3.11, httpx, PyJWT[crypto] 2.10.

    octopus = Octopus("https://octopus.example", api_key=os.environ["OCTOPUS_API_KEY"])
    caller = octopus.verify(request.headers, ip=request.remote_addr)  # Flask, Django, whatever waits
    app.add_middleware(OctopusAuth, octopus=octopus)                  # FastAPI and other ASGI: request.state.caller

Access tokens are verified here, by the keys that Octopus publishes; when it publishes none (it signs with HS256), it is
asked. About API keys it is always asked. Its answers are remembered for `cache_seconds`, under a keyed hash; of many
who need the same answer one asks. While Octopus does not answer, whoever is not remembered is refused with 503.
"""

import asyncio
import contextvars
import hashlib
import ipaddress
import json
import logging
import re
import secrets
import string
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import httpx
import jwt

KEYS_GOOD_FOR: Final = 300.0  # seconds; what Octopus allows
KEYS_RENEWED_AFTER: Final = 60.0  # in the background, so that nobody waits and a short outage is not noticed
KEYS_ASKED_EVERY: Final = 10.0  # at most, however many tokens name a key that nobody knows
REFUSED_FOR: Final = 5.0  # at most; a key that is new or active again is soon good
AWAY_FOR: Final = 1.0  # who has not answered is left alone so long
MOST_WAITING: Final = 500  # questions to Octopus at a time; one more is answered 503
_KTY_OF: Final = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}  # never HS256: a public key must not verify that
_REQUIRED: Final = ["sub", "sid", "role", "scope", "exp", "iss", "aud"]
_TOKEN: Final = re.compile(r"[\w-]{1,4096}\.[\w-]{1,4096}\.[\w-]{1,1024}", re.ASCII)
_KEY: Final = re.compile(r"octopus_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}")
_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase

_log = logging.getLogger("octopus_auth")


class Refusal(NamedTuple):
    status: int
    code: str
    detail: str
    retry_after: int | None = None


class RefusedError(Exception):
    """What the client is told instead: `status`, `headers` and `body`, a problem of RFC 9457."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.status, self.code = refusal.status, refusal.code
        self.headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            is_bare = refusal is _NOTHING_SHOWN
            self.headers["WWW-Authenticate"] = "Bearer" if is_bare else 'Bearer error="invalid_token"'
        if refusal.retry_after is not None:
            self.headers["Retry-After"] = str(refusal.retry_after)
        title = HTTPStatus(refusal.status).phrase
        problem = {"type": "about:blank", "title": title, "status": refusal.status, "detail": refusal.detail}
        self.body = json.dumps(problem | {"code": refusal.code}).encode()


@dataclass(frozen=True, slots=True)
class Caller:
    """`kind` is `user`, or `service` for a key that belongs to no user. `key_id` for an API key, else `session_id`."""

    kind: str
    user_id: str | None
    scopes: frozenset[str]
    role: str | None = None
    key_id: str | None = None
    session_id: str | None = None
    expires_at: float | None = None  # Unix time

    def require(self, *scopes: str) -> None:
        """Nothing when it holds them all, else a `RefusedError` with 403."""
        if missing := [scope for scope in scopes if scope not in self.scopes]:
            raise RefusedError(Refusal(403, "insufficient_scope", f"This needs the scope {', '.join(missing)}."))


Outcome = Caller | Refusal
Steps = Generator[Future[Outcome | None], Outcome | None, Outcome]

_NOTHING_SHOWN: Final = Refusal(401, "not_authenticated", "Send an access token or an API key.")
_AMBIGUOUS: Final = Refusal(400, "ambiguous_credentials", "Send an access token or an API key, not both.")
_INVALID_TOKEN: Final = Refusal(401, "invalid_token", "The access token is not valid.")
_EXPIRED_TOKEN: Final = Refusal(401, "token_expired", "The access token has expired.")
_INVALID_KEY: Final = Refusal(401, "invalid_api_key", "The API key is not valid.")
_NOT_ENROLLED: Final = Refusal(401, "mfa_required", "The user must set up a second factor first.")
_AWAY: Final = Refusal(503, "authentication_unavailable", "Credentials can't be verified at present.", 2)
_OF_CODE: Final = {
    "api_key_expired": Refusal(401, "api_key_expired", "The API key has expired."),
    "ip_not_allowed": Refusal(403, "ip_not_allowed", "The API key is not for use from this address."),
    "mfa_required": _NOT_ENROLLED,
    "rate_limited": Refusal(429, "rate_limited", "Too many requests with this API key.", 1),
    "quota_exceeded": Refusal(429, "quota_exceeded", "The quota of this API key is used up.", 60),
}


class _Memory:
    """What is known for a time. The oldest makes room."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._known: OrderedDict[bytes, tuple[float, Outcome]] = OrderedDict()

    def get(self, digest: bytes) -> Outcome | None:
        with self._lock:
            until, outcome = self._known.get(digest, (0.0, None))
            if outcome is not None and until <= time.monotonic():
                del self._known[digest]
                return None
            return outcome

    def put(self, digest: bytes, outcome: Outcome, until: float) -> None:
        with self._lock:
            self._known[digest] = (until, outcome)
            self._known.move_to_end(digest)
            if len(self._known) > self._size:
                self._known.popitem(last=False)


class Octopus:
    """Make one and share it: it is safe for threads, and holds connections and what it remembers.

    `api_key` is a service key with the scope `tokens:introspect`; without one only tokens that are verified here are
    good. `introspect` asks about every token: who signs out is out after `cache_seconds`, not when the token expires.
    """

    def __init__(  # noqa: PLR0913 - as many settings, all but one with a default
        self,
        url: str,
        *,
        api_key: str | None = None,
        issuer: str = "octopus",
        audience: str = "octopus",
        introspect: bool = False,
        cache_seconds: float = 10.0,
        cache_size: int = 10_000,
        timeout: float = 3.0,
        connections: int = 8,
    ) -> None:
        self._issuer, self._audience, self._introspects = issuer, audience, introspect
        self._cache_seconds, self._timeout, self._may_ask = cache_seconds, timeout, api_key is not None
        headers = {} if api_key is None else {"Octopus-API-Key": api_key}
        limits = httpx.Limits(max_connections=connections)
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout, limits=limits)
        self._pool = ThreadPoolExecutor(connections, "octopus")
        self._salt, self._lock = secrets.token_bytes(32), threading.Lock()
        self._good, self._bad = _Memory(cache_size), _Memory(cache_size)  # a flood of bad ones drives out no good one
        self._flights: dict[bytes, Future[Outcome | None]] = {}
        self._away_until: dict[str, float] = {}
        self._keys: dict[str, jwt.PyJWK] = {}
        self._keys_at = self._keys_asked_at = -KEYS_GOOD_FOR

    def verify(self, headers: Mapping[str, str], *, ip: str | None = None) -> Caller:
        """Who shows this. Waits for Octopus when it must; `RefusedError` for whoever is not to be let in.

        `headers` are looked up by names in lower case. `ip` is where the request came from.
        """
        steps, told = self._steps(headers, ip), None
        try:
            while True:
                told = steps.send(told).result(2 * self._timeout)
        except StopIteration as end:
            return _admitted(end.value)
        except TimeoutError:
            raise RefusedError(_AWAY) from None

    async def verify_async(self, headers: Mapping[str, str], *, ip: str | None = None) -> Caller:
        """The same without keeping the event loop of asyncio waiting."""
        steps, told = self._steps(headers, ip), None
        try:
            while True:
                flight = asyncio.shield(asyncio.wrap_future(steps.send(told)))  # others may wait for it too
                told = await asyncio.wait_for(flight, 2 * self._timeout)
        except StopIteration as end:
            return _admitted(end.value)
        except TimeoutError:
            raise RefusedError(_AWAY) from None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _steps(self, headers: Mapping[str, str], ip: str | None) -> Steps:
        """The way to an outcome; it yields what must be waited for, however the caller waits."""
        authorization, key = headers.get("authorization"), headers.get("octopus-api-key")
        if authorization is not None and key is not None:
            return _AMBIGUOUS
        if key is not None:
            if not (self._may_ask and looks_like_key(key)):
                return _INVALID_KEY
            address = _address(ip)
            return (yield from self._told(f"key {address} {key}", partial(self._ask_about_key, key, address)))
        if authorization is None:
            return _NOTHING_SHOWN
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not _TOKEN.fullmatch(token):
            return _INVALID_TOKEN
        return (yield from self._of_token(token))

    def _of_token(self, token: str) -> Steps:
        if not self._introspects:
            kid = _kid_of(token)
            asked, now = self._keys_asked_at, time.monotonic()
            if now - self._keys_at > KEYS_GOOD_FOR or (kid not in self._keys and now - asked > KEYS_ASKED_EVERY):
                yield self._flight(b"keys", self._fetch_keys)
            elif now - self._keys_at > KEYS_RENEWED_AFTER and now - asked > KEYS_ASKED_EVERY:
                self._flight(b"keys", self._fetch_keys)
            if time.monotonic() - self._keys_at > KEYS_GOOD_FOR:
                return _AWAY
            if self._keys:
                return self._decoded(token, self._keys.get(kid))
        if not self._may_ask:
            return _INVALID_TOKEN
        return (yield from self._told(f"token {token}", partial(self._ask_about_token, token)))

    def _decoded(self, token: str, key: jwt.PyJWK | None) -> Outcome:
        """By the algorithm that Octopus publishes with the key, whatever the token names."""
        if key is None:  # maybe a new one, when nobody could be asked
            return _AWAY if self._keys_asked_at > self._keys_at else _INVALID_TOKEN
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                leeway=5,
                options={"require": _REQUIRED, "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            return _EXPIRED_TOKEN
        except jwt.PyJWTError:
            return _INVALID_TOKEN
        return _outcome_of_claims(claims)

    def _told(self, what: str, ask: Callable[[], Outcome]) -> Steps:
        """What Octopus says, now or a moment ago."""
        digest = hashlib.blake2b(what.encode(errors="surrogateescape"), key=self._salt, digest_size=32).digest()
        outcome = self._good.get(digest) or self._bad.get(digest)
        if outcome is None:
            outcome = yield self._flight(digest, partial(self._ask_and_remember, digest, ask))
        return outcome or _AWAY

    def _flight(self, name: bytes, ask: Callable[[], Outcome | None]) -> Future[Outcome | None]:
        """The answer under way to that question, or a new one."""
        with self._lock:
            if name in self._flights:
                return self._flights[name]
            if len(self._flights) >= MOST_WAITING:
                full: Future[Outcome | None] = Future()
                full.set_result(None)
                return full
            flight = self._flights[name] = self._pool.submit(_safely, ask)
        flight.add_done_callback(lambda _: self._flights.pop(name, None))
        return flight

    def _ask_and_remember(self, digest: bytes, ask: Callable[[], Outcome]) -> Outcome:
        now, outcome = time.monotonic(), ask()
        if isinstance(outcome, Caller):
            left = self._cache_seconds if outcome.expires_at is None else outcome.expires_at - time.time()
            self._good.put(digest, outcome, now + min(self._cache_seconds, left))
        elif outcome is not _AWAY:
            self._bad.put(digest, outcome, now + min(self._cache_seconds, REFUSED_FOR))
        return outcome

    def _ask_about_key(self, key: str, ip: str | None) -> Outcome:
        answer = self._call("POST", "/api/v1/api-keys/verify", json={"key": key, "ip": ip})
        if answer is None:
            return _AWAY
        if answer.get("valid") is not True:
            return _OF_CODE.get(answer.get("code", ""), _INVALID_KEY)
        ends, owner = answer.get("expires_at"), answer.get("owner_id")
        return Caller(
            kind="service" if owner is None else "user",
            user_id=owner,
            scopes=frozenset(answer["scopes"]),
            key_id=answer["key_id"],
            expires_at=datetime.fromisoformat(ends).timestamp() if ends else None,
        )

    def _ask_about_token(self, token: str) -> Outcome:
        answer = self._call("POST", "/api/v1/auth/introspect", data={"token": token})
        if answer is None:
            return _AWAY
        is_good = answer.get("active") is True and answer.get("token_type") == "bearer"
        return _outcome_of_claims(answer) if is_good else _INVALID_TOKEN

    def _fetch_keys(self) -> None:
        self._keys_asked_at = now = time.monotonic()
        answer = self._call("GET", "/.well-known/jwks.json")
        if answer is not None:
            usable = [key for key in answer["keys"] if key.get("kid") and _KTY_OF.get(key.get("alg")) == key.get("kty")]
            self._keys = {key["kid"]: jwt.PyJWK(key, key["alg"]) for key in usable}
            self._keys_at = now

    def _call(self, method: str, path: str, **body: Any) -> dict[str, Any] | None:
        """The answer; none while Octopus does not answer as it should."""
        if time.monotonic() < self._away_until.get(path, 0.0):
            return None
        try:
            answer = self._client.request(method, path, **body).raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            _log.warning("Octopus does not answer %s: %s", path, error)
            self._away_until[path] = time.monotonic() + AWAY_FOR
            return None
        return answer if isinstance(answer, dict) else None


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
_current: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("octopus_caller", default=None)


class OctopusAuth:
    """ASGI middleware: `request.state.caller` is who calls, and has all of `scopes`; none at the `public` paths."""

    def __init__(
        self, app: App, octopus: Octopus, *, public: Collection[str] = (), scopes: Collection[str] = ()
    ) -> None:
        self.app, self.octopus = app, octopus
        self.public, self.scopes = _names(public), _names(scopes)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            caller = None if scope["path"] in self.public else await self._caller(scope)
        except RefusedError as refused:
            if scope["type"] == "websocket":
                await receive()  # that it wants to connect
            await _refuse(refused, scope, send)
            return
        await self._let_in(caller, scope, receive, send)

    async def _caller(self, scope: Mapping[str, Any]) -> Caller:
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:  # of two of a name neither counts: no credential has a comma
            known = headers.get(name.decode("latin-1").lower())
            headers[name.decode("latin-1").lower()] = value.decode("latin-1") if known is None else f"{known},"
        client = scope.get("client")
        caller = await self.octopus.verify_async(headers, ip=client[0] if client else None)
        caller.require(*self.scopes)
        return caller

    async def _let_in(
        self, caller: Caller | None, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        begun: set[str] = set()

        async def watched(message: Message) -> None:
            begun.add(message["type"])
            await send(message)

        scope["state"] = {**scope.get("state", {}), "caller": caller}
        before = _current.set(caller)
        try:
            await self.app(scope, receive, watched)
        except RefusedError as refused:  # of `require`
            if "http.response.start" in begun:
                raise
            await _refuse(refused, scope, send, is_open="websocket.accept" in begun)
        finally:
            _current.reset(before)


def require(*scopes: str) -> Callable[[], Awaitable[Caller]]:
    """For `Depends` of FastAPI behind the middleware: the caller when it holds the scopes, else the answer is 403."""

    async def caller_who_may() -> Caller:
        caller = _current.get()
        if caller is None:
            raise RefusedError(_NOTHING_SHOWN)
        caller.require(*scopes)
        return caller

    return caller_who_may


async def _refuse(refused: RefusedError, scope: Mapping[str, Any], send: Send, *, is_open: bool = False) -> None:
    kind = "http.response"
    if scope["type"] == "websocket":
        kind = "websocket.http.response"
        if is_open or kind not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008, "reason": refused.code})
            return
    headers = [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
    headers.append((b"content-length", str(len(refused.body)).encode()))
    await send({"type": f"{kind}.start", "status": refused.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": refused.body})


def _names(of: Collection[str]) -> frozenset[str]:
    """One string is one name: its letters would open the path `/`."""
    return frozenset({of} if isinstance(of, str) else of)


def looks_like_key(text: str) -> bool:
    """Whether it has the form and the checksum of an API key: about typos and noise nobody is asked."""
    if not _KEY.fullmatch(text):
        return False
    value, checksum = zlib.crc32(text[:-6].encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        checksum = _DIGITS[digit] + checksum
    return text.endswith(checksum)


def _admitted(outcome: Outcome) -> Caller:
    if isinstance(outcome, Refusal):
        raise RefusedError(outcome)
    return outcome


def _outcome_of_claims(claims: Mapping[str, Any]) -> Outcome:
    scopes = frozenset((claims.get("scope") or "").split())
    if not scopes:  # as Octopus says of whose role needs a second factor, until there is one
        return _NOT_ENROLLED
    return Caller(
        kind="user",
        user_id=claims["sub"],
        scopes=scopes,
        role=claims.get("role"),
        session_id=claims.get("sid"),
        expires_at=claims["exp"],
    )


def _safely(ask: Callable[[], Outcome | None]) -> Outcome | None:
    """An answer that can't be understood is none."""
    try:
        return ask()
    except Exception:  # noqa: BLE001 - whatever it is, nobody gets in by it
        _log.exception("Octopus answers what this can't read")
        return None


def _kid_of(token: str) -> str:
    """The key that the token names; an empty one when it names none."""
    try:
        return str(jwt.get_unverified_header(token).get("kid", ""))
    except (jwt.PyJWTError, RecursionError):  # PyJWT before 2.15 stumbles over a thousand brackets
        return ""


def _address(ip: str | None) -> str | None:
    """What Octopus takes for an address. A proxy's socket has none."""
    try:
        return None if ip is None else str(ipaddress.ip_address(ip.partition("%")[0]))
    except ValueError:
        return None
