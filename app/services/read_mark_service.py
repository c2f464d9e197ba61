"""How far participants have read."""

from typing import Any

from bson import ObjectId

from app.core.exceptions import ForbiddenError, InvalidContentError, NotFoundError
from app.core.principal import Principal
from app.core.scopes import Scope
from app.crud import crud_conversation, crud_conversation_event, crud_message
from app.db.mongo import transactional
from app.models.enums import ConversationEventType
from app.schemas.conversation import unread
from app.schemas.read_mark import ReadMarkMove, ReadMarkRead
from app.services.message_service import turns_in_conversations


async def move(conversation_id: ObjectId, body: ReadMarkMove, *, by: Principal) -> ReadMarkRead:
    """Everything up to the message is read. The mark never moves back.

    A user marks for itself, a service key for a participant.
    """
    reader_id = _reader(body, by=by)
    async with turns_in_conversations.of(conversation_id):
        return await _move(conversation_id, body.message_id, reader_id, by=by)


@transactional
async def _move(conversation_id: ObjectId, message_id: ObjectId, reader_id: ObjectId, *, by: Principal) -> ReadMarkRead:
    conversation = await _require_entry(conversation_id, reader_id, by=by)
    seq = await crud_message.seq_of(message_id, conversation_id)
    if seq is None:
        raise _fault("message_id", "there is no such message in this conversation", "unknown_message")
    [entry] = conversation["participants"]
    if seq > entry["last_read_seq"]:
        own = await crud_message.latest_nth(conversation_id, reader_id, after=entry["last_read_seq"], until=seq)
        conversation = await crud_conversation.mark_read(
            conversation_id, reader_id, seq=seq, sent_before_mark=entry["sent_before_mark"] if own is None else own
        )
        data = {"user_id": reader_id, "message_id": message_id, "last_read_seq": seq}
        await crud_conversation_event.add(
            conversation_id, conversation["version"], ConversationEventType.PARTICIPANT_READ, data
        )
    last_read_seq = conversation["participants"][0]["last_read_seq"]
    return ReadMarkRead(last_read_seq=last_read_seq, unread_count=unread(conversation, reader_id))


async def _require_entry(conversation_id: ObjectId, reader_id: ObjectId, *, by: Principal) -> dict[str, Any]:
    """The counters of the conversation, and of its participants the reader."""
    visible_to = by.owner_filter(Scope.CONVERSATIONS_WRITE)
    conversation = await crud_conversation.find_entry(conversation_id, reader_id, user_id=visible_to)
    if conversation is None:
        raise NotFoundError("There is no such conversation.")
    if not conversation["participants"]:
        raise ForbiddenError("The reader does not take part in the conversation.")
    return conversation


def _reader(body: ReadMarkMove, *, by: Principal) -> ObjectId:
    if by.user_id is not None and body.user_id not in {None, by.user_id}:
        raise ForbiddenError("You mark for yourself.")
    reader_id = by.user_id or body.user_id
    if reader_id is None:
        raise _fault("user_id", "a service marks for a participant", "missing")
    return reader_id


def _fault(field: str, message: str, kind: str) -> InvalidContentError:
    fault = {"loc": ["body", field], "msg": message, "type": kind}
    return InvalidContentError("The mark can't be set there.", errors=[fault])
