"""Full-text search over messages, one block of a conversation after the other.

The text index begins with the conversation and the block, so what a look costs depends on neither how many
conversations there are nor how long this one is: a common word fills the page from a few blocks, and a block in which a
rare word is not costs a look-up. And blocks are in order, which results of a text index are not.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from bson import ObjectId

from app.crud.base import ASCENDING, DESCENDING, Filter, Listing
from app.db.mongo import Raw, aggregate
from app.models.enums import MessageRole

Block = tuple[ObjectId, int]


def listing(
    conversation_id: ObjectId, words: Sequence[str], *, role: MessageRole | None, after: str | None, is_ascending: bool
) -> Listing:
    """What a search lists, for its cursors."""
    where: Filter = {"conversation_id": conversation_id, "words": list(words), "after": after}
    if role is not None:
        where["role"] = role
    return Listing("messages", where, ["seq"], ASCENDING if is_ascending else DESCENDING)


async def messages(
    blocks: Iterable[Block],
    words: Sequence[str],
    *,
    role: MessageRole | None,
    between: tuple[int, int],
    is_ascending: bool,
    limit: int,
    seconds: float | None,
) -> list[Raw] | None:
    """The first messages with all of the words in these blocks, which are looked at in the order they are given.

    `between` are the first and the last `seq` that count. None when it takes longer than so many seconds.
    """
    first, last = between
    more: Filter = {"seq": {"$gte": first, "$lte": last}, **({} if role is None else {"role": role})}
    order = {"seq": ASCENDING if is_ascending else DESCENDING}
    looks = [[_match(block, words, more), {"$sort": order}, {"$limit": limit}] for block in blocks]
    return await aggregate("messages", [*_one_after_the_other(looks), {"$limit": limit}], seconds=seconds)


async def conversations_with(
    blocks: Iterable[Block], words: Sequence[str], *, seconds: float | None
) -> set[ObjectId] | None:
    """Of which conversations a message in one of these blocks has all of the words; as `messages`."""
    looks = [[_match(block, words), {"$limit": 1}, {"$project": {"conversation_id": 1}}] for block in blocks]
    rows = await aggregate("messages", _one_after_the_other(looks), seconds=seconds)
    return None if rows is None else {row["conversation_id"] for row in rows}


def _match(block: Block, words: Sequence[str], more: Filter | None = None) -> Raw:
    """Quoted, each of the words must be there, and none of them is read as a sign of the search language."""
    conversation_id, number = block
    text = {"$search": " ".join(f'"{word}"' for word in words)}
    return {"$match": {"conversation_id": conversation_id, "block": number, "$text": text, **(more or {})}}


def _one_after_the_other(pipelines: Sequence[list[Raw]]) -> list[Raw]:
    """The first pipeline with the results of the others behind its own. What is not asked for is not run."""
    first, *others = pipelines
    unions: list[Any] = [{"$unionWith": {"coll": "messages", "pipeline": other}} for other in others]
    return [*first, *unions]
