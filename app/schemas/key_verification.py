from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from beanie import PydanticObjectId
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from app.core.network import parse_address
from app.schemas.api_key import KeyScopes
from app.schemas.base import RequestBody, ResponseBody


def _address(text: str) -> str:
    address = parse_address(text)
    if address is None:
        raise ValueError("must be an address, such as 192.0.2.7 or 2001:db8::7")
    return str(address)


ShownFrom = Annotated[
    Annotated[str, StringConstraints(max_length=100), AfterValidator(_address)] | None,
    Field(description="Where it was shown from. A key that is limited to addresses is good from nowhere without"),
]


def _none_of_nothing(value: Any) -> Any:
    """No scopes are asked for, whichever way that is written."""
    return None if value in ([], "") else value


class KeyVerificationCode(StrEnum):
    """The first thing that is wrong with a key, in this order; the codes of the refusals that it would meet itself."""

    VALID = "valid"
    INVALID_API_KEY = "invalid_api_key"
    API_KEY_EXPIRED = "api_key_expired"
    IP_NOT_ALLOWED = "ip_not_allowed"
    MFA_REQUIRED = "mfa_required"
    INSUFFICIENT_SCOPE = "insufficient_scope"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"


class KeyToVerify(RequestBody):
    key: Annotated[str, Field(description="What somebody has shown as its key; anything at all", repr=False)]
    scopes: Annotated[
        KeyScopes | None, BeforeValidator(_none_of_nothing), Field(description="What it is to be good for, all of it")
    ] = None
    ip: ShownFrom = None


class KeyVerification(ResponseBody):
    """What is known of a key. Of one that is no key of ours, or not any more, nothing but that."""

    valid: bool
    code: KeyVerificationCode
    key_id: Annotated[str | None, Field(description="The public part of the key")] = None
    owner_id: Annotated[PydanticObjectId | None, Field(description="The user that it acts as; none for a service")] = (
        None
    )
    scopes: Annotated[tuple[str, ...], Field(description="What it may do at present")] = ()
    expires_at: datetime | None = None
    remaining: Annotated[int | None, Field(description="What is left of its quota; null without one")] = None
