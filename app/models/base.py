from datetime import datetime

from beanie import Document, PydanticObjectId
from bson import ObjectId
from pydantic import Field

from app.core.clock import utc_now


class BaseDocument(Document):
    """A stored document. Its identifier is made here, so it is never None and a retried insert can't double it."""

    id: PydanticObjectId = Field(default_factory=lambda: PydanticObjectId(ObjectId()))
    created_at: datetime = Field(default_factory=utc_now)
