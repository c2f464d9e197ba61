from datetime import datetime
from enum import IntEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.base import RequestBody, ResponseBody

_WEEK: Final = 7 * 24 * 3600
_FROM_LINK: Final = "Of a signed link"


class ThumbnailSize(IntEnum):
    """The most that the longer side of a thumbnail has, in pixels."""

    SMALL = 64
    MEDIUM = 256
    LARGE = 1024


class FileQuery(BaseModel):
    """How a file goes out. `expires` and `signature` are for whoever lets the request in."""

    model_config = ConfigDict(frozen=True)

    download: Annotated[bool, Field(description="To be saved, not shown")] = False
    expires: Annotated[str | None, Field(description=_FROM_LINK)] = None
    signature: Annotated[str | None, Field(description=_FROM_LINK)] = None


class ThumbnailQuery(FileQuery):
    size: Annotated[ThumbnailSize, Field(description="The most that the longer side has")] = ThumbnailSize.MEDIUM


class PutQuery(BaseModel):
    expires: Annotated[str, Field(description=_FROM_LINK)]
    signature: Annotated[str, Field(description=_FROM_LINK)]


class SignedUrlCreate(RequestBody):
    expires_in: Annotated[int, Field(ge=1, le=_WEEK, description="Seconds")] = 3600
    download: Annotated[bool, Field(description="To be saved, not shown")] = False
    thumbnail: Annotated[ThumbnailSize | None, Field(description="The thumbnail in place of the file")] = None


class SignedUrl(ResponseBody):
    url: str
    expires_at: datetime
