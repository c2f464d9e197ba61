"""From a database to an archive."""

import secrets
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from pymongo.database import Database
from pymongo.errors import OperationFailure

from app.backup.archive import ArchiveReader, ArchiveWriter, Contents, Raw
from app.backup.blocks import BlockWriter
from app.backup.errors import BackupError, FaultError
from app.backup.folder_place import SUFFIX
from app.backup.key import described
from app.backup.place import Place
from app.backup.progress import Progress, Step
from app.backup.snapshot import CatalogueChangedError, Snapshot, snapshot_of
from app.core.clock import utc_now
from app.core.version import VERSION

_ATTEMPTS: Final = 20
_EVERY_SECONDS: Final = 1.0


class Taken(NamedTuple):
    name: str
    contents: Contents
    checksum: str


class Listed(NamedTuple):
    """An archive, and what its head says, or why that can't be read."""

    name: str
    size: int
    head: dict[str, Any] | None
    fault: str

    @property
    def at(self) -> str:
        return "" if self.head is None else str(self.head["at"])


def back_up(database: Database[Raw], place: Place, key: bytes | None, progress: Progress) -> Taken:
    """Write an archive of the database as it is now.

    It begins again when collections or indexes are made meanwhile, as by a service that starts for the first time, and
    when the server itself has only just started: then there is no snapshot yet.
    """
    attempt = 1
    while True:
        try:
            return _attempt(database, place, key, progress)
        except CatalogueChangedError as error:
            if attempt == _ATTEMPTS:
                raise BackupError(f"{error} Nothing was written. Try again when that is done.") from error
            attempt += 1
            _let_pass(database)


def listed(place: Place) -> Iterator[Listed]:
    """All that there are; one that can't be read is in nobody's way."""
    for name in place.names():
        size, head, fault = 0, None, ""
        try:
            size = place.size(name)
            with place.open(name) as file:
                head = ArchiveReader(file).head
        except FaultError as error:
            fault = f"DAMAGED: {error}"
        except BackupError as error:
            fault = str(error)
        yield Listed(name, size, head, fault)


def remove_older(place: Place, latest: str, database: str, *, keep: int) -> Iterator[str]:
    """Remove all archives of the database but the latest, which is the latest whatever the clocks say."""
    archives = [each for each in listed(place) if each.head is not None and each.head["database"] == database]
    others = [each for each in archives if each.name != latest]
    older = sorted(others, key=lambda each: each.at, reverse=True)[keep - 1 :]
    for each in older:
        place.remove(each.name)
        yield each.name


def _attempt(database: Database[Raw], place: Place, key: bytes | None, progress: Progress) -> Taken:
    at = utc_now()  # what was acknowledged before is in the snapshot
    with snapshot_of(database) as snapshot, progress.step("backing up", snapshot.size()) as step:
        name = f"{database.name}-{at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}{SUFFIX}"
        with place.draft(name) as out:
            blocks = BlockWriter(out, _head(database, snapshot, at, key), key)
            archive = ArchiveWriter(blocks)
            _copy(snapshot, archive, step)
            snapshot.require_same_collections()
            checksum = archive.finish()
    return Taken(name, archive.contents, checksum)


def _let_pass(database: Database[Raw]) -> None:
    """Let there be a later moment to read at. A server to which nobody writes makes one every 10 s by itself."""
    try:
        database.client.admin.command({"appendOplogNote": 1, "data": {"octopus": "backup"}})
    except OperationFailure:  # not everybody may
        time.sleep(_EVERY_SECONDS)


def _copy(snapshot: Snapshot, archive: ArchiveWriter, step: Step) -> None:
    for collection in snapshot.collections:
        archive.begin(collection)
        for batch in snapshot.batches(collection.name):
            archive.add(batch)
            step.advance(len(batch))


def _head(database: Database[Raw], snapshot: Snapshot, at: datetime, key: bytes | None) -> dict[str, Any]:
    """What anybody may know."""
    return {
        "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "made_by": VERSION,
        "database": database.name,
        "collections": [collection.name for collection in snapshot.collections],
        "encryption": None if key is None else described(key),
    }
