"""The closed vocabularies of what is stored."""

from enum import StrEnum


class ParticipantRole(StrEnum):
    OWNER = "owner"
    MEMBER = "member"


class MessageRole(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


class ConversationEventType(StrEnum):
    """What subscribers of a conversation are told of, besides `message.created`."""

    MESSAGE_UPDATED = "message.updated"
    MESSAGE_DELETED = "message.deleted"
    PARTICIPANT_ADDED = "participant.added"
    PARTICIPANT_REMOVED = "participant.removed"
    PARTICIPANT_READ = "participant.read"
    CONVERSATION_UPDATED = "conversation.updated"
    CONVERSATION_DELETED = "conversation.deleted"
    TYPING = "typing"


class UploadStatus(StrEnum):
    """Only what is clean can be read."""

    PENDING = "pending"
    CLEAN = "clean"
    INFECTED = "infected"
    FAILED = "failed"


class Visibility(StrEnum):
    PRIVATE = "private"
    PUBLIC = "public"


class MailKind(StrEnum):
    """Each has a template of that name in `app/templates/mail`."""

    ACCOUNT_LOCKED = "account_locked"
    API_KEY_CREATED = "api_key_created"
    API_KEY_EXPIRING = "api_key_expiring"
    API_KEY_ROTATED = "api_key_rotated"
    EMAIL_CHANGED = "email_changed"
    EMAIL_VERIFICATION = "email_verification"
    MFA_DISABLED = "mfa_disabled"
    MFA_ENABLED = "mfa_enabled"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - no password
    PASSWORD_RESET = "password_reset"  # noqa: S105 - no password
    PASSWORD_RESET_DONE = "password_reset_done"  # noqa: S105 - no password
    REAUTHENTICATION_LOCKED = "reauthentication_locked"
    RECOVERY_CODE_USED = "recovery_code_used"
    RECOVERY_CODES_RENEWED = "recovery_codes_renewed"
    SECOND_FACTOR_LOCKED = "second_factor_locked"


class TokenPurpose(StrEnum):
    EMAIL_VERIFICATION = "email_verification"
    PASSWORD_RESET = "password_reset"  # noqa: S105 - no password


class AuditOutcome(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"


class IdempotencyState(StrEnum):
    """How far a request has come that has an `Idempotency-Key`."""

    RUNNING = "running"
    COMMITTED = "committed"  # it has changed something, and has not answered yet
    ANSWERED = "answered"


class JobOutcome(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"
    INTERRUPTED = "interrupted"  # by the end of its process; another goes on


class AuditAction(StrEnum):
    """`resource:past participle`: what has happened."""

    API_KEY_ACTIVATED = "api_key:activated"
    API_KEY_CREATED = "api_key:created"
    API_KEY_DEACTIVATED = "api_key:deactivated"
    API_KEY_DELETED = "api_key:deleted"
    API_KEY_EXPIRY_NOTICED = "api_key:expiry_noticed"  # and nobody there to be warned
    API_KEY_ROTATED = "api_key:rotated"
    API_KEY_UPDATED = "api_key:updated"
    API_KEYS_DEACTIVATED = "api_keys:deactivated"
    AUDIT_EXPORTED = "audit:exported"
    AUDIT_PRUNED = "audit:pruned"
    CONVERSATION_CREATED = "conversation:created"
    CONVERSATION_DELETED = "conversation:deleted"
    CONVERSATION_UPDATED = "conversation:updated"
    ITEM_CREATED = "item:created"
    ITEM_DELETED = "item:deleted"
    ITEM_UPDATED = "item:updated"
    JOB_REQUESTED = "job:requested"
    MESSAGE_LOGS_STORED = "message_logs:stored"
    MESSAGE_DELETED = "message:deleted"
    MESSAGE_UPDATED = "message:updated"
    MFA_DISABLED = "mfa:disabled"
    MFA_ENABLED = "mfa:enabled"
    MFA_PREPARED = "mfa:prepared"
    PARTICIPANT_ADDED = "participant:added"
    PARTICIPANT_REMOVED = "participant:removed"
    PASSWORD_RESET_REQUESTED = "password_reset:requested"  # noqa: S105 - no password
    RECOVERY_CODE_USED = "recovery_code:used"
    RECOVERY_CODES_RENEWED = "recovery_codes:renewed"
    REQUEST_REFUSED = "request:refused"
    REQUESTS_REFUSED = "requests:refused"
    SERVICE_BOOTSTRAPPED = "service:bootstrapped"
    SESSION_CREATED = "session:created"
    SESSION_ENDED = "session:ended"
    SESSION_REFRESHED = "session:refreshed"
    SESSION_REFUSED = "session:refused"
    SESSION_REUSE_DETECTED = "session:reuse_detected"
    SESSIONS_ENDED = "sessions:ended"
    UPLOAD_CREATED = "upload:created"
    UPLOAD_DELETED = "upload:deleted"
    UPLOAD_LINKED = "upload:linked"
    UPLOAD_REFUSED = "upload:refused"
    USER_CREATED = "user:created"
    USER_CREDITED = "user:credited"
    USER_DELETED = "user:deleted"
    USER_EXPORTED = "user:exported"
    USER_LIMITS_RESET = "user:limits_reset"
    USER_LOCKED = "user:locked"
    USER_PASSWORD_RESET = "user:password_reset"  # noqa: S105 - no password
    USER_PURGE_REQUESTED = "user:purge_requested"
    USER_PURGED = "user:purged"
    USER_RESTORED = "user:restored"
    USER_UPDATED = "user:updated"
    USER_VERIFIED = "user:verified"
