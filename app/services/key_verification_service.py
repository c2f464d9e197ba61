"""Whether a key that was shown to another service is good there. A bad one is an answer here, not a refusal.

A key that is good draws on its quota and its own rate, as if it had been used here, and whatever becomes of a key of
ours counts in its usage. What is no key costs a checksum, and at most one look-up; the rate of who asks bounds that.
"""

from collections.abc import Awaitable, Callable

from bson import ObjectId

from app.core import key_format
from app.core.exceptions import (
    InsufficientScopeError,
    IpNotAllowedError,
    KeyQuotaExceededError,
    LimitReachedError,
    MfaRequiredError,
    RejectedCredentialError,
)
from app.core.key_usage import gathered
from app.core.network import is_in
from app.core.principal import Principal
from app.core.scopes import expand
from app.schemas.key_verification import KeyToVerify, KeyVerification, KeyVerificationCode
from app.services import auth_service, key_quota_service

SpendRate = Callable[[Principal], Awaitable[None]]


async def verify(body: KeyToVerify, *, spend_rate: SpendRate) -> KeyVerification:
    """What the key may do at present. `spend_rate` counts one request against its own rate, or raises."""
    try:
        principal = await auth_service.identify_api_key(body.key)
    except RejectedCredentialError as error:
        known = error.context.get("api_key_id")
        if isinstance(known, ObjectId):
            gathered.count(known, ip=body.ip, is_denied=True)
        return KeyVerification(valid=False, code=KeyVerificationCode(error.code))
    code, remaining = await _judge(principal, body, spend_rate)
    is_valid = code is KeyVerificationCode.VALID
    if principal.credential_id is not None:
        gathered.count(principal.credential_id, ip=body.ip, is_denied=not is_valid)
    parsed = key_format.parse(body.key)
    return KeyVerification(
        valid=is_valid,
        code=code,
        key_id=parsed.key_id if parsed else None,
        owner_id=principal.user_id,
        scopes=tuple(sorted(principal.scopes)),
        expires_at=principal.expires_at,
        remaining=remaining,
    )


async def _judge(
    principal: Principal, body: KeyToVerify, spend_rate: SpendRate
) -> tuple[KeyVerificationCode, int | None]:
    """The first thing that is wrong, and what is left of the quota. What is refused before it draws nothing."""
    try:
        _require(principal, body)
        await spend_rate(principal)
        return KeyVerificationCode.VALID, await key_quota_service.draw(principal)
    except KeyQuotaExceededError as error:
        return KeyVerificationCode(error.code), 0
    except (InsufficientScopeError, IpNotAllowedError, MfaRequiredError, LimitReachedError) as error:
        return KeyVerificationCode(error.code), None


def _require(principal: Principal, body: KeyToVerify) -> None:
    if principal.allowed_ips and not is_in(body.ip, principal.allowed_ips):
        raise IpNotAllowedError
    if principal.must_enrol:
        raise MfaRequiredError
    if body.scopes and not expand(body.scopes) <= principal.scopes:
        raise InsufficientScopeError
