"""A form with a file in it (multipart/form-data, RFC 7578), read as it arrives.

The framework's own reader stores the whole of it in a temporary file before anybody sees the first byte.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import TYPE_CHECKING, Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.core.exceptions import InvalidContentError, InvalidRequestError, UnsupportedMediaTypeError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM_TYPE: Final = "multipart/form-data"
FILE: Final = "file"
MAX_PARTS: Final = 20
_MAX_VALUE_BYTES: Final = 1024
_MAX_HEADERS: Final = 8
_MAX_HEADER_BYTES: Final = 4096
_IDLE_SECONDS: Final = 30.0
_BOUNDARY: Final = re.compile(rb"[ -~]{0,69}[!-~]")
_SHOWN_CHARACTERS: Final = 100


class StreamedForm:
    """One file and a few short fields of these names, in any order.

    `begin` reads up to the bytes of the file, `chunks` goes through them and on to the end of the form. What is wrong
    with the form is an error of either. Nothing for `idle_seconds` is a fault too, so that nobody holds a place by
    sending nothing.
    """

    def __init__(self, request: Request, *, names: Collection[str], idle_seconds: float = _IDLE_SECONDS) -> None:
        length = request.headers.get("content-length", "")
        self._body: AsyncGenerator[bytes, None] = request.stream()
        self._length = int(length) if length.isdecimal() else None
        self._idle_seconds = idle_seconds
        self._boundary = _boundary_of(request.headers.get("content-type", ""))
        self._parts = _Parts(names)
        self._parser = MultipartParser(
            self._boundary,
            self._parts.callbacks,
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )
        self._read = 0

    @property
    def filename(self) -> str:
        """As the sender calls the file."""
        return self._parts.filename or ""

    @property
    def fields(self) -> dict[str, str]:
        """Those that have come by now. Of an empty one nothing is said."""
        return {name: value for name, value in self._parts.fields.items() if value}

    @property
    def most_bytes(self) -> int | None:
        """How long the file is at most, when the sender says how much it sends."""
        if self._length is None or self._parts.starts_at is None:
            return None
        end = len(b"\r\n----\r\n") + len(self._boundary)
        return max(0, self._length - self._parts.starts_at - end + len(b"\r\n"))  # the last line end may be left out

    async def begin(self) -> None:
        while self._parts.starts_at is None and not self._parts.has_file_ended:
            if not await self._go_on():
                break
        self._parts.require_file()

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            while self._parts.pieces:
                yield self._parts.pieces.popleft()
            if not await self._go_on():
                return

    async def _go_on(self) -> bool:
        """Read what comes next. False at the end of a form that is whole."""
        piece = await self._next()
        if piece is None:
            if not self._parts.is_whole:
                raise InvalidRequestError("The form is cut off: its last boundary is missing.")
            return False
        self._parts.offset = self._read
        self._read += len(piece)
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise InvalidRequestError(f"The body is not valid {FORM_TYPE}.") from error
        return True

    async def _next(self) -> bytes | None:
        try:
            async with asyncio.timeout(self._idle_seconds):
                return await anext(self._body, None)
        except TimeoutError as error:
            raise InvalidRequestError(f"Nothing of the body came for {self._idle_seconds:g} s.") from error
        except ClientDisconnect as error:
            raise InvalidRequestError("The connection was closed before the end of the body.") from error


class _Parts:
    """What the parser finds: the parts of a form, one after the other."""

    def __init__(self, names: Collection[str]) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None  # none until there is a file
        self.starts_at: int | None = None  # where in the body the bytes of the file begin
        self.pieces: deque[bytes] = deque()
        self.offset = 0  # of what is being parsed
        self.has_file_ended = False
        self.is_whole = False
        self._names = names
        self._count = 0
        self._current = ""
        self._headers: dict[bytes, bytes] = {}
        self._header = [b"", b""]
        self._value = b""

    @property
    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._add_to_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_to_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._name_part,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def require_file(self) -> None:
        if self.filename is None:
            raise _refusal(FILE, "the form has no part of this name", "missing")

    def _begin_part(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise InvalidRequestError(f"A form has at most {MAX_PARTS} parts here.")
        self._headers, self._value = {}, b""

    def _add_to_header(self, at: int, text: bytes) -> None:
        self._header[at] += text

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = [b"", b""]

    def _name_part(self) -> None:
        # As bytes of Latin-1, so that nothing is lost before it is read as the UTF-8 that it is.
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise InvalidRequestError("A part of the form has no name.")
        self._current = options[b"name"].decode(errors="replace")
        if self._current == FILE:
            if self.filename is not None:
                raise _refusal(FILE, "there is more than one", "too_many")
            self.filename = options.get(b"filename", b"").decode(errors="replace")
        elif self._current not in self._names:
            raise _refusal(self._current[:_SHOWN_CHARACTERS], "is not known here", "extra_forbidden")
        elif self._current in self.fields:
            raise _refusal(self._current, "there is more than one", "too_many")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._current == FILE:
            if self.starts_at is None:
                self.starts_at = self.offset + start
            self.pieces.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_VALUE_BYTES:
            raise _refusal(self._current, f"is longer than {_MAX_VALUE_BYTES} bytes", "too_long")

    def _end_part(self) -> None:
        if self._current == FILE:
            self.has_file_ended = True
            return
        try:
            self.fields[self._current] = self._value.decode()
        except UnicodeDecodeError as error:
            raise _refusal(self._current, "is not UTF-8", "string_unicode") from error

    def _end(self) -> None:
        self.is_whole = True


def _boundary_of(declared: str) -> bytes:
    kind, options = parse_options_header(declared)
    if kind != FORM_TYPE.encode():
        raise UnsupportedMediaTypeError(f"The body must be a form with a file, with Content-Type: {FORM_TYPE}.")
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequestError(f"{FORM_TYPE} needs a boundary of 1 to 70 characters.")
    return boundary


def _refusal(name: str, message: str, kind: str) -> InvalidContentError:
    return InvalidContentError(errors=[{"loc": ["body", name], "msg": message, "type": kind}])
