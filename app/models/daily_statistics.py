from datetime import datetime

from beanie import Document


class DailyStatistics(Document):
    """What happened on one day (UTC): numbers, and nothing of anybody. Those of a day never get less."""

    id: str  # type: ignore[assignment]  # "2026-11-21"
    users: int = 0
    active_users: int = 0
    messages: int = 0
    keys: int = 0
    uploads: int = 0
    failures: int = 0
    counted_at: datetime

    class Settings:
        name = "daily_statistics"
