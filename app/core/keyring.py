"""Keys derived from `SECRET_KEY`, one for each purpose, so that a leak of one tells nothing of the others.

HKDF-Expand of RFC 5869 with one block: the secret is already uniform, at least 32 bytes long.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from functools import cache


@dataclass(frozen=True)
class Keyring:
    """The current secret and the previous ones, which still verify but make nothing new."""

    secrets: tuple[bytes, ...] = field(repr=False)

    @property
    def signing_secret(self) -> bytes:
        return self.secrets[0]

    def derive(self, purpose: str) -> tuple[bytes, ...]:
        """The 32-byte keys for a purpose, the current one first."""
        return tuple(_derive(secret, purpose) for secret in self.secrets)

    def mac(self, purpose: str, message: bytes) -> bytes:
        """HMAC-SHA-256 of the message under the current key for the purpose."""
        return hmac.digest(self.derive(purpose)[0], message, "sha256")

    def macs(self, purpose: str, message: bytes) -> list[bytes]:
        """The same under every key that still verifies, the current one first."""
        return [hmac.digest(key, message, "sha256") for key in self.derive(purpose)]


@cache
def _derive(secret: bytes, purpose: str) -> bytes:
    return hmac.digest(secret, b"octopus " + purpose.encode() + b"\x01", hashlib.sha256)
