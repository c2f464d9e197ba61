"""Audit events as they are shown. What is shown is what the chain hashes, so every field of it is written here once."""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from beanie import PydanticObjectId
from bson import Int64, ObjectId

from app.core.hash_chain import render_time
from app.core.principal import PrincipalKind
from app.models.enums import AuditAction, AuditOutcome
from app.schemas.base import ResourceRead, ResponseBody

Raw = Mapping[str, Any]
FaultKind = Literal["altered", "removed", "inserted", "reordered", "truncated", "rewritten"]


class AuditActorRead(ResponseBody):
    """Who has acted: a user, an API key, the service itself, or nobody that is known."""

    kind: PrincipalKind
    id: PydanticObjectId | None
    name: str | None


class AuditTargetRead(ResponseBody):
    kind: str
    id: PydanticObjectId | None


class AuditEventRead(ResourceRead):
    """`seq`, `prev_hash` and `hash` are null until the event is sealed, which takes a few seconds."""

    time: datetime
    actor: AuditActorRead
    action: AuditAction
    target: AuditTargetRead
    outcome: AuditOutcome
    ip: str | None
    user_agent: str | None
    request_id: str | None
    details: dict[str, Any]
    seq: int | None
    prev_hash: str | None
    hash: str | None


class ChainHead(ResponseBody):
    """The last event of the chain. Write it down elsewhere: later it shows whether the chain is still the same."""

    seq: int
    hash: str


class ChainFault(ResponseBody):
    """The first event that is not as it was sealed; `id` is null when there is none at that place.

    `seq` is null when what the event has for a place is no number.
    """

    seq: int | None
    id: str | None
    kind: FaultKind
    detail: str


class ChainReport(ResponseBody):
    """`checked` events from `first_seq` on are as they were sealed."""

    valid: bool
    checked: int
    first_seq: int
    head: ChainHead | None
    fault: ChainFault | None


def event_of(row: Raw) -> dict[str, Any]:
    """Total: what somebody has made of the stored event, whatever it is, can be shown and hashed."""
    return {
        "id": str(row["_id"]),
        "time": _plain(row.get("time")),
        "actor": _fields(row.get("actor"), ("kind", "id", "name")),
        "action": _plain(row.get("action")),
        "target": _fields(row.get("target"), ("kind", "id")),
        "outcome": _plain(row.get("outcome")),
        "ip": _plain(row.get("ip")),
        "user_agent": _plain(row.get("user_agent")),
        "request_id": _plain(row.get("request_id")),
        "details": _plain(row.get("details")),
        "seq": int(row["seq"]) if isinstance(row.get("seq"), Int64) else row.get("seq"),
        "prev_hash": row.get("prev_hash"),
        "hash": row.get("hash"),
    }


def _fields(value: Any, names: Iterable[str]) -> Any:
    return {name: _plain(value.get(name)) for name in names} if isinstance(value, Mapping) else _plain(value)


def _plain(value: Any) -> Any:
    """As JSON has it: ids and times as text, what is no number as null, at any depth."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return render_time(value)
    if isinstance(value, ObjectId):
        return str(value)
    if isinstance(value, Int64 | float):
        return _number(value)
    return value


def _number(value: Any) -> Any:
    """The driver's own kind of number as Python's; null for what JSON has no number for."""
    if isinstance(value, Int64):
        return int(value)
    return value if math.isfinite(value) else None
