"""What happens in conversations besides new messages, kept for those who listen and were away for a while."""

from datetime import timedelta
from typing import Final

from bson import ObjectId

from app.core.clock import utc_now
from app.db.mongo import Raw
from app.models.conversation_event import ConversationEvent
from app.models.enums import ConversationEventType

KEPT: Final = timedelta(days=7)
PASSING: Final = timedelta(seconds=60)


async def add(conversation_id: ObjectId, version: int | None, kind: ConversationEventType, data: Raw) -> None:
    """Tell what has happened, inside the transaction in which the conversation got that version.

    `data` is small: ids, and what a listener would otherwise have to ask for. Without a version it is told only to who
    listens now.
    """
    expires_at = utc_now() + (PASSING if version is None else KEPT)
    event = ConversationEvent(
        conversation_id=conversation_id, version=version, type=kind, data=data, expires_at=expires_at
    )
    await event.insert()
