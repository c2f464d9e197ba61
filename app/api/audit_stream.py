"""An export of audit events, written while it is read: JSON lines, or CSV of which a spreadsheet runs nothing."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

from app.core.hash_chain import render
from app.schemas.audit_event import event_of

Raw = Mapping[str, Any]

COLUMNS: Final = (
    *("id", "time", "actor_kind", "actor_id", "actor_name", "action", "target_kind", "target_id", "outcome"),
    *("ip", "user_agent", "request_id", "details", "seq", "prev_hash", "hash"),
)
MEDIA_TYPES: Final = {"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8; header=present"}
# For the OpenAPI document.
FILES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The file",
        "content": {kind.partition(";")[0]: {"schema": {"type": "string"}} for kind in MEDIA_TYPES.values()},
    }
}
# What a spreadsheet takes for a formula when a cell begins with it, and the mark that says so.
_RUN: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
_MARK: Final = "'"


async def events_as(form: str, batches: AsyncIterator[Sequence[Raw]]) -> AsyncIterator[bytes]:
    """Chunk by chunk. An error on the way is raised, so that the connection breaks: no part looks whole."""
    write: Callable[[Sequence[Raw]], bytes] = {"jsonl": _lines, "csv": _rows}[form]
    if form == "csv":
        yield _table([COLUMNS])
    async for batch in batches:
        if batch:
            yield await asyncio.to_thread(write, batch)


def _lines(batch: Sequence[Raw]) -> bytes:
    return "".join(f"{render(event_of(row))}\n" for row in batch).encode()


def _rows(batch: Sequence[Raw]) -> bytes:
    return _table([[_cell(value) for value in _flat(event_of(row))] for row in batch])


def _table(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue().encode()


def _flat(event: Raw) -> list[Any]:
    nested = {
        **_parts(event, "actor", ("kind", "id", "name")),
        **_parts(event, "target", ("kind", "id")),
        "details": render(event["details"]),
    }
    return [nested[name] if name in nested else event[name] for name in COLUMNS]


def _parts(event: Raw, group: str, names: Sequence[str]) -> dict[str, Any]:
    """Nothing where there is no document, which only somebody else than the service can have stored."""
    value = event[group] if isinstance(event[group], Mapping) else {}
    return {f"{group}_{name}": value.get(name) for name in names}


def _cell(value: Any) -> str:
    """Nothing is an empty cell. A text that would run, or be taken for one marked here, or for nothing, gets a mark."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else render(value)
    return f"{_MARK}{text}" if not text or text.startswith(_RUN) else text
