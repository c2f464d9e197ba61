"""The names of files: what is kept of one that a client sends, and how it is sent back."""

import re
import unicodedata
from typing import Final
from urllib.parse import quote

_MOST_BYTES: Final = 255  # what file systems take
_MOST_EXTENSION_BYTES: Final = 32
_SEPARATORS: Final = re.compile(r"[/\\]")
_FORBIDDEN: Final = re.compile(r'[:*?"<>|]')  # on Windows; a colon there leads to another stream of the file
# Cc: control, Cf: format, among them all that turns the direction of writing, Cs: half a character, Zl, Zp: new lines.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS: Final = frozenset("\u200c\u200d")  # of these letters and pictures of people consist
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
_UNSAFE_IN_QUOTES: Final = re.compile(r"[^ !#$&\'()+,\-.0-9;=@A-Z\[\]^_`a-z{}~]")


def clean_name(declared: str, *, extension: str = "") -> str:
    """The last part of the path, without what deceives a reader or is special to a file system.

    Of nothing is made `file`, with the extension that belongs to what the file is.
    """
    visible = "".join(sign for sign in declared if sign in _JOINERS or unicodedata.category(sign) not in _INVISIBLE)
    last = _SEPARATORS.split(unicodedata.normalize("NFC", visible))[-1]
    name = _FORBIDDEN.sub("_", last).strip(". \u00a0\u3000").strip("".join(_JOINERS))
    if not name:
        return f"file.{extension}" if extension else "file"
    if _RESERVED.match(name):
        name = f"_{name}"
    return _shortened(name)


def content_disposition(name: str, *, inline: bool) -> str:
    """The header for a cleaned name, after RFC 6266: in ASCII for all, and as it is for those who know RFC 8187."""
    kind = "inline" if inline else "attachment"
    plain = _UNSAFE_IN_QUOTES.sub("_", unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode())
    if plain == name:
        return f'{kind}; filename="{name}"'
    stem, dot, extension = plain.rpartition(".")
    fallback = f"{stem.strip() or 'file'}.{extension}" if dot else plain.strip() or "file"
    return f"{kind}; filename=\"{fallback}\"; filename*=UTF-8''{quote(name, safe='!#$&+^`|~')}"


def _shortened(name: str) -> str:
    """At most 255 bytes, cut between characters and before the extension."""
    if len(name.encode()) <= _MOST_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > _MOST_EXTENSION_BYTES:
        stem, dot, extension = name, "", ""
    room = _MOST_BYTES - len(f"{dot}{extension}".encode())
    return f"{stem.encode()[:room].decode(errors='ignore').rstrip('. ')}{dot}{extension}"
