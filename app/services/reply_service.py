"""Replies of the assistant: asked for, paid for and stored with the conversation, or not at all."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple

from bson import ObjectId

from app.core import background
from app.core.chat_completions import Turn, estimated_prompt_tokens
from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import AppError, ConflictError, ForbiddenError, InsufficientScopeError, NotFoundError
from app.core.principal import Principal
from app.core.scopes import Scope
from app.crud import crud_conversation, crud_message, crud_usage
from app.db.mongo import Raw, transactional
from app.models.credit_hold import CreditHold
from app.models.enums import MessageRole
from app.schemas.message import messages_of
from app.services import assistant_provider, credit_service
from app.services.assistant_provider import Whole
from app.services.message_service import turns_in_conversations

# How much longer than the assistant may take a hold is kept: for a slow reader, and for storing.
_HELD_BEYOND: Final = timedelta(minutes=2)


class Delta(NamedTuple):
    """Some more words."""

    content: str


class Stored(NamedTuple):
    """The message as it was stored: the end."""

    message: dict[str, Any]


Parts = AsyncGenerator[Delta | Stored, None]


@dataclass(frozen=True)
class Order:
    """A reply that was asked for: for whom, to what, and what is held for it. A service pays for none."""

    conversation_id: ObjectId
    turns: Sequence[Turn]
    by: Principal
    held: CreditHold | None


async def order(conversation_id: ObjectId, *, by: Principal) -> Order:
    """Ask for the next message of a conversation in which the caller takes part, and hold what it may cost.

    The assistant repeats what it has read, so that asking it takes the right to read.
    """
    if Scope.CONVERSATIONS_READ not in by.scopes:
        needed = Scope.CONVERSATIONS_READ
        raise InsufficientScopeError(
            f"A reply tells of the conversation. This also needs the scope {needed}.", needed=needed
        )
    if not await crud_conversation.exists(conversation_id, user_id=by.user_id):
        raise await _why_not(conversation_id, by=by)
    assistant_provider.require_configured()
    turns = await _turns_of(conversation_id)
    if by.user_id is None:
        return Order(conversation_id, turns, by, None)
    settings = get_settings()
    tokens = estimated_prompt_tokens(turns) + settings.assistant_max_tokens
    life = timedelta(seconds=settings.assistant_timeout_seconds) + _HELD_BEYOND
    return Order(conversation_id, turns, by, await credit_service.hold(by.user_id, tokens=tokens, life=life))


async def reply(order: Order) -> Parts:
    """The words as they come, then the message once it is committed.

    However it ends before that, nothing is stored, and what was held is given back. Once the assistant has ended, the
    message is stored also for a caller who does not wait for that.
    """
    whole: Whole | None = None
    try:
        async with aclosing(assistant_provider.reply_to(order.turns)) as parts:
            async for part in parts:
                if isinstance(part, Whole):
                    whole = part
                else:
                    yield Delta(part)
        assert whole is not None  # noqa: S101 - it ends so, or by an error
    except BaseException:  # a hang-up too
        _give_back(order)
        raise
    message = await background.to_the_end(_settle(order, whole), name="store_reply")
    yield Stored(messages_of([message], {})[0])


def _give_back(order: Order) -> None:
    if order.held is not None:
        background.start(_give_back_hold(order.held), name="give_back_credits")


async def _give_back_hold(held: CreditHold) -> None:
    """By a job later when that fails."""
    await credit_service.give_back(held.id)


async def _settle(order: Order, whole: Whole) -> Raw:
    """To its end, whoever waits for it."""
    try:
        by = order.by.user_id
        day = None if by is None else await crud_usage.open_day(by, utc_now())
        async with turns_in_conversations.of(order.conversation_id):
            return await _store(order, whole, day=day)
    except Exception:
        _give_back(order)
        raise


@transactional
async def _store(order: Order, whole: Whole, *, day: str | None) -> Raw:
    """Store the reply with what it has cost, if the conversation and the part of the caller in it are still there."""
    place = await crud_conversation.take_place(order.conversation_id, writer_id=None)
    if place is None or not await crud_conversation.exists(order.conversation_id, user_id=order.by.user_id):
        raise await _why_not(order.conversation_id, by=order.by)
    tokens = whole.tokens.prompt + whole.tokens.completion
    if order.held is not None:
        await credit_service.settle(order.held, tokens=tokens)
    if order.by.user_id is not None and day is not None:
        await crud_usage.count_tokens({(order.by.user_id, day): tokens})
    return await crud_message.add(
        conversation_id=order.conversation_id,
        place=place,
        user_id=None,
        role=MessageRole.ASSISTANT,
        content=whole.content,
        model=whole.model,
        tokens=whole.tokens,
    )


async def _turns_of(conversation_id: ObjectId) -> list[Turn]:
    """What the assistant reads: its instructions, then the latest messages that were not deleted."""
    settings = get_settings()
    messages = await crud_message.latest(conversation_id, limit=settings.assistant_history)
    said = [Turn(row["role"], row["content"]) for row in messages if row["deleted_at"] is None]
    if not said:
        raise ConflictError("There is no message yet that could be replied to.")
    prompt = settings.assistant_system_prompt
    return [Turn(MessageRole.SYSTEM.value, prompt), *said] if prompt else said


async def _why_not(conversation_id: ObjectId, *, by: Principal) -> AppError:
    visible_to = by.owner_filter(Scope.CONVERSATIONS_WRITE)
    if await crud_conversation.exists(conversation_id, user_id=visible_to):
        return ForbiddenError("Only who takes part in the conversation asks for a reply.")
    return NotFoundError("There is no such conversation.")
