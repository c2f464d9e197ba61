from datetime import datetime

from beanie import Document
from pydantic import Field

from app.core.clock import utc_now


class Installation(Document):
    """A fact that holds once for the whole database, under a fixed id: who inserts it first has won."""

    id: str  # type: ignore[assignment]  # a fixed name instead of an ObjectId
    at: datetime = Field(default_factory=utc_now)

    class Settings:
        name = "installation"
