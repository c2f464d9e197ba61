"""An audit event as a line of the log, in the names of the Elastic Common Schema, which SIEM products read."""

from collections.abc import Mapping
from typing import Any, Final

from app.core.hash_chain import render_time

VERSION: Final = "8.17.0"
# A category goes only with the types that the schema names for it: there is no `denied` in `authentication` or `iam`,
# and no `creation` in `database`. That something was refused is said by `event.outcome` there.
_CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = {
    "session": ("authentication", "session"),
    "sessions": ("authentication", "session"),
    "session:refused": ("authentication",),  # there was none
    "request": ("api",),
    "requests": ("api",),
    "audit": ("configuration",),
    "job": ("configuration",),
    "service": ("configuration",),
    "conversation": ("api",),
    "item": ("api",),
    "message": ("api",),
    "message_logs": ("api",),
    "upload": ("api",),
    "participant": ("api",),
}
_OTHER_CATEGORY: Final = ("iam",)  # accounts, and what lets somebody in
_TYPES: Final[Mapping[str, str]] = {
    "added": "creation",
    "bootstrapped": "creation",
    "created": "creation",
    "deleted": "deletion",
    "ended": "end",
    "exported": "info",
    "pruned": "deletion",
    "purged": "deletion",
    "refused": "denied",
    "removed": "deletion",
    "requested": "info",
    "audit:exported": "access",
    "stored": "creation",
    "session:created": "start",
    "session:refused": "start",  # a sign-in that failed: so the schema has it
    "session:refreshed": "info",
    "session:reuse_detected": "info",
}
_OTHER_TYPE: Final = "change"


def fields_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the line, without those that would be empty. docs/audit.md explains them."""
    actor, target = event["actor"], event["target"]
    action: str = event["action"]
    fields = {
        "@timestamp": render_time(event["time"]),
        "ecs.version": VERSION,
        "event.kind": "event",
        "event.dataset": "octopus.audit",
        "event.category": list(_categories(action)),
        "event.type": [_type(action)],
        "event.action": action,
        "event.outcome": event["outcome"],
        "event.id": str(event["id"]),
        "user.id": _text(actor["id"]),
        "user.name": actor["name"],
        "user.target.id": _text(target["id"]) if target["kind"] == "user" else None,
        "source.ip": event["ip"],
        "user_agent.original": event["user_agent"],
        "http.request.id": event["request_id"],
        "octopus.actor.kind": actor["kind"],
        "octopus.target.kind": target["kind"],
        "octopus.target.id": _text(target["id"]),
        "octopus.details": event["details"],
    }
    return {name: value for name, value in fields.items() if value not in (None, {})}


def _categories(action: str) -> tuple[str, ...]:
    return _CATEGORIES.get(action) or _CATEGORIES.get(action.partition(":")[0], _OTHER_CATEGORY)


def _type(action: str) -> str:
    return _TYPES.get(action) or _TYPES.get(action.partition(":")[2], _OTHER_TYPE)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
