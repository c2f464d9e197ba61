"""Paging by key range: page 10,000 costs what page 1 costs; rows inserted meanwhile are neither repeated nor lost."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar, overload

from beanie import Document, SortDirection
from bson import ObjectId
from pymongo import ReturnDocument

from app.core.cursor import decode_cursor, encode_cursor
from app.models.base import BaseDocument

T = TypeVar("T")
D = TypeVar("D", bound=BaseDocument)
S = TypeVar("S", bound=Document)
Filter = dict[str, Any]
ASCENDING: Final = 1
DESCENDING: Final = -1


class Page(NamedTuple, Generic[T]):
    """Rows in order, and the cursor of the page after them when there is one."""

    rows: list[T]
    next_cursor: str | None


class Listing(NamedTuple):
    """One ordered list: a collection under a filter, sorted by fields that together are unique."""

    collection: str
    where: Filter
    sort: Sequence[str]
    direction: int = DESCENDING

    @property
    def order(self) -> dict[str, int]:
        return dict.fromkeys(self.sort, self.direction)

    @property
    def beanie_order(self) -> list[tuple[str, SortDirection]]:
        return [(field, SortDirection(self.direction)) for field in self.sort]

    def after(self, cursor: str | None) -> Filter:
        """The filter for the rows behind the cursor."""
        if cursor is None:
            return self.where
        position = self.position(cursor)
        beyond = "$lt" if self.direction == DESCENDING else "$gt"
        steps = [
            {**dict(zip(self.sort[:depth], position[:depth], strict=True)), field: {beyond: position[depth]}}
            for depth, field in enumerate(self.sort)
        ]
        if len(steps) == 1:
            return {"$and": [self.where, *steps]}
        # Says nothing new, but lets the index begin at the cursor also when the filter has bounds of its own.
        bound = {self.sort[0]: {f"{beyond}e": position[0]}}
        return {"$and": [self.where, bound, {"$or": steps}]}

    @overload
    def position(self, cursor: str) -> list[Any]: ...
    @overload
    def position(self, cursor: str | None) -> list[Any] | None: ...
    def position(self, cursor: str | None) -> list[Any] | None:
        """The values of the sort fields that the cursor stands at; `InvalidCursorError` when it is of another list."""
        return None if cursor is None else decode_cursor(self._name, cursor)

    def cursor_at(self, position: list[Any]) -> str:
        return encode_cursor(self._name, position)

    def cursor_behind(self, row: T) -> str:
        return self.cursor_at([_value(row, field) for field in self.sort])

    def page(self, rows: list[T], limit: int) -> Page[T]:
        """Cut the row that was read beyond the page, and make a cursor of the last one that stays."""
        if len(rows) <= limit:
            return Page(rows, None)
        rows = rows[:limit]
        return Page(rows, self.cursor_behind(rows[-1]))

    @property
    def _name(self) -> str:
        return f"{self.collection} {list(self.sort)} {self.direction} {self.where}"


async def find_one_and_update(
    model: type[S], where: Filter, update: dict[str, Any] | list[dict[str, Any]], *, upsert: bool = False
) -> S | None:
    """Change the document that matches, atomically, and give it as it is then; none when there is none."""
    raw = await model.get_pymongo_collection().find_one_and_update(
        where, update, upsert=upsert, return_document=ReturnDocument.AFTER
    )
    return model.model_validate(raw) if raw else None


async def find_one_and_delete(model: type[D], where: Filter) -> D | None:
    """Delete the document that matches, atomically, and give it as it was; none when there is none."""
    raw = await model.get_pymongo_collection().find_one_and_delete(where)
    return model.model_validate(raw) if raw else None


def matching(where: Filter, versions: frozenset[int] | None) -> Filter:
    """The filter, limited to the versions that `If-Match` named, when it named any."""
    return where if versions is None else {**where, "version": {"$in": sorted(versions)}}


def _value(row: Any, field: str) -> Any:
    if isinstance(row, Mapping):
        return row[field]
    value = getattr(row, "id" if field == "_id" else field)
    return ObjectId(value) if field == "_id" else value
