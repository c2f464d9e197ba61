"""Access tokens (JWT, RFC 7519 and 8725) and refresh tokens (opaque, rotated at every use)."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import jwt
from bson import ObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import InvalidTokenError, TokenExpiredError
from app.core.principal import Principal
from app.core.signing import PublicKey

_REQUIRED: Final = ["sub", "sid", "jti", "role", "scope", "iat", "nbf", "exp", "iss", "aud"]
_CLOCKS_DIFFER: Final = timedelta(seconds=5)  # what one host has signed is good at once on another
_SECRET_LENGTH: Final = 43  # 256 bits in base64url


class AccessToken(NamedTuple):
    """What a valid token says. Whether its session still lives is the database's to say."""

    user_id: ObjectId
    session_id: ObjectId
    expires_at: datetime
    claims: dict[str, Any]


def new_access_token(principal: Principal, *, session_ends_at: datetime | None = None) -> tuple[str, int]:
    """A signed token for a user's session, and its life in seconds: never longer than that of the session."""
    settings, now = get_settings(), utc_now()
    life = timedelta(minutes=settings.access_token_expire_minutes)
    if session_ends_at is not None:
        life = min(life, session_ends_at - now)
    claims = {
        "sub": str(principal.account_id),
        "sid": str(principal.session_id),
        "jti": secrets.token_urlsafe(12),
        "role": principal.role,
        "scope": principal.scope,
        "iat": now,
        "nbf": now - _CLOCKS_DIFFER,
        "exp": now + life,
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
    }
    return settings.token_keys.sign(claims), int(life.total_seconds())


def read_access_token(token: str) -> AccessToken:
    """Check signature, issuer, audience and times; raise `TokenExpiredError` or `InvalidTokenError`."""
    error: jwt.PyJWTError | None = None
    for key in _keys_for(token):
        try:
            return _decoded(token, key)
        except jwt.InvalidSignatureError as wrong_key:
            error = wrong_key
        except jwt.ExpiredSignatureError as expired:
            raise TokenExpiredError from expired
        except jwt.PyJWTError as invalid:
            raise InvalidTokenError from invalid
    raise InvalidTokenError from error


def _keys_for(token: str) -> Sequence[bytes | PublicKey]:
    try:
        return get_settings().token_keys.keys_for(token)
    except jwt.PyJWTError as invalid:
        raise InvalidTokenError from invalid


def _decoded(token: str, key: bytes | PublicKey) -> AccessToken:
    settings = get_settings()
    claims = jwt.decode(
        token,
        key,
        algorithms=[settings.token_keys.algorithm],  # never the one that the token names
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        options={"require": _REQUIRED, "verify_iat": False},  # it says when, not from when on (RFC 7519, 4.1.6)
    )
    if not (ObjectId.is_valid(claims["sub"]) and ObjectId.is_valid(claims["sid"])):
        raise InvalidTokenError
    expires_at = datetime.fromtimestamp(claims["exp"], UTC)
    return AccessToken(ObjectId(claims["sub"]), ObjectId(claims["sid"]), expires_at, claims)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """`<session id>.<secret>`.

    The first secret is 256 random bits. Each following one is a keyed hash of the one before, so that a
    client which lost an answer can be given the same successor again without the server keeping it, and a
    spent token can be recognised by walking forward from it. Without the server's key a holder
    of a spent token can't take that walk.
    """

    session_id: ObjectId
    secret: str

    @classmethod
    def new(cls, session_id: ObjectId) -> "RefreshToken":
        return cls(session_id, secrets.token_urlsafe(32))

    @classmethod
    def parse(cls, text: str) -> "RefreshToken | None":
        session_id, _, secret = text.partition(".")
        if not ObjectId.is_valid(session_id) or len(secret) != _SECRET_LENGTH or not secret.isascii():
            return None
        return cls(ObjectId(session_id), secret)

    def successors(self) -> list["RefreshToken"]:
        """The next token, under the current key and then under each previous one."""
        keys = get_settings().keyring.derive("refresh")
        return [RefreshToken(self.session_id, secret.decode()) for secret in _following(keys, str(self).encode())]

    def precedes(self, digest: bytes, *, within: int) -> bool:
        """True when the token whose digest is given descends from this one in at most that many steps.

        A long walk belongs into a thread.
        """
        keys, prefix, secret = get_settings().keyring.derive("refresh"), self._prefix.encode(), self.secret.encode()
        for _ in range(within):
            following = _following(keys, prefix + secret)
            if any(hmac.compare_digest(hashlib.sha256(each).digest(), digest) for each in following):
                return True
            secret = following[0]  # only the newest key goes on; a rotation of secrets ends older walks
        return False

    @property
    def digest(self) -> bytes:
        """What is stored. The secret has 256 random bits, so a plain hash is enough."""
        return hashlib.sha256(self.secret.encode()).digest()

    @property
    def _prefix(self) -> str:
        return f"{self.session_id}."

    def __str__(self) -> str:
        return self._prefix + self.secret


def _following(keys: Sequence[bytes], token: bytes) -> list[bytes]:
    """The secret that follows the token, under each of the keys."""
    return [base64.urlsafe_b64encode(hmac.digest(key, token, "sha256")).rstrip(b"=") for key in keys]


def refresh_life() -> timedelta:
    return timedelta(days=get_settings().refresh_token_expire_days)


def session_life() -> timedelta:
    """How long after its beginning a session ends, however often it was refreshed."""
    return timedelta(days=get_settings().session_max_days)
