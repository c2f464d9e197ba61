from datetime import datetime

from app.core.plans import Plan
from app.schemas.base import ResponseBody


class LimitsRead(ResponseBody):
    """`null` is without limit; for `requests_per_minute` it is the common limit on the rate of requests."""

    daily_messages: int | None
    max_conversations: int | None
    storage_bytes: int | None
    requests_per_minute: int | None


class UsedRead(ResponseBody):
    """`messages_today` are those since midnight UTC; `conversations` those that the user created and that are there."""

    messages_today: int
    conversations: int
    storage_bytes: int


class RemainingRead(ResponseBody):
    """`null` is without limit."""

    messages_today: int | None
    conversations: int | None
    storage_bytes: int | None


class UsageRead(ResponseBody):
    """`limits` are those of the plan, with what was set for this account in their place."""

    plan: Plan
    limits: LimitsRead
    used: UsedRead
    remaining: RemainingRead
    credits: int
    resets_at: datetime
