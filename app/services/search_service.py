"""Search over what the caller may see, within a bounded time: what is not found in it, the next page goes on for.

So a page may hold fewer rows than were asked for, even none, and have a next one.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from bson import ObjectId

from app.core.exceptions import NotFoundError
from app.core.principal import Principal
from app.core.scopes import Scope
from app.core.search_words import contains_all, words_of
from app.crud import crud_conversation, crud_message, crud_search
from app.crud.base import Page
from app.crud.crud_search import Block
from app.models.message import BLOCK
from app.schemas.page import ConversationQuery, MessageQuery

_LEAST_SECONDS: Final = 0.01
_SEARCH_SECONDS: Final = 0.15
# How many blocks are looked at in one exchange with the database. The first are few: common words are found there.
_FEW: Final = 4
_MANY: Final = 64
# After that the server is asked about fewer. Words of which each is common but all together rare are dear to look for.
_WAVE_SECONDS: Final = 0.15
# What of some conversations was not looked at by then makes them no find.
_GROUP_SECONDS: Final = 1.0
# Of a conversation the latest million messages can make it a find; a search in it reaches all.
_BLOCKS_OF_A_CONVERSATION: Final = 256
_STRIDE: Final = 50

Raw = dict[str, Any]
T = TypeVar("T")


class _Range(NamedTuple):
    """From which place in a conversation to which, both included."""

    first: int
    last: int

    def blocks(self, *, is_ascending: bool) -> list[int]:
        numbers = list(range(self.first // BLOCK, self.last // BLOCK + 1)) if self.first <= self.last else []
        return numbers if is_ascending else numbers[::-1]


class _Waves(Generic[T]):
    """Blocks, as many at a time as are looked at in one exchange: more each time, until that takes too long."""

    def __init__(self, blocks: Sequence[T], *, first: int) -> None:
        self.left = blocks
        self._size, self._most = first, _MANY

    @property
    def next(self) -> Sequence[T]:
        return self.left[: self._size]

    @property
    def seconds(self) -> float | None:
        """How long the next may take; one block as long as it takes."""
        return _WAVE_SECONDS if self._size > 1 else None

    def done(self) -> None:
        self.left = self.left[self._size :]
        self._size = min(4 * self._size, self._most)

    def too_slow(self) -> None:
        self._size = self._most = max(1, self._size // 8)


async def messages(conversation_id: ObjectId, query: MessageQuery, *, by: Principal) -> Page[Raw]:
    """The messages of a conversation that have every word of `query.q`, in the order of the conversation."""
    conversation = await crud_conversation.find(conversation_id, user_id=by.owner_filter(Scope.CONVERSATIONS_READ))
    if conversation is None:
        raise NotFoundError("There is no such conversation.")
    words, is_ascending = words_of(query.q or ""), query.order == "asc"
    listing = crud_search.listing(conversation_id, words, role=query.role, after=query.after, is_ascending=is_ascending)
    between = await _range(conversation, query, listing.position(query.cursor))
    rows, reached = await _found(conversation_id, words, query, between)
    if len(rows) > query.limit:
        return listing.page(rows, query.limit)
    return Page(rows, None if reached is None else listing.cursor_at([reached]))


async def _found(
    conversation_id: ObjectId, words: list[str], query: MessageQuery, between: _Range
) -> tuple[list[Raw], int | None]:
    """One more message than the page has, if there are so many; and how far was looked, when that is not all."""
    rows: list[Raw] = []
    reached, is_ascending = None, query.order == "asc"
    ends_at = time.monotonic() + _SEARCH_SECONDS
    waves = _Waves(between.blocks(is_ascending=is_ascending), first=_FEW)
    while (blocks := waves.next) and len(rows) <= query.limit and (reached is None or time.monotonic() < ends_at):
        found = await crud_search.messages(
            [(conversation_id, block) for block in blocks],
            words,
            role=query.role,
            between=between,
            is_ascending=is_ascending,
            limit=query.limit + 1 - len(rows),
            seconds=waves.seconds if reached is None else max(_LEAST_SECONDS, ends_at - time.monotonic()),
        )
        if found is not None:
            rows += found
            waves.done()
            reached = (blocks[-1] + 1) * BLOCK - 1 if is_ascending else blocks[-1] * BLOCK
        elif reached is None:
            waves.too_slow()
    return rows, reached if waves.left else None


async def conversations(query: ConversationQuery, *, user_id: ObjectId | None, reader_id: ObjectId | None) -> Page[Raw]:
    """Of the conversations of a user, or of all, those whose title or one of whose messages has every word."""
    words, found, cursor = words_of(query.q or ""), list[Raw](), query.cursor
    listing = crud_conversation.listing(user_id=user_id, archived=query.archived)
    ends_at = time.monotonic() + _SEARCH_SECONDS
    while True:
        rows, next_cursor = await crud_conversation.page(
            user_id=user_id, reader_id=reader_id, archived=query.archived, limit=_STRIDE, cursor=cursor
        )
        for group in _groups(rows):
            hits = await _hits(group, words)
            found += [row for row in group if row["_id"] in hits]
            if len(found) > query.limit:
                return listing.page(found, query.limit)
            if time.monotonic() > ends_at and (group[-1] is not rows[-1] or next_cursor):
                return Page(found, listing.cursor_behind(group[-1]))
        if next_cursor is None:
            return Page(found, None)
        cursor = next_cursor


async def _range(conversation: Raw, query: MessageQuery, position: list[Any] | None) -> _Range:
    """Where the page begins and ends that comes behind a position."""
    first, last = 1, conversation["last_seq"]
    if query.after is not None:
        first = 1 + await crud_message.place_of(query.after, conversation["_id"])
    if position is None:
        return _Range(first, last)
    return _Range(position[0] + 1, last) if query.order == "asc" else _Range(first, position[0] - 1)


async def _hits(rows: Sequence[Raw], words: list[str]) -> set[ObjectId]:
    found = {row["_id"] for row in rows if contains_all(row["title"] or "", words)}
    waves = _Waves([block for row in rows if row["_id"] not in found for block in _blocks_of(row)], first=_MANY)
    ends_at = time.monotonic() + _GROUP_SECONDS
    while (blocks := waves.next) and time.monotonic() < ends_at:
        more = await crud_search.conversations_with(blocks, words, seconds=waves.seconds)
        if more is None:
            waves.too_slow()
            continue
        found |= more
        waves.done()
        waves.left = [block for block in waves.left if block[0] not in found]
    return found


def _groups(rows: Sequence[Raw]) -> Iterator[list[Raw]]:
    """Conversations that together have about as many blocks as are looked at in one exchange."""
    group: list[Raw] = []
    size = 0
    for row in rows:
        size += len(_blocks_of(row))
        if group and size > _MANY:
            yield group
            group, size = [], len(_blocks_of(row))
        group.append(row)
    if group:
        yield group


def _blocks_of(conversation: Raw) -> list[Block]:
    """The blocks of a conversation, latest first."""
    blocks = _Range(1, conversation["last_seq"]).blocks(is_ascending=False)
    return [(conversation["_id"], block) for block in blocks[:_BLOCKS_OF_A_CONVERSATION]]
