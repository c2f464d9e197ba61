"""What was done to the chain at the first place where it does not go on as it should."""

import asyncio
from collections.abc import Sequence
from typing import Final

from bson import Int64

from app.core.hash_chain import START, Link, digest
from app.crud import crud_audit_event
from app.db.mongo import Raw
from app.models.audit_chain import AuditChain
from app.schemas.audit_event import ChainFault, FaultKind, event_of

_WINDOW: Final = 1000
_WINDOWS: Final = 100
_FAR: Final = 2**53


def fits(event: Raw, *, after: Link) -> bool:
    """Whether it is the next one, as it was sealed."""
    return bool(event["seq"] == after.seq + 1 and event["prev_hash"] == after.hash and is_whole(event))


def is_whole(event: Raw) -> bool:
    return bool(digest(event) == event["hash"])


def is_rewritten(last: Link, known: Sequence[Link]) -> bool:
    """Whether it was known with another hash."""
    return any(link.seq == last.seq and link != last for link in known)


def rewritten(last: Link, event_id: str | None) -> ChainFault:
    detail = "It is known with another hash: the chain was written anew."
    return ChainFault(seq=last.seq, id=event_id, kind="rewritten", detail=detail)


async def at_beginning(beginning: Link, known: Sequence[Link]) -> ChainFault | None:
    """What is wrong before the first event that there should be."""
    stray = await crud_audit_event.find_up_to(beginning.seq)
    if stray is not None:
        return _of(event_of(stray), "inserted", "It has a place before the chain begins.")
    if is_rewritten(beginning, known):
        return rewritten(beginning, None)
    if beginning != START and not await crud_audit_event.has_pruning_event(beginning):
        detail = "The events up to this one are gone, and no pruning was recorded."
        return ChainFault(seq=beginning.seq, id=None, kind="removed", detail=detail)
    return None


async def at_no_place() -> ChainFault | None:
    """What has something else than a number for a place, and so is in no order with the rest."""
    for row in await crud_audit_event.at_ends():
        if not _is_number(row["seq"]):
            return _of(event_of(row), "inserted", "What it has for a place is no number.")
    return None


async def at_end(last: Link, last_id: str | None, head: AuditChain | None, known: Sequence[Link]) -> ChainFault | None:
    """What is wrong behind the last event that there is."""
    reached = max((link.seq for link in known), default=0)
    if head is not None and head.seq < last.seq:
        return await _beyond(head)
    if head is not None and head.seq == last.seq and head.hash != last.hash:
        detail = "The chain ends in another hash than it was sealed with: it, or its end, was written anew."
        return ChainFault(seq=last.seq, id=last_id, kind="rewritten", detail=detail)
    if is_rewritten(last, known):
        return rewritten(last, last_id)
    if head is None and last != START:
        detail = "The head of the chain is gone, and nothing says where it ends."
    elif head is not None and head.seq > last.seq:
        detail = f"The events from this one to {head.seq} are gone."
    elif reached > last.seq:
        detail = f"The chain once reached {reached}."
    else:
        return None
    return ChainFault(seq=last.seq + 1, id=None, kind="truncated", detail=detail)


async def behind(last: Link, last_id: str | None) -> ChainFault:
    """What is wrong with the event behind that one, or with that one."""
    rows = await crud_audit_event.from_seq(last.seq, limit=_WINDOW)
    head = await crud_audit_event.find_head()  # read after the events: whatever was sealed among them is below it
    events = [event_of(row) for row in rows]
    if stray := next((event for event in events if not _is_number(event["seq"])), None):
        return _of(stray, "inserted", "What it has for a place is no number.")
    previous = next((event for event in events if event["id"] == last_id), None)
    others = [event for event in events if event["id"] != last_id]
    if head is not None and (last.seq > head.seq or (last.seq == head.seq and others[0]["seq"] > last.seq)):
        return await _beyond(head)
    present = [event for event in others if event["seq"] == last.seq + 1]
    following = [event for event in others if event["seq"] > last.seq + 1]
    if others and others[0]["seq"] < last.seq + 1:
        twins = [previous, others[0]] if previous and others[0]["seq"] == last.seq else []
        return _of_twins(twins, present, head) if twins else _of(others[0], "inserted", "It is between two places.")
    if not present:
        return ChainFault(seq=last.seq + 1, id=None, kind="removed", detail="There is no event at this place.")
    if len(present) > 1:
        return _of_twins(sorted(present, key=lambda event: not fits(event, after=last)), following, head)
    return await _of_misfit(present[0], last, previous, following, head)


def _of_twins(twins: Sequence[Raw], following: Sequence[Raw], head: AuditChain | None) -> ChainFault:
    """Of several at one place the one that the chain goes on from is the real one, else the first."""
    real = next((event for event in twins if is_whole(event) and _is_attested(event, following, head)), twins[0])
    stranger = next(event for event in twins if event is not real)
    return _of(stranger, "inserted", f"The place belongs to {real['id']}.")


async def _of_misfit(
    event: Raw, last: Link, previous: Raw | None, following: Sequence[Raw], head: AuditChain | None
) -> ChainFault:
    if is_whole(event):
        if previous is not None and _is_attested(event, following, head):
            return _of(previous, "altered", "The next event was sealed behind another one: its hash was made anew.")
        return _of(event, "altered", "It does not follow from the event before: its hash was made anew.")
    place = await _place_of(event)
    if place is not None:
        return _of(event, "reordered", f"It was sealed at {place}.")
    return _of(event, "altered", f"Its hash is not that of what it says (behind {last.seq}).")


def _is_attested(event: Raw, following: Sequence[Raw], head: AuditChain | None) -> bool:
    """Whether what was sealed after it names its hash."""
    if head is not None and head.seq == event["seq"]:
        return bool(head.hash == event["hash"])
    return any(after["seq"] == event["seq"] + 1 and after["prev_hash"] == event["hash"] for after in following)


async def _place_of(event: Raw) -> int | None:
    """The place that the event was sealed at, when it has only been moved; sought in what comes next."""
    seq = event["seq"]
    for _ in range(_WINDOWS):
        rows = await crud_audit_event.from_seq(seq + 1, limit=_WINDOW)
        numbered = [row for row in rows if _is_number(row["seq"])]
        place = await asyncio.to_thread(_place_among, event, numbered)
        if place is not None or len(rows) < _WINDOW or not numbered:
            return place
        seq = numbered[-1]["seq"]
    return None


def _place_among(event: Raw, rows: Sequence[Raw]) -> int | None:
    for row in rows:
        # Places were exchanged with their hashes, or without.
        moved = {**event, "seq": row["seq"], "prev_hash": row.get("prev_hash")}
        alone = {**event, "seq": row["seq"]}
        if digest(moved) == row.get("hash") or digest(alone) == event["hash"]:
            return int(row["seq"])
    return None


async def _beyond(head: AuditChain) -> ChainFault:
    """The first event behind the end."""
    rows = await crud_audit_event.from_seq(head.seq, limit=_WINDOW)
    event = event_of(next(row for row in rows if not _is_number(row["seq"]) or row["seq"] > head.seq))
    return _of(event, "inserted", f"The chain ends with {head.seq}.")


def _of(event: Raw, kind: FaultKind, detail: str) -> ChainFault:
    place = event["seq"]
    seq = int(max(-_FAR, min(place, _FAR))) if _is_number(place) else None  # it may be infinite
    return ChainFault(seq=seq, id=event["id"], kind=kind, detail=detail)


def _is_number(place: object) -> bool:
    return type(place) in {int, Int64, float} and place == place  # noqa: PLR0124 - what is no number is not itself
