"""Check an export of the audit trail, without the service and with nothing but Python.

    python3 scripts/verify_audit.py octopus-audit.jsonl --anchor 1042:9f2c...

Reads what GET /api/v1/admin/audit-events/export gives, as JSON lines or as CSV: every hash, every link to the event
before, every place. The first fault is named, and the exit code is 1 then. An anchor is a place and hash that somebody
wrote down, from the log or from /verify: it shows a file that was written anew as a whole. An export that a filter has
thinned out has gaps by nature: say --filtered. Then only the events that are there are checked.
"""

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

ZERO: Final = "0" * 64
MARK: Final = "'"
NESTED: Final = {"actor": ("kind", "id", "name"), "target": ("kind", "id")}
FIELDS: Final = ("id", "time", "action", "outcome", "ip", "user_agent", "request_id", "prev_hash", "hash")
NEEDED: Final = frozenset({"id", "prev_hash", "hash"})
LARGEST_CELL: Final = 32 * 1024 * 1024  # no event is larger than a document of the database

Event = dict[str, Any]


class FaultError(Exception):
    """Something in the file is not as it was sealed."""


def main() -> None:
    options = _options()
    try:
        with options.file.open(encoding="utf-8", newline="") as file:
            print(_check(_events(file), options.anchor, is_filtered=options.filtered))
    except (FaultError, UnicodeDecodeError) as error:
        sys.exit(f"FAULT: {error}")
    except OSError as error:
        sys.exit(str(error))


def _check(events: Iterator[Event], anchor: tuple[int, str] | None, *, is_filtered: bool) -> str:
    """One sentence about a file that is whole."""
    first, last, count, last_hash, is_anchored = 0, 0, 0, ZERO, anchor is None
    for event in events:
        seq, is_next = event["seq"], count > 0 and event["seq"] == last + 1
        if not is_filtered and count and not is_next:
            raise FaultError(_of_place(seq, last + 1))
        if event["hash"] != _digest(event):
            raise FaultError(f"event {seq} ({event['id']}) was altered: its hash is not that of what it says")
        if (is_next or seq == 1) and event["prev_hash"] != (last_hash if is_next else ZERO):
            raise FaultError(
                f"event {seq} ({event['id']}) does not follow from the one before: one of them was altered"
            )
        if anchor is not None and seq == anchor[0]:
            is_anchored = True
            if event["hash"] != anchor[1]:
                raise FaultError(f"event {seq} ({event['id']}) is not that of the anchor: the chain was written anew")
        first, last, last_hash, count = first or seq, seq, event["hash"], count + 1
    if not is_anchored and anchor is not None:
        raise FaultError(f"event {anchor[0]}, which the anchor names, is not in the file")
    if not count:
        raise FaultError("the file has no events; even an export of nothing holds the event of itself")
    return f"{count} events, {first} to {last}: as they were sealed. The last hash is {last_hash}."


def _of_place(seq: int, expected: int) -> str:
    if seq > expected:
        return f"event {expected} is missing: {seq} follows"
    return f"event {seq} stands where {expected} should: it was inserted, or moved"


def _digest(event: Event) -> str:
    content = {name: value for name, value in event.items() if name != "hash"}
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _events(file: TextIO) -> Iterator[Event]:
    """The events of the file, which says by its first character how it is written."""
    is_csv = file.read(1) != "{"
    file.seek(0)
    number = 0
    try:
        for number, event in enumerate(_of_csv(file) if is_csv else map(json.loads, file), 1):
            if not isinstance(event, dict) or type(event.get("seq")) is not int or not event.keys() >= NEEDED:
                raise FaultError(f"record {number} is no sealed event")
            yield event
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise FaultError(f"record {number + 1} can't be read; the file was cut off or damaged there") from error


def _of_csv(file: TextIO) -> Iterator[Event]:
    csv.field_size_limit(LARGEST_CELL)
    for row in csv.DictReader(file, strict=True):
        if None in row or None in row.values():
            raise ValueError("a row of another length than the header")
        cells = {name: _value(cell) for name, cell in row.items()}
        event: Event = {name: cells[name] for name in FIELDS}
        for group, names in NESTED.items():
            event[group] = {name: cells[f"{group}_{name}"] for name in names}
        yield {**event, "details": json.loads(cells["details"] or ""), "seq": int(cells["seq"] or "")}


def _value(cell: str) -> str | None:
    """What the cell stands for: nothing when it is empty, else its text without the mark that spreadsheets need."""
    return cell.removeprefix(MARK) if cell else None


def _anchor(text: str) -> tuple[int, str]:
    seq, _, digest = text.partition(":")
    if not seq.isdigit() or len(digest) != len(ZERO):
        raise argparse.ArgumentTypeError("must be SEQ:HASH, such as 1042:9f2c... with 64 digits")
    return int(seq), digest.lower()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the export")
    parser.add_argument("--anchor", type=_anchor, metavar="SEQ:HASH", help="a hash that was written down")
    parser.add_argument("--filtered", action="store_true", help="the export was filtered, so it has gaps")
    return parser.parse_args()


if __name__ == "__main__":
    main()
