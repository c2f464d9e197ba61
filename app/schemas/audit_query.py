"""Which audit events are asked for."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from beanie import PydanticObjectId
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.core.network import parse_address
from app.models.enums import AuditAction, AuditOutcome
from app.schemas.page import PageQuery


def _in_utc(moment: datetime) -> datetime:
    """Without an offset it is UTC."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:  # the first or the last day there is, elsewhere
        raise ValueError("must be a time between the years 1 and 9999 in UTC") from error


def _as_stored(text: str) -> str:
    address = parse_address(text)
    if address is None:
        raise ValueError("must be an IP address")
    return str(address)


Moment = Annotated[datetime, AfterValidator(_in_utc)]
Address = Annotated[str, Field(max_length=64), AfterValidator(_as_stored)]


class AuditFilter(BaseModel):
    """All of what is named must be so."""

    model_config = ConfigDict(frozen=True)

    actor: Annotated[PydanticObjectId | None, Field(description="Id of who has acted")] = None
    action: Annotated[AuditAction | None, Field(description="What has happened, such as `user:created`")] = None
    target: Annotated[PydanticObjectId | None, Field(description="Id of what it was done to")] = None
    outcome: AuditOutcome | None = None
    ip: Annotated[Address | None, Field(description="Where it came from")] = None
    since: Annotated[Moment | None, Field(alias="from", description="From this moment on")] = None
    until: Annotated[Moment | None, Field(alias="to", description="Before this moment")] = None

    @property
    def named(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in AuditFilter.model_fields}


class AuditQuery(AuditFilter, PageQuery):
    pass


class AuditExportQuery(AuditFilter):
    format: Literal["jsonl", "csv"] = "jsonl"


class KeyAuditQuery(PageQuery):
    action: Annotated[AuditAction | None, Field(description="What has happened, such as `api_key:created`")] = None


class KeysAuditQuery(KeyAuditQuery):
    api_key_id: Annotated[PydanticObjectId | None, Field(description="Only those about this key")] = None


class AnchorQuery(BaseModel):
    """A place of the chain and the hash that it had: both, or neither."""

    model_config = ConfigDict(frozen=True)

    seq: Annotated[int | None, Field(ge=1, le=2**53, description="Place of an event that was written down")] = None
    hash: Annotated[str | None, Field(pattern="^[0-9a-f]{64}$", description="Hash that it had then")] = None

    @model_validator(mode="after")
    def _is_whole(self) -> "AnchorQuery":
        if (self.seq is None) != (self.hash is None):
            raise ValueError("`seq` and `hash` go together")
        return self
