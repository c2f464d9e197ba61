from datetime import datetime
from typing import ClassVar

from beanie import PydanticObjectId

from app.schemas.base import Description, Name, PatchBody, RequestBody, ResourceRead


class ItemCreate(RequestBody):
    title: Name
    description: Description | None = None
    is_completed: bool = False


class ItemUpdate(PatchBody):
    clearable: ClassVar = frozenset({"description"})

    title: Name | None = None
    description: Description | None = None
    is_completed: bool | None = None


class ItemRead(ResourceRead):
    owner_id: PydanticObjectId
    title: str
    description: str | None
    is_completed: bool
    created_at: datetime
    updated_at: datetime
