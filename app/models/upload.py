from datetime import datetime, timedelta
from typing import Final

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.core.clock import utc_now
from app.core.text_types import MOST_BYTES, TEXT_TYPES
from app.models.base import BaseDocument
from app.models.enums import UploadStatus, Visibility

# After how long one that is pending is given up. Whoever receives it prolongs that several times in between.
GIVEN_UP_AFTER: Final = timedelta(minutes=5)


class DeletedUpload(BaseDocument):
    """An upload that is gone, and whose bytes are still being removed. Empty but for a moment.

    Who has a link to put bytes there may still do so until `link_ends_at`: so long there is a note of what may come.
    """

    stem: str
    link_ends_at: datetime | None = None
    due_at: datetime | None = None  # when to look again, after they were removed

    class Settings:
        name = "deleted_uploads"


class Upload(BaseDocument):
    """A file of a user. Its bytes, and what is made of them, are in the storage, as parts of `stem`.

    `size` counts against its owner from the moment it is pending: until the bytes are all there it is what was
    reserved for them. `due_at` is when one that is pending is given up, unless whoever receives it prolongs it.
    """

    owner_id: PydanticObjectId | None
    filename: str
    content_type: str
    size: int
    sha256: str | None = None
    stem: str
    status: UploadStatus = UploadStatus.PENDING
    reason: str | None = None  # why it failed, or what was found in it
    visibility: Visibility = Visibility.PRIVATE
    conversation_id: PydanticObjectId | None = None
    variants: list[int] = Field(default_factory=list)  # sizes of the thumbnails that are there
    has_text: bool = False  # it was made once
    thumbnail_fault: str | None = None  # why there are none, when that lies in the file
    text_fault: str | None = None
    thumbnail_timeouts: int = 0  # how often making them took too long
    text_timeouts: int = 0
    link_ends_at: datetime | None = None  # until when whoever has its link may put its bytes
    due_at: datetime | None = None
    is_direct: bool = False  # its bytes are put by the client, and then checked
    checked_until: datetime | None = None  # by when whoever puts or checks them has said that it still does
    updated_at: datetime = Field(default_factory=utc_now)

    @property
    def text_available(self) -> bool:
        """Whether its text can be asked for: it is there, or may be made. What was tried in vain has a fault."""
        is_possible = self.content_type in TEXT_TYPES and self.size <= MOST_BYTES and self.text_fault is None
        return self.status is UploadStatus.CLEAN and (self.has_text or is_possible)

    class Settings:
        name = "uploads"
        indexes = [  # noqa: RUF012
            IndexModel([("created_at", DESCENDING), ("_id", DESCENDING)], name="latest"),
            IndexModel(
                [("status", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
                name="status_latest",
            ),
            IndexModel(
                [("owner_id", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
                name="owner_latest",
            ),
            IndexModel(
                [("owner_id", ASCENDING), ("status", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
                name="owner_status_latest",
            ),
            IndexModel(
                [("conversation_id", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
                name="conversation_latest",
            ),
            IndexModel([("stem", ASCENDING)], name="stem_unique", unique=True),
            IndexModel([("due_at", ASCENDING)], name="due", sparse=True),
        ]
