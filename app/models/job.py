from datetime import datetime
from typing import Any

from beanie import Document
from pydantic import Field

from app.models.enums import JobOutcome


class Job(Document):
    """When a job is due, who is at it, and how it went the last time. A lease that ran out is free again."""

    id: str  # type: ignore[assignment]  # its name
    due_at: datetime
    holder: str | None = None
    leased_until: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    succeeded_at: datetime | None = None
    outcome: JobOutcome | None = None
    duration_ms: int | None = None
    result: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None

    class Settings:
        name = "jobs"
