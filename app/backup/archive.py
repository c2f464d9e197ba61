"""What the blocks of an archive say: collections, each followed by its documents, and at the end how many of them."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, NamedTuple

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

from app.backup.blocks import BlockReader, BlockWriter, OnFault
from app.backup.errors import FaultError

Raw = dict[str, Any]
# Reads and writes options of collections and indexes as they are.
EXACT: Final = CodecOptions[Raw](tz_aware=False, datetime_conversion=DatetimeConversion.DATETIME_MS)
_PIECE: Final = 4 * 1024 * 1024
_SIZE: Final = struct.Struct("<i")
_SMALLEST_DOCUMENT: Final = 5
_COLLECTION, _DOCUMENTS, _END = b"C", b"D", b"E"


@dataclass(frozen=True)
class Collection:
    """A collection without its documents: how it and its indexes are made."""

    name: str
    options: Raw
    indexes: list[Raw]


class Documents(NamedTuple):
    """Some documents of the collection before it, as the database holds them."""

    content: memoryview
    number: int

    def each(self) -> Iterator[bytes]:
        at = 0
        while at < len(self.content):
            (size,) = _SIZE.unpack_from(self.content, at)
            yield bytes(self.content[at : at + size])
            at += size


@dataclass
class Contents:
    """What was met in an archive, or put into it."""

    collections: list[Collection] = field(default_factory=list)
    documents: dict[str, int] = field(default_factory=dict)

    def add(self, collection: Collection) -> None:
        self.collections.append(collection)
        self.documents[collection.name] = 0

    def count(self, documents: int) -> None:
        self.documents[self.collections[-1].name] += documents

    @property
    def total(self) -> int:
        return sum(self.documents.values())


class ArchiveWriter:
    def __init__(self, blocks: BlockWriter) -> None:
        self._blocks = blocks
        self.contents = Contents()

    def begin(self, collection: Collection) -> None:
        self.contents.add(collection)
        self._blocks.write(_COLLECTION + bson.encode(vars(collection)))

    def add(self, batch: bytes) -> None:
        """Documents of the collection that was begun last, one behind the other."""
        for piece in _pieces_of(batch):
            self._blocks.write(_DOCUMENTS + piece.content)
            self.contents.count(piece.number)

    def finish(self) -> str:
        """The checksum of the whole."""
        self._blocks.write(_END + bson.encode({"documents": self.contents.documents}), is_last=True)
        return self._blocks.checksum.hex()


class ArchiveReader:
    def __init__(self, file: BinaryIO) -> None:
        self._blocks = BlockReader(file)
        self.head = self._blocks.head
        self.contents = Contents()

    @property
    def position(self) -> int:
        """How far in the file it is."""
        return self._blocks.position

    @property
    def checksum(self) -> str:
        """That of the whole, once all of it is read."""
        return self._blocks.checksum.hex()

    def parts(self, key: bytes | None, on_fault: OnFault) -> Iterator[Collection | Documents]:
        """What there is, in its order. Whatever is wrong is told; who goes on then gets what can be read."""
        is_whole, ended = True, None

        def fault(text: str) -> None:
            nonlocal is_whole
            is_whole = False
            on_fault(text)

        for block in self._blocks.blocks(key, fault):
            kind, content = (b"", b"") if block.content is None else (block.content[:1], block.content[1:])
            if kind == _COLLECTION:
                collection = Collection(**bson.decode(content, EXACT))
                self.contents.add(collection)
                yield collection
            elif kind == _DOCUMENTS and self.contents.collections:
                documents = _counted(content)
                self.contents.count(documents.number)
                yield documents
            elif kind == _END:
                ended = bson.decode(content)["documents"]
        if is_whole and ended != self.contents.documents:
            on_fault(f"it holds {self.contents.documents} documents where it says {ended}")


def refuse(fault: str) -> None:
    """For who does not go on after a fault."""
    raise FaultError(fault)


def _pieces_of(batch: bytes) -> Iterator[Documents]:
    """Documents together up to some size; what passes through memory is as much, however many there are."""
    view, start, at, count = memoryview(batch), 0, 0, 0
    while at < len(view):
        (size,) = _SIZE.unpack_from(view, at)
        if count and at + size - start > _PIECE:
            yield Documents(view[start:at], count)
            start, count = at, 0
        at, count = at + size, count + 1
    if count:
        yield Documents(view[start:], count)


def _counted(content: bytes) -> Documents:
    at, count = 0, 0
    while at < len(content):
        size = _SIZE.unpack_from(content, at)[0] if len(content) - at >= _SMALLEST_DOCUMENT else 0
        if not _SMALLEST_DOCUMENT <= size <= len(content) - at:
            raise FaultError("documents in it do not end where they say")
        at, count = at + size, count + 1
    return Documents(memoryview(content), count)
