"""Who takes part in a conversation. Owners decide that, and everyone may leave."""

from typing import Any

from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import ConflictError, ForbiddenError, InvalidContentError, NotFoundError
from app.core.principal import Principal
from app.core.scopes import Scope
from app.crud import crud_conversation, crud_conversation_event, crud_user
from app.crud.crud_conversation import Departure
from app.db.mongo import transactional
from app.models.conversation import MAX_PARTICIPANTS, Participant
from app.models.enums import AuditAction, ConversationEventType, ParticipantRole
from app.schemas.conversation import ParticipantAdd
from app.services import audit_service


@transactional
async def add(conversation_id: ObjectId, body: ParticipantAdd, *, by: Principal) -> None:
    """Let a user take part. One who does already stays as it is."""
    await require_users({("user_id",): body.user_id})
    entry = Participant(user_id=body.user_id, role=body.role, joined_at=utc_now())
    version = await crud_conversation.add_participant(conversation_id, entry, owner_id=_owner(by))
    if version is None:
        await _require_taking_part(conversation_id, body.user_id, by=by)
        return
    data = {"user_id": body.user_id, "role": body.role}
    await crud_conversation_event.add(conversation_id, version, ConversationEventType.PARTICIPANT_ADDED, data)
    await audit_service.record(
        AuditAction.PARTICIPANT_ADDED, by=by, target=("conversation", conversation_id), user_id=body.user_id
    )


@transactional
async def remove(conversation_id: ObjectId, user_id: ObjectId, *, by: Principal) -> None:
    """Let a user no longer take part. Everyone may leave; owners may remove others."""
    conversation = await crud_conversation.find(conversation_id, user_id=by.owner_filter(Scope.CONVERSATIONS_WRITE))
    if conversation is None:
        raise absent()
    if user_id != by.user_id and not is_owner(conversation, by):
        raise ForbiddenError("Only an owner of the conversation removes others.")
    departure = await crud_conversation.remove_participant(conversation_id, user_id)
    if departure is None:
        raise NotFoundError("This user does not take part in the conversation.")
    await tell_of_departure(conversation_id, user_id, departure)
    await audit_service.record(
        AuditAction.PARTICIPANT_REMOVED, by=by, target=("conversation", conversation_id), user_id=user_id
    )


async def tell_of_end(conversation_id: ObjectId, version: int) -> None:
    """Let those who listen know that the conversation, of that version, is gone. Nothing comes behind it."""
    await crud_conversation_event.add(conversation_id, version + 1, ConversationEventType.CONVERSATION_DELETED, {})


async def tell_of_departure(conversation_id: ObjectId, user_id: ObjectId, departure: Departure) -> None:
    """Let those who listen know who has left, and who owns the conversation in its place, if anybody."""
    heir = {} if departure.heir_id is None else {"owner_id": departure.heir_id}
    data = {"user_id": user_id} | heir
    await crud_conversation_event.add(
        conversation_id, departure.version, ConversationEventType.PARTICIPANT_REMOVED, data
    )


async def require_users(named: dict[tuple[str | int, ...], Any]) -> None:
    """Refuse users that do not exist, by the places in the body that name them."""
    known = await crud_user.existing(set(named.values()))
    errors = [
        {"loc": ["body", *place], "msg": f"there is no user {user_id}", "type": "unknown_user"}
        for place, user_id in named.items()
        if user_id not in known
    ]
    if errors:
        raise InvalidContentError("Some participants do not exist.", errors=errors)


def is_owner(conversation: dict[str, Any], by: Principal) -> bool:
    return by.reaches_all(Scope.CONVERSATIONS_WRITE) or any(
        entry["user_id"] == by.user_id and entry["role"] == ParticipantRole.OWNER
        for entry in conversation["participants"]
    )


def absent() -> NotFoundError:
    return NotFoundError("There is no such conversation.")


async def _require_taking_part(conversation_id: ObjectId, user_id: ObjectId, *, by: Principal) -> None:
    """Explain why a participant was not added; adding one who is there needs no explanation."""
    conversation = await crud_conversation.find(conversation_id, user_id=by.owner_filter(Scope.CONVERSATIONS_WRITE))
    if conversation is None:
        raise absent()
    if not is_owner(conversation, by):
        raise ForbiddenError("Only an owner of the conversation adds participants.")
    if all(entry["user_id"] != user_id for entry in conversation["participants"]):
        raise ConflictError(f"A conversation has at most {MAX_PARTICIPANTS} participants.")


def _owner(by: Principal) -> ObjectId | None:
    return by.owner_filter(Scope.CONVERSATIONS_WRITE)
