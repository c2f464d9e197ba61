"""Encryption of what is secret at rest and must be read again, under keys that can be changed without downtime."""

import base64
from collections.abc import Sequence
from typing import Final

from cryptography.fernet import Fernet, MultiFernet

_KEY_LENGTH: Final = 44  # 32 bytes in base64


def cipher_of(keys: Sequence[bytes]) -> MultiFernet:
    """The first key encrypts, all decrypt."""
    return MultiFernet([Fernet(key) for key in keys])


def key_from(derived: bytes) -> bytes:
    """A Fernet key of 32 uniform bytes."""
    return base64.urlsafe_b64encode(derived)


def is_key(text: str) -> bool:
    """Whether it is one Fernet key. Of two without a comma between, Fernet itself would drop the second unsaid."""
    try:
        Fernet(text)
    except ValueError:
        return False
    return len(text) == _KEY_LENGTH
