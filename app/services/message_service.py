"""Messages: written by participants, or by services on their behalf."""

from contextlib import AsyncExitStack
from typing import Any

from bson import ObjectId

from app.core.exceptions import AppError, ForbiddenError, NotFoundError
from app.core.principal import Principal, PrincipalKind
from app.core.scopes import Scope
from app.core.turns import Turns
from app.crud import crud_conversation, crud_message, crud_user
from app.crud.base import Page
from app.db.mongo import transactional
from app.models.enums import MessageRole
from app.schemas.message import MessageCreate, messages_of
from app.schemas.page import MessageQuery
from app.services import search_service, usage_service
from app.services.usage_service import MessageBudget

_turns_of_writers = Turns()
_turns = Turns()


async def post(conversation_id: ObjectId, body: MessageCreate, *, by: Principal) -> dict[str, Any]:
    """Write a message, counted in with the conversation and with its writer's day; all or nothing.

    A user, or its personal key, writes as itself. A service key writes any role, for any participant or for none.
    What a user says counts, whoever writes it down; what the assistant or the system says does not.
    """
    writer_id = _writer(body, by=by)
    cards = {} if writer_id is None else await crud_user.cards_of([writer_id])
    card = cards.get(writer_id) if writer_id and body.role is MessageRole.USER else None
    async with AsyncExitStack() as turns:
        budget = None
        if writer_id and card:
            # Before the turn in the conversation, always: one's own crowd then keeps nobody else waiting.
            await turns.enter_async_context(_turns_of_writers.of(writer_id))
            budget = await usage_service.open_budget(writer_id, card.limits)
        await turns.enter_async_context(_turns.of(conversation_id))
        message = await _store(conversation_id, body, writer_id=writer_id, budget=budget, by=by)
    return messages_of([message], {user_id: card.username for user_id, card in cards.items()})[0]


async def page(conversation_id: ObjectId, query: MessageQuery, *, by: Principal) -> Page[dict[str, Any]]:
    """The messages of a conversation that the caller may see."""
    if query.q is not None:
        rows, next_cursor = await search_service.messages(conversation_id, query, by=by)
        return Page(messages_of(rows, await _usernames([row["user_id"] for row in rows], by=by)), next_cursor)
    found = await crud_message.page(
        conversation_id,
        role=query.role,
        after=query.after,
        is_ascending=query.order == "asc",
        limit=query.limit,
        cursor=query.cursor,
        seen_by=by.owner_filter(Scope.CONVERSATIONS_READ),
    )
    if found is None:
        raise NotFoundError("There is no such conversation.")
    rows, next_cursor = found
    usernames = await _usernames([row["user_id"] for row in rows], by=by)
    return Page(messages_of(rows, usernames), next_cursor)


@transactional
async def _store(
    conversation_id: ObjectId,
    body: MessageCreate,
    *,
    writer_id: ObjectId | None,
    budget: MessageBudget | None,
    by: Principal,
) -> dict[str, Any]:
    # First, so that a crowd over the limit writes nothing and meets nobody.
    if budget is not None:
        await usage_service.spend_message(budget)
    place = await crud_conversation.take_place(conversation_id, writer_id=writer_id)
    if place is None:
        raise await _why_not_written(conversation_id, by=by)
    return await crud_message.add(
        conversation_id=conversation_id,
        place=place,
        user_id=writer_id,
        role=body.role,
        content=body.content,
        attachment_ids=body.attachment_ids,
        model=body.model,
    )


def _writer(body: MessageCreate, *, by: Principal) -> ObjectId | None:
    if by.user_id is None:
        return body.user_id
    if body.role is not MessageRole.USER:
        raise ForbiddenError("Only service keys write messages of the assistant or the system.")
    if body.user_id not in {None, by.user_id}:
        raise ForbiddenError("You write as yourself.")
    return by.user_id


async def _usernames(user_ids: list[Any], *, by: Principal) -> dict[ObjectId, str | None]:
    wanted = set({user_id.binary: user_id for user_id in user_ids if user_id is not None}.values())
    if by.kind is PrincipalKind.USER and wanted == {by.user_id}:
        return dict.fromkeys(wanted, by.name)
    cards = await crud_user.cards_of(wanted)
    return {user_id: card.username for user_id, card in cards.items()}


async def _why_not_written(conversation_id: ObjectId, *, by: Principal) -> AppError:
    visible_to = by.owner_filter(Scope.CONVERSATIONS_WRITE)
    if await crud_conversation.exists(conversation_id, user_id=visible_to):
        return ForbiddenError("The writer does not take part in the conversation.")
    return NotFoundError("There is no such conversation.")
