"""The query parameters of lists."""

from typing import Annotated, Literal

from beanie import PydanticObjectId
from pydantic import BaseModel, ConfigDict, Field

from app.core.plans import Plan
from app.core.scopes import Role
from app.models.enums import MessageRole, UploadStatus
from app.schemas.base import SearchText, SearchWords


class PageQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    limit: Annotated[int, Field(ge=1, le=200, description="Rows of a page")] = 50
    cursor: Annotated[str | None, Field(max_length=2000, description="From the `next` link of the page before")] = None


class UserQuery(PageQuery):
    q: Annotated[SearchText | None, Field(description="Beginning of an e-mail address, username or full name")] = None
    role: Role | None = None
    is_active: bool | None = None
    plan: Plan | None = None
    sort: Literal["created_at", "-created_at", "email"] = "-created_at"


class DeletedUserQuery(PageQuery):
    q: Annotated[SearchText | None, Field(description="Beginning of an e-mail address")] = None


class ApiKeyQuery(PageQuery):
    include_inactive: bool = False


class ConversationQuery(PageQuery):
    q: Annotated[SearchWords | None, Field(description="Words that the title or a message has, all of them")] = None
    archived: Annotated[bool | None, Field(description="Only those that are, or are not, archived")] = None


class ItemQuery(PageQuery):
    is_completed: Annotated[bool | None, Field(description="Only those that are, or are not, completed")] = None


class MessageQuery(PageQuery):
    order: Literal["asc", "desc"] = "asc"
    role: MessageRole | None = None
    q: Annotated[SearchWords | None, Field(description="Words that the message has, all of them")] = None
    after: Annotated[str | None, Field(max_length=100, description="Begin behind the message with this id")] = None


class UploadQuery(PageQuery):
    status: UploadStatus | None = None
    conversation_id: Annotated[PydanticObjectId | None, Field(description="Only those of this conversation")] = None
