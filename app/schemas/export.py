"""What is held about a user, as it is handed out. Only the fields that are listed here leave."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from bson import ObjectId

from app.core.principal import PrincipalKind
from app.core.quota import Quota
from app.models.enums import AuditAction, AuditOutcome, MessageRole, ParticipantRole, UploadStatus, Visibility
from app.models.message import TokenCounts
from app.schemas.api_key import ApiKeyProperties
from app.schemas.base import ResourceRead, ResponseBody
from app.schemas.user import UserRead

Raw = Mapping[str, Any]


class ExportedUser(UserRead):
    limits: dict[str, int | None]
    credits: int
    password_changed_at: datetime
    first_verified_at: datetime | None
    last_login_ip: str | None


class ExportedSession(ResourceRead):
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    ip: str | None
    user_agent: str | None
    device: str | None
    has_mfa: bool


class ExportedItem(ResourceRead):
    title: str
    description: str | None
    is_completed: bool
    created_at: datetime
    updated_at: datetime


class ExportedUpload(ResourceRead):
    """What is known of a file. Its bytes are at `/api/v1/uploads/{id}/content`."""

    filename: str
    content_type: str
    size: int
    sha256: str | None
    status: UploadStatus
    visibility: Visibility
    conversation_id: PydanticObjectId | None
    created_at: datetime
    updated_at: datetime


class ExportedConversation(ResourceRead):
    """A conversation that the user takes part in. `role` and what follows are the user's own."""

    title: str | None
    created_by: PydanticObjectId | None
    archived: bool
    participant_count: int
    message_count: int
    created_at: datetime
    updated_at: datetime
    last_activity_at: datetime
    role: ParticipantRole
    joined_at: datetime
    last_read_seq: int


class ExportedMessage(ResourceRead):
    conversation_id: PydanticObjectId
    seq: int
    role: MessageRole
    content: str
    attachment_ids: list[PydanticObjectId] | None
    model: str | None
    tokens: TokenCounts | None
    created_at: datetime
    edited_at: datetime | None
    deleted_at: datetime | None


class ExportedUsage(ResponseBody):
    """What was used on one day."""

    day: datetime | str
    messages: int | None
    tokens: int | None
    bytes: int | None


class ExportedMessageLog(ResourceRead):
    """Messages that the user exchanged with a model elsewhere, as a service has told of them."""

    username: str
    model: str
    messages: int
    tokens: int | None
    timestamp: datetime
    created_at: datetime


class ExportedActor(ResponseBody):
    kind: PrincipalKind
    id: PydanticObjectId | None
    name: str | None


class ExportedTarget(ResponseBody):
    kind: str
    id: PydanticObjectId | None


class ExportedEvent(ResourceRead):
    """`ip` and `user_agent` are null where somebody else has acted: they are that one's."""

    time: datetime
    actor: ExportedActor
    action: AuditAction
    target: ExportedTarget
    outcome: AuditOutcome
    ip: str | None
    user_agent: str | None
    request_id: str | None
    details: dict[str, Any]


class ExportedApiKey(ApiKeyProperties):
    quota: Quota | None


class UserExport(ResponseBody):
    """Everything held about a user. A section is null when the key that asked may not read it."""

    exported_at: datetime
    user: ExportedUser
    sessions: list[ExportedSession]
    api_keys: list[ExportedApiKey] | None
    items: list[ExportedItem] | None
    uploads: list[ExportedUpload] | None
    conversations: list[ExportedConversation] | None
    messages: list[ExportedMessage] | None
    usage: list[ExportedUsage]
    message_logs: list[ExportedMessageLog]
    audit_events: list[ExportedEvent]


def session_of(row: Raw) -> dict[str, Any]:
    return _listed(ExportedSession, row)


def api_key_of(row: Raw) -> dict[str, Any]:
    return _listed(ExportedApiKey, row)


def item_of(row: Raw) -> dict[str, Any]:
    return _listed(ExportedItem, row)


def upload_of(row: Raw) -> dict[str, Any]:
    return _listed(ExportedUpload, row)


def conversation_of(row: Raw) -> dict[str, Any]:
    """`participants` holds the user's own entry alone."""
    return _listed(ExportedConversation, {**row["participants"][0], **row})


def message_of(row: Raw) -> dict[str, Any]:
    return _listed(ExportedMessage, row)


def usage_of(row: Raw) -> dict[str, Any]:
    return _listed(ExportedUsage, row)


def message_log_of(row: Raw) -> dict[str, Any]:
    return _listed(ExportedMessageLog, row)


def event_of(row: Raw, *, user_id: ObjectId) -> dict[str, Any]:
    content = _listed(ExportedEvent, row)
    if row["actor"]["id"] not in {None, user_id}:
        content |= {"ip": None, "user_agent": None}
    return content


def _listed(shape: type[ResponseBody], row: Raw) -> dict[str, Any]:
    """The fields of the shape. What an older document lacks is null."""
    return {name: row["_id"] if name == "id" else row.get(name) for name in shape.model_fields}
