"""One open stream of events: what waits to be sent to its client, and no more of it than a client may lag behind."""

import asyncio
import time
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.principal import Principal
from app.core.scopes import Scope
from app.crud.crud_event_log import Entry
from app.services import event_frames

MAX_EVENTS: Final = 1000
MAX_BYTES: Final = 256 * 1024


class Event(NamedTuple):
    """A frame that all who follow the conversation share, and what it is made of; none for a heartbeat."""

    frame: bytes
    entry: Entry | None = None


class Subscription:
    """Filled by the hub, emptied by the request. Nothing is put into it before it listens, or after it is over."""

    __slots__ = (
        *("by", "checked_at", "conversation_id", "ip", "is_listening", "is_over", "participant_id", "spoken_at"),
        *("_bytes", "_events", "_known", "_waiter"),
    )

    def __init__(self, conversation_id: ObjectId, *, by: Principal, ip: str | None) -> None:
        self.conversation_id, self.by, self.ip = conversation_id, by, ip
        self.participant_id = by.owner_filter(Scope.CONVERSATIONS_READ)
        self.is_listening = self.is_over = False
        self.spoken_at = self.checked_at = time.monotonic()
        self._events: list[Event] = []
        self._bytes = self._known = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def holder_id(self) -> ObjectId | None:
        """Whose stream it is: an account's, whichever of its credentials was shown, or that of a service's key."""
        return self.by.user_id or self.by.credential_id

    def listen(self, version: int) -> None:
        """Want what happens after that version."""
        self.is_listening, self._known = True, version

    def wants(self, event: Event) -> bool:
        if not self.is_listening or self.is_over or event.entry is None:
            return False
        if event.entry.version is None:
            return not event_frames.is_by(event.entry, self.by)
        return event.entry.version > self._known

    def put(self, event: Event) -> bool:
        """Have it sent. False when the client takes nothing any more: it is cut off, and resumes if it can.

        The last one that the client has a right to is the end.
        """
        size = len(event.frame)
        if self._events and (len(self._events) >= MAX_EVENTS or self._bytes + size > MAX_BYTES):
            self.end()
            return False
        self._events.append(event)
        self._bytes += size
        self.spoken_at = time.monotonic()
        self.is_over = event.entry is not None and event_frames.ends(event.entry, self.participant_id)
        self._wake()
        return True

    def beat(self, heartbeat: Event) -> None:
        """Show that the connection is alive, unless the client has not even taken what came before.

        What is over stays over, also while the request is still held up by its client.
        """
        if not (self._events or self.is_over):
            self.put(heartbeat)

    def end(self) -> None:
        """Send nothing more, not even what waits."""
        self.is_over = True
        self._drop()
        self._wake()

    async def take(self) -> list[Event]:
        """What has come, as soon as anything has. Nothing: it is over."""
        if not self._events and not self.is_over:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events = self._events
        self._drop()
        return events

    def _drop(self) -> None:
        self._events, self._bytes = [], 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
