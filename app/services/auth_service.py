"""From a credential to the principal behind it, with at most one read, and usually none."""

import hashlib
import hmac
from datetime import datetime

from bson import ObjectId

from app.core import key_format, live_cache
from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.context import current_context
from app.core.exceptions import (
    ApiKeyExpiredError,
    ConflictError,
    InvalidApiKeyError,
    IpNotAllowedError,
    TokenRevokedError,
)
from app.core.live_cache import LiveCache
from app.core.network import is_in
from app.core.plans import limits_of
from app.core.principal import Principal, PrincipalKind
from app.core.scopes import NO_GRANT, Grant, Role, expand, grant_of
from app.core.tokens import read_access_token
from app.crud import crud_api_key, crud_session, crud_user
from app.db.mongo import Raw
from app.models.api_key import ApiKey

# By the digest of the credential, so that no usable one is kept in memory.
_principals: LiveCache[Principal] = LiveCache()


async def authenticate_token(token: str) -> Principal:
    """The user behind an access token, as long as its session lives."""
    digest = hashlib.sha256(token.encode()).digest()
    if (known := _principals.get(digest)) is not None:
        return known
    claims = read_access_token(token)
    seen = live_cache.changes_seen()
    session = await crud_session.find_live(claims.session_id, user_id=claims.user_id)
    if session is None:
        raise TokenRevokedError
    principal = _principal_of_session(session, claims.user_id, token_expires_at=claims.expires_at)
    life = _life(claims.expires_at)
    _principals.put(digest, principal, tags=[claims.session_id, claims.user_id], seen=seen, life=life)
    return principal


async def authenticate_api_key(text: str, *, ip: str | None) -> Principal:
    """The service, or the user, behind an API key that is used from this address."""
    principal = await identify_api_key(text)
    current_context().principal = principal  # a refusal is its, too
    if principal.allowed_ips and not is_in(ip, principal.allowed_ips):
        raise IpNotAllowedError(api_key_id=principal.credential_id)
    return principal


async def identify_api_key(text: str) -> Principal:
    """The same wherever it is used: for who was shown the key by somebody else."""
    digest = hashlib.sha256(text.encode()).digest()
    return _principals.get(digest) or await _look_up_key(text, digest)


async def _look_up_key(text: str, digest: bytes) -> Principal:
    parsed = key_format.parse(text)
    if parsed is None:
        raise InvalidApiKeyError
    seen = live_cache.changes_seen()
    key = await crud_api_key.find_by_key_id(parsed.key_id)
    if key is None or not is_key(text, key.key_hash):
        raise InvalidApiKeyError
    if not key.is_active:
        raise InvalidApiKeyError(api_key_id=key.id)
    if key.expires_at is not None and key.expires_at <= utc_now():
        raise ApiKeyExpiredError(api_key_id=key.id)
    principal = await _principal_of(key)
    tags = [key.id, *([key.owner_id] if key.owner_id else [])]
    _principals.put(digest, principal, tags=tags, seen=seen, life=_life(key.expires_at))
    return principal


async def renewed(principal: Principal, *, ip: str | None) -> Principal | None:
    """The same caller as its credential makes it now, used from this address; none when that is no longer good."""
    if principal.kind is PrincipalKind.USER:
        session = await crud_session.find_live(principal.session_id, user_id=principal.account_id)
        ends_at = principal.token_expires_at
        return _principal_of_session(session, principal.account_id, token_expires_at=ends_at) if session else None
    key = await crud_api_key.find(principal.credential_id)
    if key is None or not key.is_active or (key.expires_at is not None and key.expires_at <= utc_now()):
        return None
    try:
        present = await _principal_of(key)
    except InvalidApiKeyError:
        return None
    return present if not present.allowed_ips or is_in(ip, present.allowed_ips) else None


async def hold(by: Principal) -> None:
    """Let the transaction under way stand only if the caller is at its end who it was when the request came.

    What is made on the strength of a credential ends with it, and is no wider than it: whoever ends, narrows or
    rotates the credential at this moment writes what is written here, so one of the two transactions sees the other.
    """
    present = by
    if by.kind is PrincipalKind.USER:
        if (session := await crud_session.hold(by.session_id)) is None:
            raise TokenRevokedError
        present = _principal_of_session(session, by.account_id)
    elif by.kind is PrincipalKind.API_KEY and by.credential_id:
        if (key := await crud_api_key.hold(by.credential_id)) is None:
            raise InvalidApiKeyError
        present = await _principal_of(key)
    if present != by:
        raise ConflictError("The credentials that you are using were changed meanwhile. Try again.")


def _principal_of_session(session: Raw, user_id: ObjectId, *, token_expires_at: datetime | None = None) -> Principal:
    return Principal.of_user(
        user_id,
        name=session["username"],
        role=Role(session["role"]),
        session_id=session["_id"],
        staff_level=session.get("staff_level"),
        has_mfa=session.get("has_mfa", False),
        rate_limit=session.get("rate_limit"),
        token_expires_at=token_expires_at,
    )


async def _principal_of(key: ApiKey) -> Principal:
    """A service key reaches everybody's data within its scopes, a personal one what its owner can reach today."""
    scopes = expand(key.scopes)
    grant, role, must_enrol, plan_rate = Grant(own=scopes, others=scopes), None, False, None
    if key.owner_id is not None:
        owner = await crud_user.find(key.owner_id)
        if owner is None or not owner.is_active:
            raise InvalidApiKeyError(api_key_id=key.id)
        must_enrol = owner.role in get_settings().require_mfa_for and not owner.mfa_enabled
        grant = NO_GRANT if must_enrol else grant_of(owner.role, owner.staff_level).limited_to(scopes)
        role, plan_rate = owner.role, limits_of(owner.plan, owner.limits).rate
    return Principal(
        kind=PrincipalKind.API_KEY,
        name=key.name,
        grant=grant,
        user_id=key.owner_id,
        credential_id=key.id,
        role=role,
        allowed_ips=tuple(key.allowed_ips),
        rate_limit=key.rate_limit,
        plan_rate_limit=plan_rate,
        must_enrol=must_enrol,
        expires_at=key.expires_at,
        quota=key.quota,
        lineage_id=key.lineage,
    )


def hash_key(text: str) -> bytes:
    """What is stored of a key: HMAC-SHA-256 under a pepper that the database does not hold."""
    return get_settings().keyring.mac("api key", text.encode())


def is_key(text: str, key_hash: bytes) -> bool:
    """Whether the key is the one that was stored, under the present or a previous secret. In constant time."""
    macs = get_settings().keyring.macs("api key", text.encode())
    return any([hmac.compare_digest(mac, key_hash) for mac in macs])  # noqa: C419 - every one is compared


def _life(expires_at: datetime | None) -> float | None:
    """Seconds that are left; none when it does not end."""
    return None if expires_at is None else (expires_at - utc_now()).total_seconds()
