from datetime import datetime

from beanie import PydanticObjectId
from pydantic import BaseModel, Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.core.clock import utc_now
from app.models.base import BaseDocument
from app.models.enums import ParticipantRole

MAX_PARTICIPANTS = 1000


class Participant(BaseModel):
    """One member of a conversation. Unread are the messages past `last_read_seq` that it did not send itself.

    `sent` counts what it has sent since it joined, `sent_before_mark` what of that is not past the mark.
    """

    user_id: PydanticObjectId
    role: ParticipantRole
    joined_at: datetime
    last_read_seq: int = 0
    sent: int = 0
    sent_before_mark: int = 0


class Conversation(BaseDocument):
    """A chat: who takes part, and the counters of its messages. Participants are kept in the order they joined.

    Every change of it or of its messages raises `version` by one, so versions put all that happens in it in order.
    """

    title: str | None = None
    created_by: PydanticObjectId | None = None
    participants: list[Participant] = Field(default_factory=list)
    archived: bool = False
    last_seq: int = 0
    message_count: int = 0
    last_activity_at: datetime = Field(default_factory=utc_now)
    updated_at: datetime = Field(default_factory=utc_now)
    version: int = 1

    class Settings:
        name = "conversations"
        indexes = [  # noqa: RUF012
            IndexModel(
                [("participants.user_id", ASCENDING), ("last_activity_at", DESCENDING), ("_id", DESCENDING)],
                name="participant_latest",
            ),
            IndexModel([("last_activity_at", DESCENDING), ("_id", DESCENDING)], name="latest"),
            # The few that are archived, among the many that are not.
            IndexModel(
                [
                    *(("participants.user_id", ASCENDING), ("archived", ASCENDING)),
                    *(("last_activity_at", DESCENDING), ("_id", DESCENDING)),
                ],
                name="participant_archived",
                partialFilterExpression={"archived": True},
            ),
            IndexModel(
                [("archived", ASCENDING), ("last_activity_at", DESCENDING), ("_id", DESCENDING)],
                name="archived",
                partialFilterExpression={"archived": True},
            ),
            # An order that activity does not change: whoever walks all of them misses none.
            IndexModel([("participants.user_id", ASCENDING), ("_id", ASCENDING)], name="participant_oldest"),
            IndexModel([("created_by", ASCENDING)], name="creator"),
        ]


class DeletedConversation(BaseDocument):
    """A conversation that is gone, and whose messages are still being removed. Empty but for a moment."""

    class Settings:
        name = "deleted_conversations"
