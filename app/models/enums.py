"""The closed vocabularies of what is stored."""

from enum import StrEnum


class Plan(StrEnum):
    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"


class ParticipantRole(StrEnum):
    OWNER = "owner"
    MEMBER = "member"


class MessageRole(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


class AuditOutcome(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"


class AuditAction(StrEnum):
    """`resource:past participle`: what has happened."""

    API_KEY_ACTIVATED = "api_key:activated"
    API_KEY_CREATED = "api_key:created"
    API_KEY_DEACTIVATED = "api_key:deactivated"
    API_KEY_DELETED = "api_key:deleted"
    API_KEY_UPDATED = "api_key:updated"
    CONVERSATION_CREATED = "conversation:created"
    CONVERSATION_DELETED = "conversation:deleted"
    CONVERSATION_UPDATED = "conversation:updated"
    PARTICIPANT_ADDED = "participant:added"
    PARTICIPANT_REMOVED = "participant:removed"
    SERVICE_BOOTSTRAPPED = "service:bootstrapped"
    SESSION_CREATED = "session:created"
    SESSION_ENDED = "session:ended"
    SESSION_REFRESHED = "session:refreshed"
    SESSION_REFUSED = "session:refused"
    SESSION_REUSE_DETECTED = "session:reuse_detected"
    SESSIONS_ENDED = "sessions:ended"
    USER_CREATED = "user:created"
    USER_DELETED = "user:deleted"
    USER_UPDATED = "user:updated"
