"""What plans allow, and what is left of it: counted with what it counts, so that both stand or fall together."""

import math
from datetime import datetime, timedelta
from typing import NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import DailyLimitReachedError, NotFoundError, QuotaExceededError
from app.core.plans import Limits, limits_of
from app.crud import crud_usage, crud_user
from app.models.user import User
from app.schemas.usage import LimitsRead, RemainingRead, UsageRead, UsedRead


class MessageBudget(NamedTuple):
    """Whose messages of which day are counted, and how many there may be."""

    user_id: ObjectId
    day: str
    limit: int | None
    resets_at: datetime


async def limits_of_user(user_id: ObjectId) -> Limits:
    cards = await crud_user.cards_of([user_id])
    if user_id not in cards:
        raise NotFoundError("There is no such user.")
    return cards[user_id].limits


async def open_budget(user_id: ObjectId, limits: Limits) -> MessageBudget:
    """The budget of today, ready to be spent inside of a transaction; not to be called inside of one."""
    now = utc_now()
    day = await crud_usage.open_day(user_id, now)
    return MessageBudget(user_id, day, limits.daily_messages, _next_midnight(now))


async def spend_messages(budget: MessageBudget, count: int) -> None:
    """Count so many messages. `DailyLimitReachedError` when fewer are left; then none is counted."""
    if not await crud_usage.count_messages(budget.user_id, day=budget.day, limit=budget.limit, count=count):
        seconds = (budget.resets_at - utc_now()).total_seconds()
        used_up = "are used up" if count == 1 else f"have no room for {count} more"
        raise DailyLimitReachedError(
            f"The {budget.limit} messages of today {used_up}. Go on at {budget.resets_at:%Y-%m-%dT%H:%M:%SZ}.",
            retry_after=max(1, math.ceil(seconds)),
        )


async def spend_conversation(user_id: ObjectId, limits: Limits) -> None:
    """Count one conversation more. `QuotaExceededError` when the plan has no room for it."""
    if not await crud_usage.count_conversation(user_id, limit=limits.max_conversations):
        raise QuotaExceededError(
            f"The plan has room for {limits.max_conversations} conversations. Delete one that you have created."
        )


async def spend_storage(user_id: ObjectId, size: int, *, limit: int | None) -> None:
    """Count so many bytes more. `QuotaExceededError` when the plan has no room for them."""
    if not await crud_usage.count_storage(user_id, size, limit=limit):
        raise QuotaExceededError(f"The plan has room for {limit} bytes. Delete files that you have uploaded.")


async def usage_of(user: User) -> UsageRead:
    """Plan, limits, and what is used and left of them now."""
    now = utc_now()
    limits = limits_of(user.plan, user.limits)
    used = await crud_usage.used(user.id, day=crud_usage.day_of(now))
    return UsageRead(
        plan=user.plan,
        limits=LimitsRead(**limits._asdict()),
        used=UsedRead(**used._asdict()),
        remaining=RemainingRead(
            messages_today=_left(limits.daily_messages, used.messages_today),
            conversations=_left(limits.max_conversations, used.conversations),
            storage_bytes=_left(limits.storage_bytes, used.storage_bytes),
        ),
        credits=user.credits,
        resets_at=_next_midnight(now),
    )


def _next_midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)
