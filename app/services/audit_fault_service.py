"""What was done to the chain at the first place where it does not go on as it should."""

import asyncio
from collections.abc import Sequence
from typing import Final

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


def rewritten(last: Link, event_id: str | None) -> ChainFault:
    detail = "The anchor has another hash: the chain was written anew."
    return ChainFault(seq=last.seq, id=event_id, kind="rewritten", detail=detail)


async def at_beginning(beginning: Link, anchor: Link | None) -> ChainFault | None:
    """What is wrong before the first event that there should be."""
    stray = await crud_audit_event.find_up_to(beginning.seq)
    if stray is not None:
        return _of(event_of(stray), "inserted", "It has a place before the chain begins.")
    if anchor is not None and anchor.seq == beginning.seq and anchor != beginning:
        return rewritten(beginning, None)
    if beginning != START and not await crud_audit_event.has_pruning_event(beginning):
        detail = "The events up to this one are gone, and no pruning was recorded."
        return ChainFault(seq=beginning.seq, id=None, kind="removed", detail=detail)
    return None


async def at_end(last: Link, last_id: str | None, head: AuditChain | None, anchor: Link | None) -> ChainFault | None:
    """What is wrong behind the last event that there is."""
    if head is not None and head.seq < last.seq:
        return await _beyond(head)
    if head is not None and head.seq == last.seq and head.hash != last.hash:
        detail = "The chain ends in another hash than it was sealed with: it, or its end, was written anew."
        return ChainFault(seq=last.seq, id=last_id, kind="rewritten", detail=detail)
    if head is None and last != START:
        detail = "The head of the chain is gone, and nothing says where it ends."
    elif head is not None and head.seq > last.seq:
        detail = f"The events from this one to {head.seq} are gone."
    elif anchor is not None and anchor.seq > last.seq:
        detail = f"The chain once reached {anchor.seq}, as the anchor says."
    else:
        return None
    return ChainFault(seq=last.seq + 1, id=None, kind="truncated", detail=detail)


async def behind(last: Link, last_id: str | None) -> ChainFault:
    """What is wrong with the event behind that one, or with that one."""
    rows = await crud_audit_event.from_seq(last.seq, limit=_WINDOW)
    head = await crud_audit_event.find_head()  # read after the events: whatever was sealed among them is below it
    events = [event_of(row) for row in rows]
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
        place = await asyncio.to_thread(_place_among, event, rows)
        if place is not None or len(rows) < _WINDOW:
            return place
        seq = rows[-1]["seq"]
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
    event = event_of(next(row for row in rows if row["seq"] > head.seq))
    return _of(event, "inserted", f"The chain ends with {head.seq}.")


def _of(event: Raw, kind: FaultKind, detail: str) -> ChainFault:
    seq = max(-_FAR, min(event["seq"], _FAR))  # it may be infinite
    return ChainFault(seq=int(seq), id=event["id"], kind=kind, detail=detail)
