"""Where what happens in conversations meets those who follow it: one change stream, however many they are.

Of each conversation that is followed the hub knows up to which version it has told of. What is missing in front of an
event is read before that is passed on, so that nobody is told of something without what came before.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from contextvars import Context
from typing import Final

from bson import ObjectId

from app.core import live_cache
from app.core.clock import utc_now
from app.core.exceptions import DatabaseUnavailableError
from app.core.logging_config import get_logger
from app.core.metrics import EVENT_STREAMS
from app.crud import crud_event_log
from app.crud.crud_conversation import Place
from app.crud.crud_event_log import Entry
from app.db.event_feed import FeedLostError, Inserted, inserts
from app.schemas.conversation_event import HEARTBEAT, numbered
from app.services import event_frames, event_guard
from app.services.event_subscription import Event, Subscription

HEARTBEAT_SECONDS = 15.0
_TICK_SECONDS: Final = 1.0
_OPENING_SECONDS: Final = 3.0
_LINGER_SECONDS = 30.0
_READERS: Final = 8
_HEARTBEAT: Final = Event(HEARTBEAT)

_log = get_logger(__name__)


class _Channel:
    """One conversation that is followed. `place` is up to where it was told of; none while all still read the past.

    `heard` is the latest version that was heard of.
    """

    __slots__ = ("heard", "place", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions: set[Subscription] = set()
        self.place: Place | None = None
        self.heard = 0

    def tell(self, event: Event) -> None:
        for subscription in self.subscriptions:
            if subscription.wants(event) and not subscription.put(event):
                _log.info("event_stream_cut_off", principal=subscription.by.rate_key)


class EventHub:
    """All streams of this process."""

    def __init__(self) -> None:
        self._channels: dict[ObjectId, _Channel] = {}
        self._of_holder: Counter[ObjectId | None] = Counter()
        self._watch = event_guard.Watch()
        self._opened = asyncio.Event()
        self._feed: asyncio.Task[None] | None = None
        self._used_at = time.monotonic()
        self._is_closing = False
        # Clients that all come back at once read what they missed a few at a time.
        self.readers = asyncio.Semaphore(_READERS)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Until the end of the block."""
        ticker = asyncio.create_task(self._tick_forever(), name="event_ticker")
        checker = asyncio.create_task(self._watch.check_forever(), name="event_guard")
        try:
            with live_cache.told_to(self._watch.suspect):
                yield
        finally:
            self.close()
            tasks = [task for task in (ticker, checker, self._feed) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def count(self, holder_id: ObjectId | None) -> int:
        """How many streams an account has, or a key of a service."""
        return self._of_holder[holder_id]

    async def join(self, subscription: Subscription) -> None:
        """Hear of all that happens from now on. `leave` belongs to every `join`, also to one that fails."""
        self._channel_of(subscription.conversation_id).subscriptions.add(subscription)
        self._of_holder[subscription.holder_id] += 1
        EVENT_STREAMS.move(1)
        self._watch.add(subscription)
        self._used_at = time.monotonic()
        if self._is_closing:
            subscription.end()
            return
        if self._feed is None:
            self._opened = asyncio.Event()
            self._feed = asyncio.create_task(self._follow(self._opened), name="event_feed", context=Context())
        try:
            async with asyncio.timeout(_OPENING_SECONDS):
                await self._opened.wait()
        except TimeoutError as error:
            raise DatabaseUnavailableError from error

    def leave(self, subscription: Subscription) -> None:
        subscription.end()
        channel = self._channels.get(subscription.conversation_id)
        if channel is None or subscription not in channel.subscriptions:
            return
        channel.subscriptions.remove(subscription)
        if not channel.subscriptions:
            del self._channels[subscription.conversation_id]
        self._watch.remove(subscription)
        self._used_at = time.monotonic()
        self._of_holder[subscription.holder_id] -= 1
        EVENT_STREAMS.move(-1)
        if not self._of_holder[subscription.holder_id]:
            del self._of_holder[subscription.holder_id]

    def listen(self, subscription: Subscription, place: Place) -> int:
        """From now on put what happens into the subscription of a client that knows everything up to that place.

        Unless more has been heard of meanwhile: the client has to read up to the version that this gives.
        """
        channel = self._channels[subscription.conversation_id]
        known = max(channel.heard, channel.place.version if channel.place else 0)
        if known > place.version:
            return known
        if channel.place is None:
            channel.place = place
        subscription.listen(place.version)
        return place.version

    def close(self) -> None:
        """End all streams, and every one that is still to be opened: the server stops."""
        if not self._is_closing:
            self._is_closing = True
            self._end(self._subscriptions())

    def _channel_of(self, conversation_id: ObjectId) -> _Channel:
        return self._channels.setdefault(conversation_id, _Channel())

    def _subscriptions(self) -> list[Subscription]:
        return [each for channel in self._channels.values() for each in channel.subscriptions]

    @staticmethod
    def _end(subscriptions: Iterable[Subscription]) -> None:
        for subscription in subscriptions:
            subscription.end()

    async def _follow(self, opened: asyncio.Event) -> None:
        """Tell of what happens for as long as anybody listens. When something may have been missed all are ended."""
        try:
            async with aclosing(inserts(opened)) as feed:
                async for batch in feed:
                    await self._pass_on(batch)
                    if not self._channels and time.monotonic() - self._used_at > _LINGER_SECONDS:
                        self._feed = None
                        return
        except FeedLostError:
            _log.warning("event_feed_lost", streams=len(self._subscriptions()))
        except Exception as error:  # noqa: BLE001 - whoever comes next begins another
            _log.error("event_feed_failed", exc_info=error)
        finally:
            if self._feed is asyncio.current_task():
                self._feed = None
                self._end(self._subscriptions())

    async def _pass_on(self, batch: Sequence[Inserted]) -> None:
        heard = []
        for entry in map(crud_event_log.entry_of, batch):
            channel = self._channels.get(entry.conversation_id)
            if channel is not None:
                channel.heard = max(channel.heard, entry.version or 0)
                if channel.place is not None:
                    heard.append(entry)
        try:
            for entry, frame in zip(heard, await event_frames.frames_of(heard), strict=True):
                await self._tell(entry, frame)
        except Exception as error:  # noqa: BLE001 - whoever can't be told must not go on as if nothing had been
            _log.warning("events_not_passed_on", exc_info=error)
            for entry in heard:
                if channel := self._channels.get(entry.conversation_id):
                    self._end(channel.subscriptions)

    async def _tell(self, entry: Entry, frame: bytes) -> None:
        channel = self._channels.get(entry.conversation_id)
        if channel is None or channel.place is None:
            return
        if entry.version is None:
            channel.tell(Event(frame, entry))
        elif entry.version > channel.place.version:
            if entry.version > channel.place.version + 1:
                await self._fill(channel, entry)
            self._advance(channel, entry, frame)
        await asyncio.sleep(0)  # whoever is not held up takes it before the next comes

    async def _fill(self, channel: _Channel, entry: Entry) -> None:
        """Tell of what happened between the last event and this one, if there is anything."""
        assert channel.place is not None  # noqa: S101 - or nobody listens
        until, is_last = (entry.version or 0) - 1, False
        while not is_last:
            missed, is_last = await crud_event_log.page(entry.conversation_id, after=channel.place, until=until)
            for each, frame in zip(missed, await event_frames.frames_of(missed), strict=True):
                self._advance(channel, each, frame)

    @staticmethod
    def _advance(channel: _Channel, entry: Entry, frame: bytes) -> None:
        place = channel.place = advanced(channel.place, entry)
        channel.tell(Event(numbered(frame, version=place.version, seq=place.seq), entry))

    async def _tick_forever(self) -> None:
        """One clock for all: ends what has expired, and sends a sign of life where nothing else was sent."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now, at = time.monotonic(), utc_now()
            for subscription in self._subscriptions():
                if subscription.by.ends_at is not None and subscription.by.ends_at <= at:
                    subscription.end()
                elif subscription.is_listening and now - subscription.spoken_at >= HEARTBEAT_SECONDS:
                    subscription.beat(_HEARTBEAT)
                if not live_cache.is_hearing() and now - subscription.checked_at >= HEARTBEAT_SECONDS:
                    self._watch.suspect_one(subscription)


def advanced(place: Place | None, entry: Entry) -> Place:
    """Where a conversation is once that has happened."""
    seq = entry.seq if entry.seq is not None else place.seq if place else 0
    return Place(seq, entry.version or 0)


_hub: EventHub | None = None


@asynccontextmanager
async def running() -> AsyncIterator[None]:
    """Streams can be opened until the end of the block."""
    global _hub  # noqa: PLW0603 - as the connection: one process serves one database
    _hub = EventHub()
    try:
        async with _hub.running():
            yield
    finally:
        _hub = None


def get_hub() -> EventHub:
    if _hub is None:
        raise RuntimeError("Events are not followed.")
    return _hub


def close() -> None:
    """End all streams, because the server stops: it would wait for them."""
    if _hub is not None:
        _hub.close()
