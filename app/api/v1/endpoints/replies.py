from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from app.api.deps import ConversationsWriter, Id
from app.api.hang_up import HangUpError, unless_gone
from app.api.reply_stream import EVENTS, ReplyResponse
from app.services import reply_service
from app.services.reply_service import Delta, Parts, Stored

router = APIRouter(prefix="/api/v1/conversations/{conversation_id}/reply", tags=["messages"])

_HUNG_UP: Final = 499  # for the log: nobody is there to read it


@router.post("", response_class=StreamingResponse, responses=EVENTS)
async def reply(request: Request, conversation_id: Id, writer: ConversationsWriter) -> Response:
    """Ask the assistant for the next message. It comes as Server-Sent Events, and is stored once it is whole.

    It draws credits: one for every 1,000 tokens of what the assistant reads and writes. Hang up to end it.
    """
    parts = reply_service.reply(await reply_service.order(conversation_id, by=writer))
    try:
        first = await unless_gone(request, _first(parts))
    except HangUpError:
        return Response(status_code=_HUNG_UP)
    return ReplyResponse(first, parts, request.url.path)


async def _first(parts: Parts) -> Delta | Stored:
    return await anext(parts)
