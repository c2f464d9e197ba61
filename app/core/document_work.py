"""The text of a document, taken in its own process: `python -m app.core.document_work ... CONTENT_TYPE SECONDS`."""

import codecs
import importlib
import io
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO, Final

import docx
import pypdf
from pypdf.errors import PyPdfError

from app.core.file_work import Answer, Fault, UnworkableError, serve

MAX_PAGES: Final = 2000
MAX_CHARACTERS: Final = 5_000_000
MAX_EXPANDED_BYTES: Final = 100_000_000
MAX_PARTS: Final = 10_000
MAX_RATIO: Final = 200  # text in XML reaches 50
_SMALL_BYTES: Final = 5_000_000  # of which the ratio does not matter
_DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_PARAGRAPH: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}p"
_MARKS: Final = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_BYTES_OF_CHARACTER: Final = 4
_UNWANTED: Final = dict.fromkeys((*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0xD800, 0xE000)))

# Whatever is needed is loaded here: in the fence no module can be any more.
_LATE_MODULES: Final = ("pypdf.filters", "pypdf._codecs._codecs", "pypdf._codecs.core_font_metrics", "pypdf.xmp")
_LATE_CODECS: Final = (
    *("ascii", "latin-1", "cp1252", "cp437", "mac-roman", "charmap", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"),
    *("gbk", "gb18030", "gb2312", "big5", "big5hkscs", "shift-jis", "cp932", "euc-jp", "euc-kr", "cp949"),
)
for _name in _LATE_MODULES:
    importlib.import_module(_name)
for _name in _LATE_CODECS:
    codecs.lookup(_name)

# `None` at the end: there is more than is taken.
Pieces = Iterator[str | None]


def extract_text(file: BinaryIO, arguments: Sequence[str]) -> Answer:
    """The text in UTF-8, as far as the bounds allow; when it is not all, `is_truncated`."""
    content_type, seconds = arguments
    give_up_at = time.monotonic() + float(seconds)
    taken: list[str] = []
    room = MAX_CHARACTERS
    for piece in _READERS[content_type](file):
        is_truncated = piece is None or len(piece) > room or time.monotonic() > give_up_at
        taken.append((piece or "")[:room])
        room -= len(taken[-1])
        if is_truncated:
            break
    else:
        is_truncated = False
    text = "".join(taken).translate(_UNWANTED)
    return Answer({"characters": len(text), "is_truncated": is_truncated}, [text.encode()])


def _of_text(file: BinaryIO) -> Pieces:
    """By its byte order mark, else UTF-8, else what old programs in the west write."""
    raw = file.read(MAX_CHARACTERS * _BYTES_OF_CHARACTER)
    has_more = bool(file.read(1))
    marked = next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), None)
    try:
        yield codecs.getincrementaldecoder(marked or "utf-8")("replace" if marked else "strict").decode(
            raw, not has_more
        )
    except UnicodeDecodeError:
        yield raw.decode("cp1252", "replace")
    if has_more:
        yield None


def _of_pdf(file: BinaryIO) -> Pieces:
    """Page by page. One that can't be read is left out, and so are those behind a password."""
    try:
        reader = pypdf.PdfReader(file, strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnworkableError(Fault.DAMAGED, "The document is protected with a password.")
        pages = len(reader.pages)
    except (PyPdfError, RecursionError) as error:
        raise UnworkableError(Fault.DAMAGED, "The PDF is damaged.") from error
    for number in range(min(pages, MAX_PAGES)):
        with suppress(PyPdfError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            yield f"{reader.pages[number].extract_text()}\n\n"
    if pages > MAX_PAGES:
        yield None


def _of_docx(file: BinaryIO) -> Pieces:
    """Paragraph by paragraph, those of tables where they stand. The parser resolves no entities."""
    _refuse_bomb(file)
    try:
        document = docx.Document(file)
    except (KeyError, ValueError, OSError, SyntaxError, zipfile.BadZipFile) as error:
        raise UnworkableError(Fault.DAMAGED, "The document is damaged.") from error
    for paragraph in document.element.body.iter(_PARAGRAPH):
        yield f"{paragraph.text}\n"


def _refuse_bomb(file: BinaryIO) -> None:
    """By what its directory says, which is more than is ever unpacked: a part that is longer is cut off there."""
    size = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise UnworkableError(Fault.DAMAGED, "The document is damaged.") from error
    expanded = sum(part.file_size for part in parts)
    is_steep = expanded > _SMALL_BYTES and expanded > size * MAX_RATIO
    if expanded > MAX_EXPANDED_BYTES or is_steep or len(parts) > MAX_PARTS:
        raise UnworkableError(Fault.REFUSED, "The document is far larger unpacked than it may be.")


_READERS: Final[dict[str, Callable[[BinaryIO], Pieces]]] = {
    "application/pdf": _of_pdf,
    _DOCX: _of_docx,
    **dict.fromkeys(("text/plain", "text/markdown", "text/csv"), _of_text),
}
TEXT_TYPES: Final = frozenset(_READERS)

if __name__ == "__main__":
    serve(extract_text)
