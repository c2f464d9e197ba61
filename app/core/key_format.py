"""The shape of an API key: `octopus_<8 id><_><32 random><6 checksum>`, all base62.

The id is stored in clear, for look-up and display. The checksum is the CRC-32 of everything before it, in
base62, padded with zeros to six digits: it tells typos and scanners' noise from keys without a database.
"""

import re
import secrets
import string
import zlib
from typing import Final, NamedTuple

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PATTERN: Final = re.compile(r"(octopus_([0-9A-Za-z]{8})_[0-9A-Za-z]{32})([0-9A-Za-z]{6})")


_SECRET_PART: Final = re.compile(r"(octopus_[0-9A-Za-z]{8}_)[0-9A-Za-z]+")


class ParsedKey(NamedTuple):
    key_id: str
    text: str


def new_key() -> ParsedKey:
    """A fresh key with 190 random bits."""
    body = f"octopus_{_random(8)}_{_random(32)}"
    parsed = parse(body + _checksum(body))
    assert parsed is not None  # noqa: S101 - made to the pattern
    return parsed


def parse(text: str) -> ParsedKey | None:
    """The key's parts; none when the text is not shaped like a key or its checksum is wrong."""
    match = _PATTERN.fullmatch(text)
    if match is None or _checksum(match[1]) != match[3]:
        return None
    return ParsedKey(key_id=match[2], text=text)


def masked(text: str) -> str:
    """The text without what may be the secret part of a key: what somebody has put where it does not belong."""
    return _SECRET_PART.sub(r"\1…", text) if "octopus_" in text else text


def _checksum(body: str) -> str:
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
