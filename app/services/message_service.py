"""Messages: written by participants, or by services on their behalf."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from bson import ObjectId

from app.core.exceptions import AppError, ForbiddenError, NotFoundError
from app.core.principal import Principal, PrincipalKind
from app.core.scopes import Scope
from app.core.turns import Turns
from app.crud import crud_conversation, crud_message, crud_user
from app.crud.base import Page
from app.crud.crud_message import Draft
from app.db.mongo import transactional
from app.models.enums import MessageRole
from app.schemas.message import MessageBatch, MessageCreate, messages_of
from app.schemas.page import MessageQuery
from app.services import attachment_service, search_service, usage_service
from app.services.usage_service import MessageBudget

# By conversation: whatever raises its version waits here rather than at the database.
turns_in_conversations: Final = Turns()
_turns_of_writers: Final = Turns()


Expense = tuple[MessageBudget, int]


async def post(conversation_id: ObjectId, body: MessageCreate, *, by: Principal) -> dict[str, Any]:
    """Write a message, counted in with the conversation and with its writer's day; all or nothing.

    A user, or its personal key, writes as itself. A service key writes any role, for any participant or for none.
    What a user says counts, whoever writes it down; what the assistant or the system says does not.
    """
    return (await _write(conversation_id, [_draft(body, by=by)], by=by))[0]


async def post_all(conversation_id: ObjectId, body: MessageBatch, *, by: Principal) -> list[dict[str, Any]]:
    """As `post`, with several: one behind the other with nothing in between, all of them or none."""
    drafts = []
    for at, message in enumerate(body.messages):
        try:
            drafts.append(_draft(message, by=by))
        except ForbiddenError as error:
            raise ForbiddenError(f"messages[{at}]: {error}") from error
    return await _write(conversation_id, drafts, by=by)


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


async def read(conversation_id: ObjectId, message_id: ObjectId, *, by: Principal) -> dict[str, Any]:
    """One message that the caller may see, or what is left of it."""
    seen_by = by.owner_filter(Scope.CONVERSATIONS_READ)
    message = await crud_message.find(message_id, conversation_id, seen_by=seen_by)
    if message is None:
        raise NotFoundError("There is no such message.")
    return messages_of([message], await _usernames([message["user_id"]], by=by))[0]


async def _write(conversation_id: ObjectId, drafts: Sequence[Draft], *, by: Principal) -> list[dict[str, Any]]:
    cards = await crud_user.cards_of([draft.user_id for draft in drafts if draft.user_id])
    counted = Counter(
        draft.user_id for draft in drafts if draft.role is MessageRole.USER and draft.user_id and draft.user_id in cards
    )
    async with AsyncExitStack() as turns:
        expenses: list[Expense] = []
        for writer_id in sorted(counted):
            # Before the turn in the conversation, always: one's own crowd then keeps nobody else waiting.
            await turns.enter_async_context(_turns_of_writers.of(writer_id))
            budget = await usage_service.open_budget(writer_id, cards[writer_id].limits)
            expenses.append((budget, counted[writer_id]))
        await turns.enter_async_context(turns_in_conversations.of(conversation_id))
        messages = await _store(conversation_id, drafts, expenses, by=by)
    return messages_of(messages, {user_id: card.username for user_id, card in cards.items()})


@transactional
async def _store(
    conversation_id: ObjectId, drafts: Sequence[Draft], expenses: Sequence[Expense], *, by: Principal
) -> list[dict[str, Any]]:
    # First, so that a crowd over the limit writes nothing and meets nobody.
    for budget, count in expenses:
        await usage_service.spend_messages(budget, count)
    places = await crud_conversation.take_places(conversation_id, [draft.user_id for draft in drafts])
    if places is None:
        raise await _why_not_written(conversation_id, drafts, by=by)
    if any(draft.attachment_ids for draft in drafts):
        await attachment_service.attach(conversation_id, drafts, by=by)
    if len(drafts) == 1:  # nearly always, and the driver makes less of it
        return [await crud_message.add(conversation_id=conversation_id, place=places[0], **drafts[0]._asdict())]
    return await crud_message.add_all(conversation_id, places, drafts)


def _draft(body: MessageCreate, *, by: Principal) -> Draft:
    return Draft(_writer(body, by=by), body.role, body.content, body.attachment_ids, body.model)


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


async def _why_not_written(conversation_id: ObjectId, drafts: Sequence[Draft], *, by: Principal) -> AppError:
    conversation = await crud_conversation.find(conversation_id, user_id=by.owner_filter(Scope.CONVERSATIONS_WRITE))
    if conversation is None:
        return NotFoundError("There is no such conversation.")
    present = {None, *(entry["user_id"] for entry in conversation["participants"])}
    at = next((at for at, draft in enumerate(drafts) if draft.user_id not in present), 0)
    place = "" if len(drafts) == 1 else f"messages[{at}]: "
    return ForbiddenError(f"{place}The writer does not take part in the conversation.")
