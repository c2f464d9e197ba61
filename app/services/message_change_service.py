"""Messages that are there already: edited and deleted by who said them, or by whom everything is within reach."""

from typing import Any

from bson import ObjectId

from app.core.exceptions import ConflictError, ForbiddenError, NotFoundError
from app.core.principal import Principal
from app.core.scopes import Scope
from app.crud import crud_conversation, crud_conversation_event, crud_message, crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction, ConversationEventType, MessageRole
from app.schemas.message import MessageUpdate, messages_of
from app.services import audit_service
from app.services.message_service import turns_in_conversations


async def edit(
    conversation_id: ObjectId, message_id: ObjectId, body: MessageUpdate, *, by: Principal
) -> dict[str, Any]:
    """Say it differently. What is deleted stays as it is."""
    async with turns_in_conversations.of(conversation_id):
        message = await _edit(conversation_id, message_id, body.content, by=by)
    cards = await crud_user.cards_of([message["user_id"]] if message["user_id"] else [])
    return messages_of([message], {user_id: card.username for user_id, card in cards.items()})[0]


async def delete(conversation_id: ObjectId, message_id: ObjectId, *, by: Principal) -> None:
    """Leave of a message its place, its writer and what it cost. Deleting it again changes nothing."""
    async with turns_in_conversations.of(conversation_id):
        await _delete(conversation_id, message_id, by=by)


@transactional
async def _edit(conversation_id: ObjectId, message_id: ObjectId, content: str, *, by: Principal) -> dict[str, Any]:
    message = await crud_message.edit(message_id, conversation_id, content, user_id=_writer(by))
    if message is None:
        await _require_own(conversation_id, message_id, by=by)
        raise ConflictError("This message is deleted.")
    await _tell(conversation_id, message_id, ConversationEventType.MESSAGE_UPDATED, by=by)
    await audit_service.record(
        AuditAction.MESSAGE_UPDATED, by=by, target=("message", message_id), conversation_id=conversation_id
    )
    return message


@transactional
async def _delete(conversation_id: ObjectId, message_id: ObjectId, *, by: Principal) -> None:
    if not await crud_message.empty(message_id, conversation_id, user_id=_writer(by)):
        await _require_own(conversation_id, message_id, by=by)
        return
    await _tell(conversation_id, message_id, ConversationEventType.MESSAGE_DELETED, by=by)
    await audit_service.record(
        AuditAction.MESSAGE_DELETED, by=by, target=("message", message_id), conversation_id=conversation_id
    )


async def _tell(conversation_id: ObjectId, message_id: ObjectId, kind: ConversationEventType, *, by: Principal) -> None:
    """Give the change its place in the conversation, of which who makes it still takes part."""
    version = await crud_conversation.raise_version(conversation_id, user_id=_writer(by))
    if version is None:
        raise NotFoundError("There is no such conversation.")
    await crud_conversation_event.add(conversation_id, version, kind, {"message_id": message_id})


async def _require_own(conversation_id: ObjectId, message_id: ObjectId, *, by: Principal) -> None:
    writer_id = _writer(by)
    message = await crud_message.find(message_id, conversation_id, seen_by=writer_id)
    if message is None:
        raise NotFoundError("There is no such message.")
    if writer_id is not None and (message["user_id"] != writer_id or message["role"] != MessageRole.USER):
        raise ForbiddenError("You change only what you have said yourself.")


def _writer(by: Principal) -> ObjectId | None:
    """Whose messages it may change; anybody's when there is none."""
    return by.owner_filter(Scope.CONVERSATIONS_WRITE)
