from datetime import datetime

from beanie import Document
from pydantic import BaseModel


class Counts(BaseModel):
    """Of a day; `active_users` are those who signed in, renewed a session or have a message of theirs."""

    users: int = 0
    active_users: int = 0
    messages: int = 0
    keys: int = 0
    uploads: int = 0
    failures: int = 0


class DailyStatistics(Document, Counts):
    """What happened on one day (UTC): numbers, and nothing of anybody. Those of a day never get less."""

    id: str  # type: ignore[assignment]  # "2026-11-21"
    counted_at: datetime

    class Settings:
        name = "daily_statistics"
