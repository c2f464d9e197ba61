"""What an uploaded file is: what its bytes say, and whether that and its name are accepted."""

import mimetypes
from collections import deque
from collections.abc import Collection
from typing import Final, NamedTuple

import puremagic

from app.core import file_signature
from app.core.exceptions import FileRejectedError
from app.core.file_signature import HEAD_BYTES, OCTETS, TEXT, ZIP

_TAIL_BYTES: Final = 1024 * 1024  # holds the directory of an archive of some ten thousand files
_SHOWN_CHARACTERS: Final = 20
_OFFICE: Final = "application/vnd.openxmlformats-officedocument."
_OPEN_DOCUMENT: Final = "application/vnd.oasis.opendocument."

# The endings of names, the usual one first.
_EXTENSIONS: Final = {
    "image/png": ("png", "apng"),
    "image/jpeg": ("jpg", "jpeg", "jpe", "jfif"),
    "image/gif": ("gif",),
    "image/webp": ("webp",),
    "image/avif": ("avif",),
    "image/heic": ("heic", "heif"),
    "image/tiff": ("tif", "tiff"),
    "application/pdf": ("pdf",),
    f"{_OFFICE}wordprocessingml.document": ("docx",),
    f"{_OFFICE}spreadsheetml.sheet": ("xlsx",),
    f"{_OFFICE}presentationml.presentation": ("pptx",),
    f"{_OPEN_DOCUMENT}text": ("odt",),
    f"{_OPEN_DOCUMENT}spreadsheet": ("ods",),
    f"{_OPEN_DOCUMENT}presentation": ("odp",),
    TEXT: ("txt", "text", "log", "ini", "cfg", "conf", "toml", "yaml", "yml", "tex", "rst", "srt"),
    "text/markdown": ("md", "markdown"),
    "text/csv": ("csv",),
    "text/tab-separated-values": ("tsv",),
    "text/calendar": ("ics",),
    "text/css": ("css",),
    "text/javascript": ("js", "mjs", "cjs"),
    "text/html": ("html", "htm"),
    "application/xhtml+xml": ("xhtml",),
    "application/xml": ("xml", "xsl", "xslt"),
    "image/svg+xml": ("svg",),
    "application/json": ("json",),
    ZIP: ("zip",),
    "audio/mpeg": ("mp3",),
    "audio/mp4": ("m4a", "m4b"),
    "audio/wav": ("wav",),
    "audio/ogg": ("ogg", "oga", "opus"),
    "audio/flac": ("flac",),
    "video/mp4": ("mp4", "m4v", "3gp"),
    "video/webm": ("webm",),
    "video/quicktime": ("mov", "qt"),
}
_NAMED: Final = {extension: found for found, endings in _EXTENSIONS.items() for extension in endings}
# Types that people confuse without harm: a camera or a browser gives a picture the ending of another kind.
_FAMILIES: Final = (
    frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/heic"}),
    frozenset({"audio/mp4", "video/mp4", "video/quicktime"}),
)
# Texts that only their names tell apart, and what they must begin with.
_TEXTS: Final = {
    **dict.fromkeys(
        ("text/markdown", "text/csv", "text/tab-separated-values", "text/calendar", "text/css", "text/javascript"), ""
    ),
    **dict.fromkeys(("text/html", "image/svg+xml", "application/xml", "application/xhtml+xml"), ""),
    "application/json": '{["-0123456789tfn',
}
ACTIVE_TYPES: Final = frozenset(
    {"text/html", "application/xhtml+xml", "application/xml", "image/svg+xml", "text/javascript", "text/css"}
    | {"application/x-shockwave-flash", "application/postscript", "text/x-script", "application/java-archive"}
)
INLINE_TYPES: Final = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "application/pdf", TEXT}
    | {"audio/mpeg", "audio/mp4", "audio/wav", "audio/ogg", "audio/flac", "video/mp4", "video/webm"}
)
DEFAULT_ALLOWED_TYPES: Final = tuple(
    content_type
    for content_type in _EXTENSIONS
    if content_type not in ACTIVE_TYPES | {"image/tiff", "text/calendar", "text/tab-separated-values"}
)


class FileType(NamedTuple):
    content_type: str
    extension: str  # the usual one; empty when there is none

    @property
    def is_active(self) -> bool:
        """Whether a browser might run what is in it: only ever given out as an attachment."""
        return self.content_type in ACTIVE_TYPES

    @property
    def may_be_inline(self) -> bool:
        """Whether a browser may show it in its place. What is not known to be harmless may not."""
        return self.content_type in INLINE_TYPES


class FileProbe:
    """Watches a file stream by and tells its type, of which it keeps the beginning, and of archives the end.

    `name` is the cleaned one. `FileRejectedError` as soon as it is clear that the file is not accepted.
    """

    def __init__(self, name: str, allowed: Collection[str]) -> None:
        self.size = 0
        self._allowed = frozenset(allowed)
        self._extension = extension_of(name)
        self._head = b""
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._known: FileType | None = None

    def feed(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if len(self._head) < HEAD_BYTES:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
            if len(self._head) == HEAD_BYTES and not self._is_zip():
                self._known = self._require_accepted(self._by_head())
        if self._is_zip():
            self._keep_end(chunk)

    def finish(self) -> FileType:
        """The type, when everything was seen."""
        if not self.size:
            raise FileRejectedError("The file is empty.")
        if self._known is None:
            is_zip = self._is_zip()
            found = file_signature.type_in_zip(self._head, b"".join(self._tail)) if is_zip else self._by_head()
            self._known = self._require_accepted(found)
        return self._known

    def _is_zip(self) -> bool:
        return file_signature.signature_of(self._head[:4]) == ZIP

    def _keep_end(self, chunk: bytes) -> None:
        self._tail.append(chunk)
        self._tail_bytes += len(chunk)
        while self._tail_bytes - len(self._tail[0]) >= _TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())

    def _by_head(self) -> str:
        found = file_signature.signature_of(self._head)
        if found == TEXT:
            return _kind_of_text(file_signature.decoded(self._head) or "", self._extension)
        if found == OCTETS and self._allowed - _EXTENSIONS.keys():
            return _guess(self._head)
        return found

    def _require_accepted(self, found: str) -> FileType:
        if found not in self._allowed:
            raise FileRejectedError(
                "What this file is can't be told from its bytes, so it is not accepted."
                if found == OCTETS
                else f"Files of the type {found} are not accepted."
            )
        if not _fits(self._extension, found, self._allowed):
            ending = self._extension[:_SHOWN_CHARACTERS]
            raise FileRejectedError(f"The name ends in .{ending}, but by its bytes the file is {found}.")
        return FileType(found, _usual_extension(found))


def extension_of(name: str) -> str:
    """What stands behind the last dot, in small letters; empty when there is none."""
    stem, _, extension = name.rpartition(".")
    return extension.casefold() if stem else ""


def _kind_of_text(text: str, extension: str) -> str:
    """Of markup that counts which stands in it, of other texts what the name says, since nothing else does."""
    named = _NAMED.get(extension, TEXT)
    markup = file_signature.markup_in(text)
    if markup and not (named == "text/markdown" and markup == "text/html" and not file_signature.is_whole_page(text)):
        return markup
    if named not in _TEXTS:
        return TEXT
    first = _TEXTS[named]
    return named if not first or text.lstrip()[:1] in tuple(first) else TEXT


def _guess(head: bytes) -> str:
    """Of a type that the operator allows and the tables here do not know. Never one that they do know."""
    try:
        guessed = puremagic.from_string(head, mime=True)
    except (puremagic.PureError, ValueError):
        return OCTETS
    return OCTETS if not guessed or guessed in _EXTENSIONS or guessed in ACTIVE_TYPES else guessed


def _fits(extension: str, found: str, allowed: frozenset[str]) -> bool:
    """Whether a file with this ending may be of that type. Without an ending nothing is claimed."""
    named = _NAMED.get(extension)
    if not extension or named == found:
        return True
    if found not in _EXTENSIONS:
        usual = mimetypes.guess_all_extensions(found)
        return named is None and (not usual or f".{extension}" in usual)
    return named in allowed and any({named, found} <= family for family in _FAMILIES)


def _usual_extension(content_type: str) -> str:
    known = _EXTENSIONS.get(content_type)
    return known[0] if known else (mimetypes.guess_extension(content_type) or "").lstrip(".")
