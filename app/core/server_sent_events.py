"""Reading Server-Sent Events as they come, whatever the pieces in which they come."""

import re
from typing import Final, NamedTuple

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class ServerEvent(NamedTuple):
    name: str
    data: str


class EventReader:
    """Feed it bytes, get the events that they complete. It keeps no more than one event of `max_bytes`.

    Lines are cut as bytes: no end of a line can lie inside a character of UTF-8. What is too long, or no UTF-8, is a
    `ValueError`. An event that was not finished by an empty line is none, as the standard says.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0
        self._is_at_start = True
        self._may_skip_newline = False

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        if self._may_skip_newline and chunk:
            chunk = chunk.removeprefix(b"\n")  # the second half of a line's end that began in the chunk before
            self._may_skip_newline = False
        if not chunk:
            return []
        self._may_skip_newline = chunk.endswith(b"\r")
        *lines, rest = _LINE_END.split(chunk)
        if lines:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        self._rest += rest
        events = [event for event in map(self._take, lines) if event is not None]
        if len(self._rest) + self._size > self._max_bytes:
            raise ValueError("an event is too long")
        return events

    def _take(self, line: bytes) -> ServerEvent | None:
        if self._is_at_start:
            line, self._is_at_start = line.removeprefix(_BYTE_ORDER_MARK), False
        if not line:
            return self._finish()
        field, _, value = line.partition(b":")  # a comment is a field without a name
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value) + 1  # the end of the line too: so many empty ones are long as well
        elif field == b"event":
            self._name = value
        if self._size > self._max_bytes:
            raise ValueError("an event is too long")
        return None

    def _finish(self) -> ServerEvent | None:
        event = None
        if self._data:
            event = ServerEvent((self._name or b"message").decode(), b"\n".join(self._data).decode())
        self._data, self._name, self._size = [], b"", 0
        return event
