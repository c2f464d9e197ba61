"""Verifying the chain: every event is as it was sealed, none is missing and none is there besides.

The events are followed in the order of the chain until one does not fit; only then is looked more closely, to say what
was done to it. Sealing and pruning go on meanwhile.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.core.exceptions import InvalidContentError
from app.core.hash_chain import START, Link
from app.crud import crud_audit_event, crud_installation
from app.db.mongo import Raw
from app.schemas.audit_event import ChainFault, ChainHead, ChainReport, event_of
from app.services import audit_fault_service

_BATCH: Final = 1000
_ATTEMPTS: Final = 5


@dataclass
class Walk:
    """How far the chain was followed: to `last`, the event with `last_id`.

    It must come by `anchor`, which somebody wrote down, and by `mark`: how far was ever sealed.
    """

    last: Link
    anchor: Link | None
    mark: Link | None
    last_id: str | None = None
    checked: int = 0

    @property
    def known(self) -> list[Link]:
        return [link for link in (self.anchor, self.mark) if link is not None]

    def follow(self, rows: Sequence[Raw]) -> ChainFault | bool:
        """Whether all of them fit; the fault when one fits and yet is not the one of the anchor."""
        for row in rows:
            event = event_of(row)
            if not audit_fault_service.fits(event, after=self.last):
                return False
            self.last, self.last_id = Link(event["seq"], event["hash"]), event["id"]
            self.checked += 1
            if self.anchor is not None and self.last.seq == self.anchor.seq and self.last != self.anchor:
                return audit_fault_service.rewritten(self.last, self.last_id)
        return True


async def verify(anchor: Link | None = None) -> ChainReport:
    """Walk the chain, and name the first event that is not as it was sealed.

    `anchor` is a place and hash that somebody wrote down: it shows when all of the chain was written anew. One from
    before the chain begins shows nothing: `InvalidContentError`.
    """
    for _ in range(_ATTEMPTS):
        mark = await crud_installation.find_sealed()  # read before all else: the chain only grows beyond it
        begun = await crud_audit_event.find_head()
        walk = Walk(begun.beginning if begun else START, anchor, mark)
        _require_in_reach(anchor, walk.last)
        first_seq = walk.last.seq + 1
        fault = await audit_fault_service.at_beginning(walk.last, walk.known) or await _walk(walk)
        fault = fault or await audit_fault_service.at_no_place()
        head = await crud_audit_event.find_head()
        if fault is None or begun is None or head is None or head.beginning == begun.beginning:
            break  # else it was pruned meanwhile, which is no fault
    return ChainReport(
        valid=fault is None,
        checked=walk.checked,
        first_seq=first_seq,
        head=ChainHead(seq=head.seq, hash=head.hash) if head else None,
        fault=fault,
    )


def _require_in_reach(anchor: Link | None, beginning: Link) -> None:
    if anchor is not None and anchor.seq < beginning.seq:
        detail = f"The chain begins with {beginning.seq + 1} by now; that anchor is older."
        raise InvalidContentError(detail, errors=[{"loc": ["query", "seq"], "msg": detail, "type": "value_error"}])


async def _walk(walk: Walk) -> ChainFault | None:
    """Follow the chain to its end, hashing in a thread."""
    while True:
        rows = await _behind(walk)
        if not rows:
            head = await crud_audit_event.find_head()
            rows = await _behind(walk) if head is not None and head.seq > walk.last.seq else []
            if not rows:
                return await audit_fault_service.at_end(walk.last, walk.last_id, head, walk.known)
        outcome = await asyncio.to_thread(walk.follow, rows)
        if isinstance(outcome, ChainFault):
            return outcome
        if not outcome:
            return await audit_fault_service.behind(walk.last, walk.last_id)


async def _behind(walk: Walk) -> list[Raw]:
    """What comes next, with what has the same place as the last event, though nothing should."""
    rows = await crud_audit_event.from_seq(walk.last.seq, limit=_BATCH)
    return [row for row in rows if str(row["_id"]) != walk.last_id]
