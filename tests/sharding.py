"""Which queries a sharded cluster would send to one shard, by what the profiler of a single server has recorded.

The shard keys, and what is asked of all shards, are those of the table in docs/scaling.md.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tests.test_project_files import ROOT

PAGE = (ROOT / "docs" / "scaling.md").read_text()
# By the way that a command names its filter.
_FILTERS = ("filter", "query", "q")

Row = dict[str, Any]


class Sharded(NamedTuple):
    """A collection: the fields of its shard key, and those of filters that do not fix the first of them; `*`: any."""

    key: tuple[str, ...]
    asked_of_all: frozenset[str]


def of_the_page() -> dict[str, Sharded]:
    table = PAGE.partition("| collection | shard key |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:4] for line in table.splitlines()[2:]]
    names = [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in rows]
    return {name: Sharded(tuple(key), frozenset(asked)) for [name], key, asked in names}


def asked_of_all(rows: Iterable[Row]) -> dict[str, set[str]]:
    """By collection the filters that would be asked of all shards, and that the page does not tell of."""
    found: dict[str, set[str]] = {}
    for name, row, where in _searches(rows):
        fields = ", ".join(sorted(_fields(where))) or "none"
        if not _is_write_of_one(row) and not {fields, "*"} & of_the_page()[name].asked_of_all:
            found.setdefault(name, set()).add(fields)
    return found


def writes_of_one_asked_of_all(rows: Iterable[Row]) -> list[Row]:
    """Writes of one document that no single shard is asked for: before MongoDB 7 they fail."""
    return [row["command"] for _, row, _ in _searches(rows) if _is_write_of_one(row)]


def _searches(rows: Iterable[Row]) -> Iterator[tuple[str, Row, Row]]:
    """What would go to all shards."""
    sharded = of_the_page()
    for row in rows:
        name, where = row["ns"].partition(".")[2], _filter_of(row)
        if name in sharded and where is not None and not _fixes(where, sharded[name].key[0]):
            yield name, row, where


def _filter_of(row: Row) -> Row | None:
    """What the command looks for; none when it looks for nothing, as an insert, or no client sent it."""
    command = row.get("command", {})
    if "client" not in row or row["op"] in {"insert", "getmore"} or "insert" in command:
        return None
    if pipeline := command.get("pipeline"):
        matched: Row = pipeline[0].get("$match", {})
        return matched
    return next((command[name] for name in _FILTERS if isinstance(command.get(name), dict)), None)


def _is_write_of_one(row: Row) -> bool:
    command = row["command"]
    return (
        "findAndModify" in command
        or (row["op"] == "update" and not command.get("multi", False))
        or (row["op"] == "remove" and command.get("limit") == 1)
    )


def _fixes(where: Row, field: str) -> bool:
    """Whether it names the values of the field."""
    value = where.get(field)
    if field in where and not (isinstance(value, dict) and not {"$eq", "$in"} & value.keys()):
        return True
    return any(_fixes(part, field) for part in where.get("$and", ()))


def _fields(where: Row) -> set[str]:
    fields = {name for name in where if not name.startswith("$")}
    for name in ("$and", "$or"):
        for part in where.get(name, ()):
            fields |= _fields(part)
    return fields
