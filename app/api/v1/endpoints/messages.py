from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.api.deps import ConversationsReader, ConversationsWriter, Id, MessageList
from app.api.responses import JsonResponse, listed
from app.schemas.message import MessageBatch, MessageCreate, MessageRead
from app.services import message_service

router = APIRouter(prefix="/api/v1/conversations/{conversation_id}/messages", tags=["messages"])


@router.get("", response_model=list[MessageRead])
async def list_messages(
    request: Request, conversation_id: Id, reader: ConversationsReader, query: MessageList
) -> Response:
    """The messages of a conversation, oldest first. Poll the end of it with `after`; `q` searches.

    A page of a search may have fewer rows than `limit` and all the same a next one, where the search goes on.
    """
    rows, next_cursor = await message_service.page(conversation_id, query, by=reader)
    return listed(request, rows, next_cursor)


@router.post("", status_code=HTTPStatus.CREATED, response_model=MessageRead)
async def post_message(conversation_id: Id, body: MessageCreate, writer: ConversationsWriter) -> Response:
    """Write a message. Users write as themselves; services for any participant."""
    return JsonResponse(await message_service.post(conversation_id, body, by=writer), HTTPStatus.CREATED)


@router.post("/batch", status_code=HTTPStatus.CREATED, response_model=list[MessageRead])
async def post_messages(conversation_id: Id, body: MessageBatch, writer: ConversationsWriter) -> Response:
    """Write up to 500 messages in this order, all of them or none."""
    return JsonResponse(await message_service.post_all(conversation_id, body, by=writer), HTTPStatus.CREATED)
