"""The hash of an audit event: over its canonical JSON, which holds the hash of the event before it.

Canonical: keys sorted, no space between, UTF-8, nothing escaped that JSON does not make one escape, without the field
`hash`. `scripts/verify_audit.py` does the same with the standard library alone.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

# What stands before the first event of all.
ZERO: Final = "0" * 64


class Link(NamedTuple):
    """A place in the chain: the event at it, and its hash."""

    seq: int
    hash: str


START: Final = Link(0, ZERO)


def render_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds. One without a zone is UTC."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def _plain(value: Any) -> str:
    return render_time(value) if isinstance(value, datetime) else str(value)


# One for all: `json.dumps` makes a new one at every call.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_plain)
render: Final = _ENCODER.encode


def digest(event: Mapping[str, Any]) -> str:
    """The SHA-256 of the event, whatever it says its hash is."""
    content = render({name: value for name, value in event.items() if name != "hash"})
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def sealed(events: Iterable[Mapping[str, Any]], after: Link) -> list[dict[str, Any]]:
    """The events with their places behind that link, in this order."""
    chained = []
    seq, previous = after
    for seq, event in enumerate(events, after.seq + 1):
        content = {**event, "seq": seq, "prev_hash": previous}
        previous = digest(content)
        chained.append({**content, "hash": previous})
    return chained
