from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from beanie import PydanticObjectId
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from app.core.network import parse_network
from app.core.quota import Quota, QuotaPeriod
from app.core.rate_limit import is_rate
from app.core.scopes import SCOPES_OF_NAME
from app.schemas.base import Description, Name, PatchBody, RequestBody, ResourceRead, ResponseBody

_MAX_BLOCKS = 100


def _split(value: Any) -> Any:
    """One comma-separated string means the same as a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _known_scopes(names: Sequence[str]) -> list[str]:
    unknown = sorted(set(names) - SCOPES_OF_NAME.keys())
    if unknown:
        raise ValueError(f"unknown scope; the scopes are {', '.join(SCOPES_OF_NAME)}")
    return sorted(set(names))


def _networks(blocks: Sequence[str]) -> list[str]:
    try:
        return [str(parse_network(block)) for block in blocks]
    except ValueError as error:
        raise ValueError("must be addresses or CIDR blocks, such as 192.0.2.7 or 2001:db8::/32") from error


def _rate(text: str) -> str:
    if not is_rate(text):
        raise ValueError("must be a rate, such as 600/minute")
    return text


def _in_utc(moment: datetime) -> datetime:
    """To the millisecond, because that is what is stored: what is answered now is what is read later."""
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is beyond the calendar") from error


_Short = Annotated[str, StringConstraints(max_length=100)]
KeyScopes = Annotated[
    list[_Short], BeforeValidator(_split), Field(min_length=1, max_length=50), AfterValidator(_known_scopes)
]
AllowedIps = Annotated[list[_Short], BeforeValidator(_split), Field(max_length=_MAX_BLOCKS), AfterValidator(_networks)]
Rate = Annotated[_Short, AfterValidator(_rate)]
Moment = Annotated[datetime, AfterValidator(_in_utc)]


class ApiKeyCreate(RequestBody):
    name: Name
    description: Description | None = None
    scopes: KeyScopes
    expires_at: Moment | None = None
    allowed_ips: AllowedIps = Field(default_factory=list)
    rate_limit: Rate | None = None
    quota: Quota | None = None


class ApiKeyUpdate(PatchBody):
    clearable: ClassVar = frozenset({"description", "expires_at", "rate_limit", "quota"})

    name: Name | None = None
    description: Description | None = None
    scopes: KeyScopes | None = None
    expires_at: Moment | None = None
    allowed_ips: AllowedIps | None = None
    rate_limit: Rate | None = None
    quota: Quota | None = None
    is_active: bool | None = None


class ApiKeyRotate(RequestBody):
    grace_seconds: Annotated[
        int, Field(ge=0, le=7 * 24 * 3600, description="How long the old key goes on working; 0 for one that leaked")
    ] = 0


class QuotaRead(ResponseBody):
    limit: int
    period: QuotaPeriod
    remaining: int
    resets_at: datetime


class ApiKeyProperties(ResourceRead):
    """`key_id` is the public part of the key, by which its owner recognises it."""

    key_id: str
    name: str
    description: str | None
    scopes: list[str]
    allowed_ips: list[str]
    rate_limit: str | None
    owner_id: PydanticObjectId | None
    created_by: PydanticObjectId | None
    is_active: bool
    expires_at: datetime | None
    rotated_from: Annotated[PydanticObjectId | None, Field(description="The key that this one replaces")]
    grace_until: Annotated[datetime | None, Field(description="When it ends, for a key that was replaced")]
    last_used_at: Annotated[datetime | None, Field(description="When it was last let in, to within 10 s")]
    last_used_ip: str | None
    created_at: datetime
    updated_at: datetime


class ApiKeyRead(ApiKeyProperties):
    quota: QuotaRead | None


class ApiKeyCreated(ApiKeyRead):
    key: Annotated[str, Field(description="Shown this once. It can't be read again.")]
