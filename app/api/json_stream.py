"""One JSON object of any size, written while it is read."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from app.api.responses import JsonResponse

CHUNK_BYTES: Final = 64 * 1024

Rows = AsyncIterator[Sequence[dict[str, Any]]]


async def json_object(head: Mapping[str, Any], sections: Mapping[str, Rows | None]) -> AsyncIterator[bytes]:
    """The fields of the head, then each section as an array. A chunk holds little more than it has to.

    An error on the way is raised, so that the connection breaks: what was sent then never looks whole.
    """
    waiting = bytearray()
    async for piece in _pieces(head, sections):
        waiting += piece
        if len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


async def _pieces(head: Mapping[str, Any], sections: Mapping[str, Rows | None]) -> AsyncIterator[bytes]:
    render = JsonResponse().render
    separator = b"{"
    for name, value in head.items():
        yield separator + render(name) + b":" + render(value)
        separator = b","
    for name, rows in sections.items():
        yield separator + render(name) + b":"
        separator = b","
        if rows is None:
            yield b"null"
            continue
        before = b"["
        async for batch in rows:
            for row in batch:
                yield before + render(row)
                before = b","
        yield b"[]" if before == b"[" else b"]"
    yield b"}"
