from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from app.core.ecs import fields_of
from app.models.enums import AuditAction

# What the schema calls the expected event types of these categories (ECS 8.17).
ALLOWED = {
    "api": {
        *("access", "admin", "allowed", "change", "creation", "deletion", "denied", "end", "info", "start", "user"),
    },
    "authentication": {"start", "end", "info"},
    "configuration": {"access", "change", "creation", "deletion", "info"},
    "database": {"access", "change", "info", "error"},
    "iam": {"admin", "change", "creation", "deletion", "group", "info", "user"},
    "session": {"start", "end", "info"},
    "web": {"access", "error", "info"},
}
TOLD = {
    "api_key:activated": ("iam", "change"),
    "api_key:created": ("iam", "creation"),
    "api_key:deactivated": ("iam", "change"),
    "api_key:deleted": ("iam", "deletion"),
    "api_key:rotated": ("iam", "change"),
    "api_key:updated": ("iam", "change"),
    "api_keys:deactivated": ("iam", "change"),
    "audit:exported": ("configuration", "access"),
    "audit:pruned": ("configuration", "deletion"),
    "conversation:created": ("api", "creation"),
    "conversation:deleted": ("api", "deletion"),
    "conversation:updated": ("api", "change"),
    "item:created": ("api", "creation"),
    "item:deleted": ("api", "deletion"),
    "item:updated": ("api", "change"),
    "job:requested": ("configuration", "info"),
    "message:deleted": ("api", "deletion"),
    "message:updated": ("api", "change"),
    "message_logs:stored": ("api", "creation"),
    "mfa:disabled": ("iam", "change"),
    "mfa:enabled": ("iam", "change"),
    "mfa:prepared": ("iam", "change"),
    "participant:added": ("api", "creation"),
    "participant:removed": ("api", "deletion"),
    "password_reset:requested": ("iam", "info"),
    "recovery_code:used": ("iam", "change"),
    "recovery_codes:renewed": ("iam", "change"),
    "request:refused": ("api", "denied"),
    "requests:refused": ("api", "denied"),
    "service:bootstrapped": ("configuration", "creation"),
    "session:created": ("authentication session", "start"),
    "session:ended": ("authentication session", "end"),
    "session:refreshed": ("authentication session", "info"),
    "session:refused": ("authentication", "start"),
    "session:reuse_detected": ("authentication session", "info"),
    "sessions:ended": ("authentication session", "end"),
    "upload:created": ("api", "creation"),
    "upload:deleted": ("api", "deletion"),
    "upload:refused": ("api", "denied"),
    "user:created": ("iam", "creation"),
    "user:credited": ("iam", "change"),
    "user:deleted": ("iam", "deletion"),
    "user:exported": ("iam", "info"),
    "user:limits_reset": ("iam", "change"),
    "user:locked": ("iam", "change"),
    "user:password_reset": ("iam", "change"),
    "user:purge_requested": ("iam", "change"),
    "user:purged": ("iam", "deletion"),
    "user:restored": ("iam", "change"),
    "user:updated": ("iam", "change"),
    "user:verified": ("iam", "change"),
}


def told(action: str) -> dict[str, Any]:
    return fields_of(
        {
            "id": ObjectId(),
            "time": datetime(2026, 3, 1, tzinfo=UTC),
            "actor": {"kind": "system", "id": None, "name": None},
            "action": action,
            "target": {"kind": "user", "id": None},
            "outcome": "failure",
            "ip": None,
            "user_agent": None,
            "request_id": None,
            "details": {},
        }
    )


class TestFieldsOf:
    @pytest.mark.parametrize(("action", "expected"), TOLD.items())
    def test_names_the_category_and_the_type_of_an_action(self, action: str, expected: tuple[str, str]) -> None:
        line = told(action)

        assert (" ".join(line["event.category"]), " ".join(line["event.type"])) == expected
        assert (line["event.action"], line["event.outcome"]) == (action, "failure")

    @pytest.mark.parametrize("action", list(AuditAction))
    def test_joins_only_what_the_schema_lets_go_together(self, action: AuditAction) -> None:
        line = told(action)

        assert all(set(line["event.type"]) <= ALLOWED[category] for category in line["event.category"])
