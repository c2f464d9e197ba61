"""Objects in the storage: what they are called, and what is known of them.

A file and what is made of it (thumbnails, text) are parts of one *stem*: `3f/a0/3fa0…c1.original`. A stem is random, so
nobody can guess a key, nothing that a user named is in it, and objects spread evenly over folders and servers.
"""

import re
import secrets
from datetime import datetime
from typing import Final, NamedTuple

ORIGINAL: Final = "original"
_STEM: Final = r"([0-9a-f]{2})/([0-9a-f]{2})/\1\2[0-9a-f]{28}"
_IS_STEM: Final = re.compile(_STEM)
_IS_KEY: Final = re.compile(_STEM + r"\.[a-z0-9][a-z0-9-]{0,31}")


class Stored(NamedTuple):
    """What was written: its length in bytes, and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


class StoredObject(NamedTuple):
    """What the storage knows of an object."""

    key: str
    size: int
    modified_at: datetime
    is_encoded: bool = False  # who put it had it given out with a `Content-Encoding`, under which it is another file


class DirectUpload(NamedTuple):
    """Where a client may put the bytes of one object by itself, with PUT, and the headers it must send."""

    url: str
    headers: dict[str, str]


def new_stem() -> str:
    token = secrets.token_hex(16)
    return f"{token[:2]}/{token[2:4]}/{token}"


def key_of(stem: str, part: str = ORIGINAL) -> str:
    """The key of a part, such as `thumbnail-64`."""
    return require_key(f"{stem}.{part}")


def require_key(key: str) -> str:
    """Refuse what is no key, before it becomes a path. `ValueError`: no input may get this far."""
    if not _IS_KEY.fullmatch(key):
        raise ValueError("This is not the key of an object.")
    return key


def require_stem(stem: str) -> str:
    if not _IS_STEM.fullmatch(stem):
        raise ValueError("This is not the stem of an object.")
    return stem


def is_key(name: str) -> bool:
    return _IS_KEY.fullmatch(name) is not None
