from beanie import PydanticObjectId

from app.schemas.base import RequestBody, ResourceId, ResponseBody


class ReadMarkMove(RequestBody):
    """`user_id` is for services, which mark for a participant."""

    message_id: ResourceId
    user_id: PydanticObjectId | None = None


class ReadMarkRead(ResponseBody):
    """How far the participant has read, and how many messages of others are behind that."""

    last_read_seq: int
    unread_count: int
