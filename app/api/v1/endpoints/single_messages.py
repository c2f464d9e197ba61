from fastapi import APIRouter, Response

from app.api.deps import ConversationsReader, ConversationsWriter, Id
from app.api.responses import NO_CONTENT, JsonResponse
from app.schemas.message import MessageRead, MessageUpdate
from app.services import message_change_service, message_service

router = APIRouter(prefix="/api/v1/conversations/{conversation_id}/messages/{message_id}", tags=["messages"])


@router.get("", response_model=MessageRead)
async def get_message(conversation_id: Id, message_id: Id, reader: ConversationsReader) -> Response:
    """One message."""
    return JsonResponse(await message_service.read(conversation_id, message_id, by=reader))


@router.patch("", response_model=MessageRead)
async def edit_message(
    conversation_id: Id, message_id: Id, body: MessageUpdate, writer: ConversationsWriter
) -> Response:
    """Say it differently. For who has said it."""
    return JsonResponse(await message_change_service.edit(conversation_id, message_id, body, by=writer))


@router.delete("", **NO_CONTENT)
async def delete_message(conversation_id: Id, message_id: Id, writer: ConversationsWriter) -> None:
    """Leave of a message its place in the conversation. For who has said it. Deleting it again changes nothing."""
    await message_change_service.delete(conversation_id, message_id, by=writer)
