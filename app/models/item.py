from datetime import datetime

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.core.clock import utc_now
from app.models.base import BaseDocument


class Item(BaseDocument):
    """Something that a user has noted down, to be done. It belongs to that user for as long as it exists."""

    owner_id: PydanticObjectId
    title: str
    description: str | None = None
    is_completed: bool = False
    updated_at: datetime = Field(default_factory=utc_now)
    version: int = 1  # counts changes; what `If-Match` compares

    class Settings:
        name = "items"
        indexes = [  # noqa: RUF012
            IndexModel([("owner_id", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)], name="owner_newest"),
            IndexModel(
                [("owner_id", ASCENDING), ("is_completed", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
                name="owner_completed_newest",
            ),
            IndexModel([("created_at", DESCENDING), ("_id", DESCENDING)], name="newest"),
            IndexModel(
                [("is_completed", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
                name="completed_newest",
            ),
        ]
