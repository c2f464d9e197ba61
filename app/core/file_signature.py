"""Which type the bytes of a file are of, as far as its first and last bytes tell.

Own tables, because a guess is no answer here: what fits none of them is `application/octet-stream`.
"""

import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Final

HEAD_BYTES: Final = 64 * 1024
OCTETS: Final = "application/octet-stream"
TEXT: Final = "text/plain"
ZIP: Final = "application/zip"
_ZIP_STARTS: Final = (b"PK\3\4", b"PK\5\6")

_STARTS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"%PDF-", "application/pdf"),
    (b"%!PS", "application/postscript"),
    (b"{\\rtf", "application/rtf"),
    (b"ID3", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"FWS", "application/x-shockwave-flash"),
    (b"CWS", "application/x-shockwave-flash"),
    (b"\x1f\x8b", "application/gzip"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"Rar!\x1a\x07", "application/vnd.rar"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (b"\x7fELF", "application/x-executable"),
    (b"MZ", "application/x-msdownload"),
    (b"#!", "text/x-script"),
)
# These are written in signs that texts are made of as well. The others in signs that begin a text by chance at most.
_READABLE_STARTS: Final = (b"%PDF-", b"%!PS", b"{\\rtf", b"GIF87a", b"GIF89a", b"#!")
_RIFF: Final = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS: Final = {
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "image/heic"),
    **dict.fromkeys((b"M4A ", b"M4B "), "audio/mp4"),
    b"qt  ": "video/quicktime",
    **dict.fromkeys((b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1"), "video/mp4"),
    **dict.fromkeys((b"M4V ", b"dash", b"MSNV", b"3gp4", b"3gp5", b"3gp6"), "video/mp4"),
}
_OFFICE: Final = "application/vnd.openxmlformats-officedocument."
# In this order: what holds macros, or runs, is that and not the document that it holds as well.
_ZIP_PARTS: Final = (
    ("vbaproject.bin", "application/vnd.ms-office.macroenabled"),
    ("meta-inf/manifest.mf", "application/java-archive"),
    ("word/document.xml", f"{_OFFICE}wordprocessingml.document"),
    ("xl/workbook.xml", f"{_OFFICE}spreadsheetml.sheet"),
    ("ppt/presentation.xml", f"{_OFFICE}presentationml.presentation"),
)
_OPEN_DOCUMENT: Final = "application/vnd.oasis.opendocument."
_FIRST_ENTRY: Final = re.compile(rb"mimetype(application/[a-z0-9.+-]+)PK")
_BYTE_ORDER_MARKS: Final = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# The begin of a frame of layer III without a tag before it. A rate of 15 is forbidden.
_FRAME: Final = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x00-\xef]")
_BINARY: Final = bytes({*range(9), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)})  # as browsers tell them
_BINARY_CHARACTERS: Final = re.compile(f"[{re.escape(_BINARY.decode())}]")
_DECEIT: Final = b"%PDF-"  # readers take it anywhere in the first kilobyte
_DECEIT_BYTES: Final = 1024

_SKIPPED: Final = re.compile(r"\s+|<!--.*?-->|<\?.*?\?>", re.DOTALL)
_ROOT: Final = re.compile(r"<(?:!doctype\s+)?(?:[\w.-]+:)?([\w.-]+)", re.IGNORECASE)
_PAGE_TAGS: Final = frozenset(
    [
        "html",
        "head",
        "body",
        "script",
        "style",
        "title",
        "meta",
        "link",
        "base",
        "iframe",
        "frameset",
        "object",
        "embed",
        "form",
        "svg",
    ]
)


def signature_of(head: bytes) -> str:
    """The type by the first bytes: of every ZIP-based one `application/zip`, of every text `text/plain`."""
    if head.startswith(_ZIP_STARTS):
        return ZIP
    if decoded(head) is not None and not head.startswith(_READABLE_STARTS):
        return TEXT
    found = next((found for look in _LOOKS if (found := look(head))), OCTETS)
    is_deceit = found != "application/pdf" and _DECEIT in head[:_DECEIT_BYTES]
    return OCTETS if is_deceit else found


def _by_start(head: bytes) -> str | None:
    return next((found for start, found in _STARTS if head.startswith(start)), None)


def _by_riff(head: bytes) -> str | None:
    return _RIFF.get(head[8:12]) if head.startswith(b"RIFF") else None


def _by_brand(head: bytes) -> str | None:
    """ISO base media. Pictures often name the general brand first and their own among those they agree with."""
    if head[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(head[:4], "big"), 256)
    is_avif = any(head[place : place + 4] == b"avif" for place in range(16, size, 4))
    return "image/avif" if is_avif else _BRANDS.get(head[8:12])


def _by_doctype(head: bytes) -> str | None:
    if not head.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    return "video/webm" if b"webm" in head[:64] else "video/x-matroska"


def _by_frame(head: bytes) -> str | None:
    return "audio/mpeg" if _FRAME.match(head) else None


def _by_tar(head: bytes) -> str | None:
    return "application/x-tar" if head[257:262] == b"ustar" else None


_LOOKS: Final[tuple[Callable[[bytes], str | None], ...]] = (
    _by_start,
    _by_riff,
    _by_brand,
    _by_doctype,
    _by_frame,
    _by_tar,
)


def type_in_zip(head: bytes, tail: bytes) -> str:
    """What a ZIP file is, by its directory, which is at its end. Without one it is nothing that may be trusted."""
    try:
        with zipfile.ZipFile(BytesIO(tail)) as archive:
            names = [name.lower() for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, MemoryError):
        return OCTETS
    for part, found in _ZIP_PARTS:
        if any(name == part or name.endswith(f"/{part}") for name in names):
            return found
    declared = _FIRST_ENTRY.match(head[30:])
    kind = declared[1].decode() if declared else ""
    return kind if kind.startswith(_OPEN_DOCUMENT) or kind == "application/epub+zip" else ZIP


def decoded(head: bytes) -> str | None:
    """The text that a file begins with; `None` when that is no text. The last character may be cut off."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            text = head[len(mark) :].decode(encoding, "replace")
            return None if _BINARY_CHARACTERS.search(text) else text
    if head.translate(None, _BINARY) != head:
        return None
    try:
        return head.decode()
    except UnicodeDecodeError:
        return head.decode("latin-1")


def markup_in(text: str) -> str | None:
    """The type of what browsers would take for a page, a picture or a document with scripts; `None` for plain text.

    `text/html` as well for what only begins like a page, such as a comment: whoever knows better decides.
    """
    root = _ROOT.match(text, _after_prolog(text))
    name = root[1].lower() if root else ""
    start = text.lstrip()[:5].lower()
    if name == "svg":
        return "image/svg+xml"
    if start == "<?xml":
        return "application/xhtml+xml" if name == "html" else "application/xml"
    return "text/html" if name or start.startswith("<!") else None


def is_whole_page(text: str) -> bool:
    """Whether it begins as a page does, not only with a tag as many texts in Markdown do."""
    root = _ROOT.match(text, _after_prolog(text))
    return root is not None and root[1].lower() in _PAGE_TAGS


def _after_prolog(text: str) -> int:
    """Where the first thing is that is neither blank nor a comment nor an instruction to a program."""
    place = 0
    while skipped := _SKIPPED.match(text, place):
        place = skipped.end()
    return place
