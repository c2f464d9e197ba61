r"""An archive as a file: a head that anybody can read, and numbered blocks, compressed, checksummed, perhaps encrypted.

    octopus backup\n
    length of the head (4 bytes), the head (JSON), its checksum
    for each block: length (4), 1 when it is the last else 0 (1), content, checksum

A checksum is the SHA-256 of the checksum before it and of all that the block consists of. So a block that is altered,
missing, doubled or in another's place is found where that is, and the last checksum is one of the whole file.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import zstandard

from app.backup.errors import BackupError, FaultError
from app.backup.key import BlockCipher, name_of

FORMAT: Final = 1
MAGIC: Final = b"octopus backup\n"
LARGEST_CONTENT: Final = 64 * 1024 * 1024  # no document of a database comes near, so that damage can't fill the memory
LARGEST_HEAD: Final = 16 * 1024 * 1024
_LENGTH: Final = struct.Struct(">I")
_FRAME: Final = struct.Struct(">IB")
_DIGEST_BYTES: Final = hashlib.sha256().digest_size

Head = dict[str, Any]
OnFault = Callable[[str], None]


class Sink(Protocol):
    def write(self, content: bytes, /) -> object: ...


class BlockWriter:
    """Writes the head at once, then block after block."""

    def __init__(self, out: Sink, head: Head, key: bytes | None) -> None:
        self._out = out
        self._number = 0
        self._compressor = zstandard.ZstdCompressor(level=3)
        encoded = json.dumps({"format": FORMAT, **head}, sort_keys=True).encode()
        self._cipher = BlockCipher(key, salt=head["encryption"]["salt"], head=encoded) if key else None
        self.checksum = hashlib.sha256(MAGIC + encoded).digest()
        out.write(MAGIC + _LENGTH.pack(len(encoded)) + encoded + self.checksum)

    def write(self, content: bytes, *, is_last: bool = False) -> None:
        stored = self._compressor.compress(content)
        if self._cipher is not None:
            stored = self._cipher.seal(stored, self._number, is_last=is_last)
        frame = _FRAME.pack(len(stored), is_last)
        self.checksum = _checksum(self.checksum, frame, stored)
        self._number += 1
        for part in (frame, stored, self.checksum):
            self._out.write(part)


class Block(NamedTuple):
    content: bytes | None  # none when it can't be read, which was told
    size: int  # in the file


class BlockReader:
    """Reads the head at once: `FaultError` when there is none. Then `blocks` tells whatever is wrong with a block."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.head, self._encoded, self.checksum = _read_head(file)
        self.position = len(MAGIC) + _LENGTH.size + len(self._encoded) + _DIGEST_BYTES

    def blocks(self, key: bytes | None, on_fault: OnFault) -> Iterator[Block]:
        """The blocks in their order, up to the last or to where nothing tells where the next begins."""
        cipher, number, is_ended = self._cipher(key), 0, False
        while not is_ended:
            frame = self._file.read(_FRAME.size)
            length, mark = _FRAME.unpack(frame) if len(frame) == _FRAME.size else (0, 0)
            rest = self._file.read(length + _DIGEST_BYTES) if length <= LARGEST_CONTENT else b""
            if len(frame) < _FRAME.size or len(rest) < length + _DIGEST_BYTES:
                on_fault(f"{self._place(number)} does not end: the archive was cut off there, or is damaged")
                return
            stored, checksum = rest[:length], rest[length:]
            is_right = checksum == _checksum(self.checksum, frame, stored)
            content = _opened(stored, cipher, number, is_last=mark == 1) if is_right else None
            if content is None:
                cause = (
                    "can't be decrypted: it was put there"
                    if is_right
                    else "was altered, or is not the one of its place"
                )
                on_fault(f"{self._place(number)} {cause}")
            is_ended = mark == 1 and is_right
            self.checksum, number = checksum, number + 1
            self.position += len(frame) + len(rest)
            yield Block(content, len(frame) + len(rest))
        if self._file.read(1):
            on_fault(f"there is more behind the end of the archive, at byte {self.position}")

    def _place(self, number: int) -> str:
        return f"block {number + 1} (byte {self.position})"

    def _cipher(self, key: bytes | None) -> BlockCipher | None:
        described = self.head["encryption"]
        if described is None and key is not None:
            # Who can write to the place of the archives, and has no key, could have made it.
            raise BackupError(
                "The archive is not encrypted, though there is a key: anybody could have made it. To read it all the "
                "same, unset BACKUP_KEY and BACKUP_KEY_FILE."
            )
        if described is None:
            return None
        if key is None:
            raise BackupError(
                f"The archive is encrypted under the key {described['key']}: set BACKUP_KEY or BACKUP_KEY_FILE."
            )
        if name_of(key) != described["key"]:
            raise BackupError(f"The archive is encrypted under the key {described['key']}; ours is {name_of(key)}.")
        return BlockCipher(key, salt=described["salt"], head=self._encoded)


def _read_head(file: BinaryIO) -> tuple[Head, bytes, bytes]:
    if file.read(len(MAGIC)) != MAGIC:
        raise FaultError("this is no archive of Octopus")
    length = int.from_bytes(file.read(_LENGTH.size), "big")
    encoded = file.read(min(length, LARGEST_HEAD))
    checksum = file.read(_DIGEST_BYTES)
    if checksum != hashlib.sha256(MAGIC + encoded).digest():
        raise FaultError("the head was altered or cut off")
    head: Head = json.loads(encoded)
    if head["format"] != FORMAT:
        raise BackupError(f"The archive has the format {head['format']}; this version reads {FORMAT}. Use a newer one.")
    return head, encoded, checksum


def _opened(stored: bytes, cipher: BlockCipher | None, number: int, *, is_last: bool) -> bytes | None:
    """The content, or none when it is none of ours."""
    compressed = stored if cipher is None else cipher.open(stored, number, is_last=is_last)
    if compressed is None:
        return None
    try:
        if not 0 <= zstandard.frame_content_size(compressed) <= LARGEST_CONTENT:
            return None
        return zstandard.ZstdDecompressor().decompress(compressed)
    except zstandard.ZstdError:
        return None


def _checksum(before: bytes, frame: bytes, stored: bytes) -> bytes:
    digest = hashlib.sha256(before + frame)
    digest.update(stored)
    return digest.digest()
