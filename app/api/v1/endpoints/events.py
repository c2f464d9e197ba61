from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse

from app.api.deps import ConversationsReader, ConversationsWriter, Id
from app.api.event_stream import EVENTS, EventStream
from app.api.responses import NO_CONTENT
from app.services import event_service

router = APIRouter(prefix="/api/v1/conversations", tags=["conversations"])

LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The id of the last event that you have: go on behind it")
]
LastEventIdInQuery = Annotated[
    str | None, Query(alias="last_event_id", description="The same, where no header can be set")
]


@router.get("/{conversation_id}/events", response_class=StreamingResponse, responses=EVENTS)
async def follow_conversation(
    conversation_id: Id,
    reader: ConversationsReader,
    last_event_id: LastEventId = None,
    in_query: LastEventIdInQuery = None,
) -> Response:
    """What happens in a conversation, as Server-Sent Events, in order and without a gap.

    With `Last-Event-ID` beginning behind that event, else with what happens from now on.
    """
    return EventStream(await event_service.follow(conversation_id, last_event_id or in_query, by=reader))


@router.post("/{conversation_id}/typing", **NO_CONTENT)
async def tell_typing(conversation_id: Id, writer: ConversationsWriter) -> None:
    """Tell the others who follow the conversation that you are typing; once every few seconds, while you are."""
    await event_service.tell_typing(conversation_id, by=writer)
