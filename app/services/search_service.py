"""Search over what the caller may see, within a bounded time: what is not found in it, the next page goes on for.

So a page may hold fewer rows than were asked for, even none, and have a next one.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

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

_SEARCH_SECONDS: Final = 0.15
# How many blocks are looked at in one exchange with the database. The first are few: common words are found there.
_WAVES: Final = (4, 16, 64)
# Of a conversation the latest million messages can make it a find; a search in it reaches all.
_BLOCKS_OF_A_CONVERSATION: Final = 256
_STRIDE: Final = 50

Raw = dict[str, Any]


class _Range(NamedTuple):
    """From which place in a conversation to which, both included."""

    first: int
    last: int

    def blocks(self, *, is_ascending: bool) -> list[int]:
        numbers = list(range(self.first // BLOCK, self.last // BLOCK + 1)) if self.first <= self.last else []
        return numbers if is_ascending else numbers[::-1]


async def messages(conversation_id: ObjectId, query: MessageQuery, *, by: Principal) -> Page[Raw]:
    """The messages of a conversation that have every word of `query.q`, in the order of the conversation."""
    visible_to = by.owner_filter(Scope.CONVERSATIONS_READ)
    conversation = await crud_conversation.find(conversation_id, user_id=visible_to)
    if conversation is None:
        raise NotFoundError("There is no such conversation.")
    words, is_ascending = words_of(query.q or ""), query.order == "asc"
    listing = crud_search.listing(conversation_id, words, role=query.role, after=query.after, is_ascending=is_ascending)
    between = await _range(conversation, query, listing.position(query.cursor))
    rows: list[Raw] = []
    ends_at = time.monotonic() + _SEARCH_SECONDS
    for blocks in _waves(between.blocks(is_ascending=is_ascending)):
        rows += await crud_search.messages(
            [(conversation_id, block) for block in blocks],
            words,
            role=query.role,
            between=between,
            is_ascending=is_ascending,
            limit=query.limit + 1 - len(rows),
        )
        if len(rows) > query.limit:
            return listing.page(rows, query.limit)
        end = (blocks[-1] + 1) * BLOCK - 1 if is_ascending else blocks[-1] * BLOCK
        if time.monotonic() > ends_at and between.first < end < between.last:
            return Page(rows, listing.cursor_at([end]))
    return Page(rows, None)


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
    blocks = [block for row in rows if row["_id"] not in found for block in _blocks_of(row)]
    for at in range(0, len(blocks), _WAVES[-1]):
        wave = [block for block in blocks[at : at + _WAVES[-1]] if block[0] not in found]
        if wave:
            found |= await crud_search.conversations_with(wave, words)
    return found


def _groups(rows: Sequence[Raw]) -> Iterator[list[Raw]]:
    """Conversations that together have about as many blocks as are looked at in one exchange."""
    group: list[Raw] = []
    size = 0
    for row in rows:
        size += len(_blocks_of(row))
        if group and size > _WAVES[-1]:
            yield group
            group, size = [], len(_blocks_of(row))
        group.append(row)
    if group:
        yield group


def _blocks_of(conversation: Raw) -> list[Block]:
    """The blocks of a conversation, latest first."""
    blocks = _Range(1, conversation["last_seq"]).blocks(is_ascending=False)
    return [(conversation["_id"], block) for block in blocks[:_BLOCKS_OF_A_CONVERSATION]]


def _waves(blocks: list[int]) -> Iterator[list[int]]:
    at = 0
    sizes = iter(_WAVES)
    while at < len(blocks):
        size = next(sizes, _WAVES[-1])
        yield blocks[at : at + size]
        at += size
