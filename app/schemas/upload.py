from datetime import datetime
from typing import Annotated

from beanie import PydanticObjectId
from pydantic import Field

from app.models.enums import UploadStatus, Visibility
from app.schemas.base import RequestBody, ResourceId, ResourceRead


class UploadCreate(RequestBody):
    """What a form says of its file."""

    visibility: Visibility = Visibility.PRIVATE
    conversation_id: ResourceId | None = None


class UploadRead(ResourceRead):
    """`variants` are the sizes of the thumbnails that are there."""

    filename: str
    content_type: str
    size: int
    sha256: str | None
    status: UploadStatus
    visibility: Visibility
    conversation_id: PydanticObjectId | None
    created_at: datetime
    variants: list[int]
    text_available: Annotated[bool, Field(description="Whether its text can be asked for")]
    owner_id: PydanticObjectId | None
