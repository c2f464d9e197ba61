"""An audit event as a line of the log, in the names of the Elastic Common Schema, which SIEM products read."""

from collections.abc import Mapping
from typing import Any, Final

from app.core.hash_chain import render_time

VERSION: Final = "8.17"
_CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = {
    "session": ("authentication", "session"),
    "sessions": ("authentication", "session"),
    "request": ("web",),
    "requests": ("web",),
    "audit": ("configuration",),
    "service": ("configuration",),
    "conversation": ("database",),
    "item": ("database",),
    "participant": ("database",),
}
_OTHER_CATEGORY: Final = ("iam",)  # accounts, and what lets somebody in
_TYPES: Final[Mapping[str, str]] = {
    "added": "creation",
    "bootstrapped": "creation",
    "created": "creation",
    "deleted": "deletion",
    "ended": "end",
    "exported": "access",
    "pruned": "deletion",
    "purged": "deletion",
    "refused": "denied",
    "removed": "deletion",
}
_OF_SESSIONS: Final[Mapping[str, str]] = {"created": "start", "ended": "end", "refused": "denied"}
_OTHER_TYPE: Final = "change"


def fields_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the line, without those that would be empty. docs/audit.md explains them."""
    actor, target = event["actor"], event["target"]
    resource, _, verb = event["action"].partition(":")
    types = _OF_SESSIONS if resource in {"session", "sessions"} else _TYPES
    fields = {
        "@timestamp": render_time(event["time"]),
        "ecs.version": VERSION,
        "event.kind": "event",
        "event.dataset": "octopus.audit",
        "event.category": list(_CATEGORIES.get(resource, _OTHER_CATEGORY)),
        "event.type": [types.get(verb, _OTHER_TYPE)],
        "event.action": event["action"],
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


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
