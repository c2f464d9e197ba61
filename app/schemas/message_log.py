"""Message logs on the wire. Entries of a call are read one by one, so that a bad one is refused alone."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final

from beanie import PydanticObjectId
from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, WithJsonSchema, model_validator

from app.schemas.audit_query import Moment
from app.schemas.base import Name, RequestBody, ResourceRead, ResponseBody, SearchText
from app.schemas.page import PageQuery

# Amounts that the database adds up exactly, however often.
_LARGEST_AMOUNT: Final = 10**9
_MOST_ENTRIES: Final = 1000
_MOST_FAULTS_TOLD: Final = 3
_LONGEST_NAME_TOLD: Final = 40
_DATE: Final = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _only_text(value: Any) -> Any:
    """Seconds since 1970, as a number or as its digits, are no RFC 3339."""
    if not isinstance(value, str) or not _DATE.match(value):
        raise ValueError("must be a time such as 2026-11-21T12:00:00Z")
    return value


Amount = Annotated[int, Field(strict=True, ge=0, le=_LARGEST_AMOUNT)]
Timestamp = Annotated[Moment, BeforeValidator(_only_text)]


class MessageLogEntry(RequestBody):
    """Without `tokens` they are unknown. Without `timestamp` it is now."""

    username: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    model: Name
    messages: Amount
    tokens: Amount | None = None
    timestamp: Timestamp | None = None


class MessageLogsCreate(RequestBody):
    """`{"entries": [...]}`, or the array alone."""

    entries: Annotated[
        list[Annotated[Any, WithJsonSchema(MessageLogEntry.model_json_schema())]],
        Field(min_length=1, max_length=_MOST_ENTRIES),
    ]

    @model_validator(mode="before")
    @classmethod
    def _take_array(cls, value: Any) -> Any:
        return {"entries": value} if isinstance(value, list) else value


class RejectedEntry(ResponseBody):
    """`index` counts from 0."""

    index: int
    reason: str


class MessageLogReport(ResponseBody):
    """How many entries are stored for good, and which are not, in their order."""

    accepted: int
    rejected: list[RejectedEntry]


class MessageLogRead(ResourceRead):
    """`username` is the name that the user had when it was logged."""

    user_id: PydanticObjectId
    username: str
    model: str
    messages: int
    tokens: int | None
    timestamp: datetime
    created_at: datetime


class MessageLogQuery(PageQuery):
    username: Annotated[SearchText | None, Field(description="Only those under this name, in any case")] = None
    user_id: Annotated[PydanticObjectId | None, Field(description="Only those of this user, under any name")] = None
    model: Annotated[Name | None, Field(description="Only those of this model")] = None
    since: Annotated[Moment | None, Field(alias="from", description="From this moment on")] = None
    until: Annotated[Moment | None, Field(alias="to", description="Before this moment")] = None


def entry_of(raw: Any) -> MessageLogEntry | str:
    """The entry, or in a sentence or three why it is none, without what it held."""
    if not isinstance(raw, dict):
        return "must be an object"
    # First, and alone: the framework makes an error of each, and there may be a hundred thousand.
    if unknown := raw.keys() - MessageLogEntry.model_fields.keys():
        return _told(f"{_shown(name)}: is no field of an entry" for name in sorted(unknown)[: _MOST_FAULTS_TOLD + 1])
    try:
        return MessageLogEntry.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        return _told(f"{fault['loc'][0]}: {fault['msg']}" for fault in faults)


def logs_of(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Raw logs as they go out."""
    return [{name: row["_id" if name == "id" else name] for name in MessageLogRead.model_fields} for row in rows]


def _told(faults: Iterable[str]) -> str:
    told = list(faults)
    return "; ".join([*told[:_MOST_FAULTS_TOLD], *(["and more"] if len(told) > _MOST_FAULTS_TOLD else [])])


def _shown(name: str) -> str:
    """Of a name that may be anything, what can be written."""
    return name[:_LONGEST_NAME_TOLD].encode("utf-8", "backslashreplace").decode()
