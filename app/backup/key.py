"""The key that archives are encrypted under, and the cipher of one archive.

Each archive has a key of its own, derived from ours, its salt and everything else that its head says. The nonce holds
the number of the block, and whether it is the last (the STREAM construction): so a block that is altered, moved, left
out or taken from another archive does not decrypt, nor does an end that is none.
"""

import base64
import hashlib
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.backup.errors import BackupError
from app.core import encryption
from app.core.config import Settings

CIPHER: Final = "AES-256-GCM"
_SALT_BYTES: Final = 32
_NUMBER_BYTES: Final = 11


def key_of(settings: Settings) -> bytes | None:
    """The key that the settings hold or name; none when backups are not encrypted."""
    if settings.backup_key is not None:
        return base64.urlsafe_b64decode(settings.backup_key.get_secret_value())
    if settings.backup_key_file is None:
        return None
    try:
        text = settings.backup_key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BackupError(
            f"BACKUP_KEY_FILE={settings.backup_key_file} can't be read: {type(error).__name__}."
        ) from error
    if not encryption.is_key(text):
        raise BackupError(f"BACKUP_KEY_FILE={settings.backup_key_file} does not hold 32 bytes in base64.")
    return base64.urlsafe_b64decode(text)


def described(key: bytes) -> dict[str, str]:
    """What a head says of its encryption: which key it was, without a word about what it is."""
    return {"cipher": CIPHER, "salt": secrets.token_hex(_SALT_BYTES), "key": name_of(key)}


def name_of(key: bytes) -> str:
    return _derived(key, salt=None, purpose=b"octopus backup: name of the key", length=6).hex()


class BlockCipher:
    """Encrypts the blocks of one archive, or opens them."""

    def __init__(self, key: bytes, *, salt: str, head: bytes) -> None:
        purpose = b"octopus backup: blocks of " + hashlib.sha256(head).digest()
        self._aead = AESGCM(_derived(key, salt=bytes.fromhex(salt), purpose=purpose, length=32))

    def seal(self, content: bytes, number: int, *, is_last: bool) -> bytes:
        return self._aead.encrypt(_nonce(number, is_last=is_last), content, None)

    def open(self, sealed: bytes, number: int, *, is_last: bool) -> bytes | None:
        """None when it is not what was sealed there."""
        try:
            return self._aead.decrypt(_nonce(number, is_last=is_last), sealed, None)
        except InvalidTag:
            return None


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big") + bytes([is_last])


def _derived(key: bytes, *, salt: bytes | None, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=purpose).derive(key)
