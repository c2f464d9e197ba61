"""Following a conversation: who may, from where on, and what they are sent."""

import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.context import current_context
from app.core.exceptions import ForbiddenError, InvalidRequestError, NotFoundError, TooManyStreamsError
from app.core.logging_config import get_logger
from app.core.principal import Principal
from app.core.scopes import Scope
from app.crud import crud_conversation, crud_conversation_event, crud_event_log
from app.crud.crud_conversation import Place
from app.models.enums import ConversationEventType
from app.schemas.conversation_event import numbered, opening, parse_event_id, reload_frame
from app.services import event_frames
from app.services.event_hub import EventHub, advanced, get_hub
from app.services.event_subscription import MAX_BYTES, Subscription

_STREAMS_OF_AN_ACCOUNT: Final = 100
_STREAMS_OF_A_SERVICE: Final = 5000
_FULL_SECONDS: Final = 5
_TYPING_EVERY_SECONDS: Final = 2.0
_MOST_TYPING: Final = 10_000

_log = get_logger(__name__)

_typed_at: dict[tuple[ObjectId, ObjectId], float] = {}


class Following(NamedTuple):
    """A stream that was granted: where its client stands, and up to which version it has to read."""

    hub: EventHub
    subscription: Subscription
    place: Place
    head: Place

    def leave(self) -> None:
        self.hub.leave(self.subscription)


async def follow(conversation_id: ObjectId, last_event_id: str | None, *, by: Principal) -> Following:
    """Follow a conversation from now on, or from behind that event. Whoever gets it must `leave`."""
    hub, subscription = get_hub(), Subscription(conversation_id, by=by, ip=current_context().client_ip)
    most = _STREAMS_OF_A_SERVICE if by.user_id is None else _STREAMS_OF_AN_ACCOUNT
    if hub.count(subscription.holder_id) >= most:
        raise TooManyStreamsError(retry_after=_FULL_SECONDS)
    try:
        # First listen, then look where the conversation is: so nothing falls in between.
        await hub.join(subscription)
        head = await crud_event_log.require_head(conversation_id, user_id=subscription.participant_id)
        return Following(hub, subscription, await _place(conversation_id, last_event_id, head), head)
    except BaseException:
        hub.leave(subscription)
        raise


async def _place(conversation_id: ObjectId, last_event_id: str | None, head: Place) -> Place:
    if not last_event_id:
        return head
    found = parse_event_id(last_event_id)
    if found is not None:
        place = Place(version=found[0], seq=found[1])
        if place == head or await crud_event_log.was_at(conversation_id, place, head=head):
            return place
    raise InvalidRequestError("Last-Event-ID is not the id of an event of this conversation.")


async def frames(following: Following) -> AsyncIterator[bytes]:
    """What the client is sent: first what it has missed, page by page as it takes it, then what happens."""
    hub, subscription, place, head = following
    yield opening(subscription.conversation_id, version=place.version, seq=place.seq)
    until = head.version
    while not (subscription.is_listening or subscription.is_over):
        async for frame, reached in _missed(following, place, until):
            yield frame
            place = reached
        if subscription.is_over:  # perhaps before it knew all: others must not go on from there
            return
        place = Place(place.seq, until)
        until = hub.listen(subscription, place)
    while events := await subscription.take():
        yield b"".join([event.frame for event in events])


async def _missed(following: Following, place: Place, until: int) -> AsyncIterator[tuple[bytes, Place]]:
    """What happened between a place and a version, each with the place behind it.

    Events are not kept for ever. Where there are none of some version, the client is told once to load anew.
    """
    hub, subscription, _, head = following
    is_last, has_gap = place.version >= until, False
    while not (is_last or subscription.is_over):
        try:
            async with hub.readers:
                entries, is_last = await crud_event_log.page(subscription.conversation_id, after=place, until=until)
                made = await event_frames.frames_of(entries)
        except Exception as error:  # noqa: BLE001 - the answer is under way: what can't be read now is resumed
            _log.warning("event_stream_broken", exc_info=error)
            subscription.end()
            return
        some = _fitting(made)
        is_last = is_last and some == len(made)
        entries, made = entries[:some], made[:some]  # the rest is read again: what is kept for a client is bounded
        for entry, frame in zip(entries, made, strict=True):
            if entry.version != place.version + 1 and not has_gap:
                has_gap = True
                yield reload_frame(subscription.conversation_id), place
            place = advanced(place, entry)
            if subscription.is_over:
                return
            yield numbered(frame, version=place.version, seq=place.seq), place
            if place.version > head.version and event_frames.ends(entry, subscription.participant_id):
                subscription.end()
    if place.version < until and not has_gap:
        yield reload_frame(subscription.conversation_id), place


def _fitting(made: Sequence[bytes]) -> int:
    """How many of these frames may wait for a client to take them, at least the first."""
    sums = itertools.accumulate(map(len, made))
    return max(1, sum(size <= MAX_BYTES for size in sums)) if made else 0


async def tell_typing(conversation_id: ObjectId, *, by: Principal) -> None:
    """Tell the others that one is typing. More often than every 2 s it tells them nothing new."""
    user_id = by.account_id
    if not await crud_conversation.exists(conversation_id, user_id=user_id):
        if await crud_conversation.exists(conversation_id, user_id=by.owner_filter(Scope.CONVERSATIONS_WRITE)):
            raise ForbiddenError("You do not take part in the conversation.")
        raise NotFoundError("There is no such conversation.")
    now = time.monotonic()
    if now - _typed_at.get((conversation_id, user_id), -_TYPING_EVERY_SECONDS) < _TYPING_EVERY_SECONDS:
        return
    if len(_typed_at) >= _MOST_TYPING:
        _typed_at.clear()
    _typed_at[conversation_id, user_id] = now
    await crud_conversation_event.add(conversation_id, None, ConversationEventType.TYPING, {"user_id": user_id})
