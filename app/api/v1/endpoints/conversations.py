from http import HTTPStatus

from beanie import PydanticObjectId
from bson import ObjectId
from fastapi import APIRouter, Request, Response

from app.api.deps import ConversationList, ConversationsReader, ConversationsWriter, Id, IfMatch
from app.api.responses import NO_CONTENT, UNCHANGED, listed, tagged
from app.core.principal import Principal
from app.core.scopes import Scope
from app.crud import crud_conversation
from app.schemas.conversation import (
    ConversationCreate,
    ConversationRead,
    ConversationSummary,
    ConversationUpdate,
    ParticipantAdd,
    summary_of,
)
from app.schemas.page import ConversationQuery
from app.schemas.read_mark import ReadMarkMove, ReadMarkRead
from app.services import conversation_service, participant_service, read_mark_service, search_service

router = APIRouter(prefix="/api/v1/conversations", tags=["conversations"])


async def _shown(request: Request, conversation_id: Id, by: Principal, status: HTTPStatus = HTTPStatus.OK) -> Response:
    version, content = await conversation_service.read(conversation_id, by=by)
    return tagged(request, content, version=version, status=status)


async def _listed(
    request: Request, query: ConversationQuery, *, user_id: ObjectId | None, reader_id: ObjectId | None
) -> Response:
    if query.q is not None:
        page = await search_service.conversations(query, user_id=user_id, reader_id=reader_id)
    else:
        page = await crud_conversation.page(
            user_id=user_id, reader_id=reader_id, archived=query.archived, limit=query.limit, cursor=query.cursor
        )
    return listed(request, [summary_of(row, reader_id=reader_id) for row in page.rows], page.next_cursor)


@router.get("/{conversation_id}", response_model=ConversationRead, responses=UNCHANGED)
async def get_conversation(request: Request, conversation_id: Id, reader: ConversationsReader) -> Response:
    """A conversation with its participants and its latest messages."""
    return await _shown(request, conversation_id, reader)


@router.post("", status_code=HTTPStatus.CREATED, response_model=ConversationRead)
async def create_conversation(request: Request, body: ConversationCreate, writer: ConversationsWriter) -> Response:
    """Open a conversation. You take part in it and own it."""
    conversation_id = PydanticObjectId(await conversation_service.create(body, by=writer))
    return await _shown(request, conversation_id, writer, HTTPStatus.CREATED)


@router.get("", response_model=list[ConversationSummary])
async def list_conversations(request: Request, reader: ConversationsReader, query: ConversationList) -> Response:
    """Conversations by last activity: a user's own, or for a service all of them. `q` searches titles and messages."""
    return await _listed(
        request, query, user_id=reader.owner_filter(Scope.CONVERSATIONS_READ), reader_id=reader.user_id
    )


@router.get("/user/{user_id}", response_model=list[ConversationSummary])
async def list_conversations_of_user(
    request: Request, user_id: Id, reader: ConversationsReader, query: ConversationList
) -> Response:
    """The conversations that a user takes part in, by last activity, with what is unread to that user."""
    await conversation_service.require_listable(user_id, by=reader)
    return await _listed(request, query, user_id=user_id, reader_id=user_id)


@router.put("/{conversation_id}", response_model=ConversationRead, name="put_conversation")
@router.patch("/{conversation_id}", response_model=ConversationRead)
async def update_conversation(
    request: Request,
    conversation_id: Id,
    body: ConversationUpdate,
    writer: ConversationsWriter,
    versions: IfMatch,
) -> Response:
    """Change the title, or archive. For owners."""
    await conversation_service.update(conversation_id, body, versions=versions, by=writer)
    return await _shown(request, conversation_id, writer)


@router.delete("/{conversation_id}", **NO_CONTENT)
async def delete_conversation(conversation_id: Id, writer: ConversationsWriter, versions: IfMatch) -> None:
    """Delete a conversation with all its messages. For owners."""
    await conversation_service.delete(conversation_id, versions=versions, by=writer)


@router.post("/{conversation_id}/participants", status_code=HTTPStatus.CREATED, response_model=ConversationRead)
async def add_participant(
    request: Request, conversation_id: Id, body: ParticipantAdd, writer: ConversationsWriter
) -> Response:
    """Let a user take part. Adding one who does already changes nothing."""
    await participant_service.add(conversation_id, body, by=writer)
    return await _shown(request, conversation_id, writer, HTTPStatus.CREATED)


@router.delete(
    "/{conversation_id}/participants/{user_id}",
    response_model=ConversationRead,
    responses={204: {"description": "You have left: there is nothing more to see"}},
)
async def remove_participant(
    request: Request, conversation_id: Id, user_id: Id, writer: ConversationsWriter
) -> Response:
    """Let a user no longer take part, or leave yourself. The answer to leaving is empty: 204."""
    await participant_service.remove(conversation_id, user_id, by=writer)
    if user_id == writer.user_id and not writer.reaches_all(Scope.CONVERSATIONS_READ):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return await _shown(request, conversation_id, writer)


@router.post("/{conversation_id}/read")
async def mark_read(conversation_id: Id, body: ReadMarkMove, writer: ConversationsWriter) -> ReadMarkRead:
    """Everything up to the message is read. The mark never moves back. Users mark for themselves."""
    return await read_mark_service.move(conversation_id, body, by=writer)
