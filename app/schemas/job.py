from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from app.models.enums import JobOutcome
from app.schemas.base import ResponseBody


class JobRead(ResponseBody):
    name: str
    description: str
    schedule: Annotated[str, Field(description="When it is due, in words")]
    is_running: bool
    holder: Annotated[str | None, Field(description="The host and process that is at it")]
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    outcome: Annotated[JobOutcome | None, Field(description="How the last run ended; null before the first")]
    duration_ms: int | None
    result: Annotated[dict[str, Any], Field(description="What the last run did, in numbers")]
    error: Annotated[str | None, Field(description="The kind of the error that ended the last run")]
