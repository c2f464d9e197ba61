"""Archives that are not as they were written."""

import hashlib
import io
import itertools
import secrets
from collections.abc import Callable
from functools import cache

import bson
import pytest

from app.backup.archive import ArchiveReader, ArchiveWriter, Collection
from app.backup.blocks import BlockWriter
from app.backup.errors import BackupError, FaultError
from app.backup.key import described

KEY = secrets.token_bytes(32)
DOCUMENTS = [{"_id": number, "text": secrets.token_hex(50_000)} for number in range(120)]  # three blocks
Damage = Callable[[bytes, list[int]], bytes]


@cache
def archive(key: bytes | None, **head: object) -> bytes:
    out = io.BytesIO()
    told = {"made_by": "0.1.0", "encryption": None if key is None else described(key), **head}
    writer = ArchiveWriter(BlockWriter(out, told, key))
    writer.begin(Collection("jars", {}, []))
    writer.add(b"".join(bson.encode(each) for each in DOCUMENTS))
    writer.begin(Collection("cups", {}, []))
    writer.add(bson.encode({"_id": 1}))
    writer.finish()
    return out.getvalue()


def starts(content: bytes) -> list[int]:
    """Where each block begins; the last is the end of the file."""
    at = [15 + 4 + int.from_bytes(content[15:19], "big") + 32]
    while at[-1] < len(content):
        at.append(at[-1] + 5 + int.from_bytes(content[at[-1] : at[-1] + 4], "big") + 32)
    return at


def faults(content: bytes, key: bytes | None) -> list[str]:
    """Everything that is found."""
    found: list[str] = []
    for _ in ArchiveReader(io.BytesIO(content)).parts(key, found.append):
        pass
    return found


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def moved(content: bytes, at: list[int]) -> bytes:
    return content[: at[1]] + content[at[2] : at[3]] + content[at[1] : at[2]] + content[at[3] :]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
class TestArchive:
    def test_is_whole(self, key: bytes | None) -> None:
        content = archive(key)

        assert len(starts(content)) == 8  # seven blocks: jars, three of documents, cups, its documents, the end
        assert faults(content, key) == []

    @pytest.mark.parametrize(
        ("damage", "found"),
        [
            (lambda content, at: flipped(content, at[2] + 100), ["block 3 (byte {2}) was altered"]),
            (lambda content, at: flipped(content, at[3] - 1), ["block 3 ", "block 4 "]),
            (lambda content, at: flipped(flipped(content, at[1] + 9), at[5] + 9), ["block 2 ", "block 6 "]),
            (lambda content, at: flipped(content, at[2] + 4), ["block 3 "]),
            (lambda content, at: flipped(content, at[2]), ["block 3 (byte {2}) does not end"]),
            (lambda content, at: flipped(content, at[-2] + 4), ["block 7 ", "block 8 "]),
            (moved, ["block 2 ", "block 3 ", "block 4 "]),
            (lambda content, at: content[: at[2]] + content[at[3] :], ["block 3 "]),
            (lambda content, at: content[: at[2]] + content[at[1] :], ["block 3 "]),
            (lambda content, at: content[: at[2] + 70_000], ["block 3 (byte {2}) does not end"]),
            (lambda content, at: content[: at[2]], ["block 3 (byte {2}) does not end"]),
            (lambda content, at: content[: at[0]], ["block 1 (byte {0}) does not end"]),
            (lambda content, _: content[:-1], ["block 7 (byte {6}) does not end"]),
            (lambda content, _: content + b"\0", ["there is more behind the end of the archive, at byte {7}"]),
        ],
    )
    def test_that_was_damaged_says_where(self, key: bytes | None, damage: Damage, found: list[str]) -> None:
        content = archive(key)
        at = starts(content)

        told = faults(damage(content, at), key)

        expected = [begin.format(*at) for begin in found]
        assert [fault[: len(begin)] for fault, begin in zip(told, expected, strict=False)] == expected
        # Behind a gap nothing can be decrypted: each block knows its number.
        assert len(told) == len(found) or (key is not None and " can't be decrypted" in told[-1])

    @pytest.mark.parametrize("at", [3, 15, 18, 30, 80])
    def test_whose_head_was_altered_is_none(self, key: bytes | None, at: int) -> None:
        with pytest.raises(FaultError):
            faults(flipped(archive(key), at), key)

    @pytest.mark.parametrize("length", [0, 10, 60])
    def test_that_ends_in_its_head_is_none(self, key: bytes | None, length: int) -> None:
        with pytest.raises(FaultError):
            faults(archive(key)[:length], key)


class TestEncryption:
    def test_leaves_nothing_to_read_and_no_key(self) -> None:
        content = archive(KEY)

        assert b"jars" not in content
        assert b"jars" in archive(None)
        assert KEY not in content
        assert KEY.hex().encode() not in content

    @pytest.mark.parametrize("key", [None, secrets.token_bytes(32)], ids=["no key", "another key"])
    def test_says_which_key_it_needs(self, key: bytes | None) -> None:
        with pytest.raises(BackupError, match=r"encrypted under the key [0-9a-f]{12}"):
            faults(archive(KEY), key)

    def test_takes_none_in_clear_where_there_is_a_key(self) -> None:
        """Who can write to the place and has no key can make such a one."""
        with pytest.raises(BackupError, match=r"not encrypted.*unset BACKUP_KEY"):
            faults(archive(None), KEY)

    def test_is_not_fooled_by_blocks_of_another_archive_whose_checksums_fit(self) -> None:
        mine, other = archive(KEY), archive(KEY, at="later")
        at, of_other = starts(mine), starts(other)
        # As somebody does who can compute checksums and has no key: the head of one, the blocks of the other.
        forged = io.BytesIO()
        forged.write(mine[: at[0]])
        checksum = mine[at[0] - 32 : at[0]]
        for begin, end in itertools.pairwise(of_other):
            frame, stored = other[begin : begin + 5], other[begin + 5 : end - 32]
            checksum = hashlib.sha256(checksum + frame + stored).digest()
            forged.write(frame + stored + checksum)

        assert faults(forged.getvalue(), KEY) == [
            f"block {number} (byte {at}) can't be decrypted: it was put there"
            for number, at in enumerate(starts(forged.getvalue())[:-1], 1)
        ]


class TestFormat:
    def test_that_is_newer_is_said_to_be(self) -> None:
        with pytest.raises(BackupError, match="has the format 2; this version reads 1"):
            faults(archive(None, format=2), None)
