from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from app.models.enums import Visibility
from app.schemas.base import RequestBody, ResourceId, ResponseBody
from app.schemas.upload import UploadRead


class DirectUploadCreate(RequestBody):
    """What is to come. Its size and, when it is given, its hash must be right; its type the bytes will tell."""

    filename: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    size: Annotated[int, Field(ge=1, description="Bytes")]
    content_type: Annotated[str | None, Field(max_length=255, description="Refused now if it would be later")] = None
    sha256: Annotated[str | None, Field(pattern="^[0-9a-f]{64}$")] = None
    visibility: Visibility = Visibility.PRIVATE
    conversation_id: ResourceId | None = None


class DirectUploadRead(ResponseBody):
    """Where to put the bytes, and what to send with them; then the upload is to be completed."""

    upload: UploadRead
    url: str
    method: Literal["PUT"] = "PUT"
    headers: dict[str, str]
    expires_at: datetime
