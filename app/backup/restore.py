"""From an archive to a database: all of it or nothing, whatever happens in between.

The collections are made beside those that are there. When all are, the journal says so, and from then on each takes its
place by one renaming, which the database does at once. Who is cut off before leaves the database as it was; who is cut
off in between leaves one that nothing but `resume` works on. See docs/decisions/0033-backup.md.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from app.backup.archive import ArchiveReader, Collection, Contents, Documents, Raw, refuse
from app.backup.errors import BackupError
from app.backup.journal import OTHER, Journal, require_whole
from app.backup.place import Named
from app.backup.progress import Progress, Step
from app.backup.staging import Staging, is_of_a_restore, let_expire, staged_collections
from app.core.version import VERSION
from app.db.presence import RESTORE, SERVICE, clients_of
from app.db.restore_state import LOADED, REPLACING

Alone = Callable[[], None]
_PATIENCE_SECONDS: Final = 2.0  # for the server to see that somebody has gone
_POLL_SECONDS: Final = 0.1


def alone_in(database: Database[Raw], own_name: str) -> Alone:
    """What refuses to go on while a service or another restore works on the database."""

    def require_alone() -> None:
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while others := _others(database, own_name):
            if time.monotonic() > give_up_at:
                raise BackupError(f"At work on {database.name}: {', '.join(others)}. Stop that first.")
            time.sleep(_POLL_SECONDS)

    return require_alone


def verify(archive: Named, key: bytes | None, on_fault: Callable[[str], None], progress: Progress) -> ArchiveReader:
    """Read all of it, and tell everything that is wrong."""
    with (
        archive.place.open(archive.name) as file,
        progress.step("verifying", archive.place.size(archive.name)) as step,
    ):
        reader = ArchiveReader(file)
        for _ in reader.parts(key, on_fault):
            step.reach(reader.position)
    return reader


def restore(
    database: Database[Raw],
    archive: Named,
    key: bytes | None,
    *,
    may_replace: bool,
    require_alone: Alone,
    progress: Progress,
) -> Contents:
    """Make the database what the archive holds."""
    require_alone()
    _require_room(database, may_replace=may_replace)
    verified = verify(archive, key, refuse, progress)
    _require_known_version(verified)
    _require_no_view(database, verified.contents)
    discard(database)
    journal = Journal.begin(database, archive.name, list(verified.contents.documents))
    try:
        _load(database, journal, archive, key, expected=verified, progress=progress)
    except BaseException:
        _undo(database, journal)
        raise
    _replace(database, journal, require_alone)
    return verified.contents


def resume(database: Database[Raw], require_alone: Alone) -> str:
    """Finish a restore that was cut off when everything was there. The name of its archive."""
    journal = Journal.find(database)
    if journal is None:
        raise BackupError("There is nothing to resume: no restore of this database was cut off.")
    if journal.state not in {LOADED, REPLACING}:
        raise BackupError(
            f"The restore of {journal.archive} was cut off before anything was replaced: the database is as it was. "
            "Restore again, or remove what is left: restore --discard."
        )
    require_alone()
    _replace(database, journal, require_alone)
    return journal.archive


def discard(database: Database[Raw]) -> None:
    """Remove what a restore has left that was cut off before it replaced anything."""
    journal = Journal.find(database)
    if journal is None:
        return
    if journal.state == REPLACING:
        raise BackupError(f"The restore of {journal.archive} has begun to replace collections: restore --resume.")
    _undo(database, journal)


def _undo(database: Database[Raw], journal: Journal) -> None:
    """Remove what a restore has made. One that has begun meanwhile is left alone, and so is this one once resumed."""
    is_last = journal.note_discarding()
    if is_last or not journal.is_replacing():
        for name in staged_collections(database, journal):
            database.drop_collection(name)
    if is_last:
        journal.close()


def _load(
    database: Database[Raw],
    journal: Journal,
    archive: Named,
    key: bytes | None,
    *,
    expected: ArchiveReader,
    progress: Progress,
) -> None:
    staging, position = Staging(database, journal), 0
    with archive.place.open(archive.name) as file, progress.step("restoring", expected.position) as step:
        reader = ArchiveReader(file)
        staging.load(_watched(reader, key, step))
        position = reader.position
    if (reader.checksum, position) != (expected.checksum, expected.position):
        raise BackupError("The archive was changed while it was read.")
    with progress.step("indexes", None):
        journal.note_loaded(staging.finish(reader.contents))


def _watched(reader: ArchiveReader, key: bytes | None, step: Step) -> Iterator[Collection | Documents]:
    for part in reader.parts(key, refuse):
        yield part
        step.reach(reader.position)


def _replace(database: Database[Raw], journal: Journal, require_alone: Alone) -> None:
    """Let the new collections take their places. Every step may have been done before."""
    if journal.state != REPLACING:
        _note_replacing(database, journal, require_alone)
    try:
        _put_in_place(database, journal)
    except (PyMongoError, KeyboardInterrupt) as error:
        raise BackupError(
            f"It was cut off while it put the collections in place ({type(error).__name__}), and nothing may work on "
            f"{database.name} now. Finish it: restore --resume."
        ) from error


def _note_replacing(database: Database[Raw], journal: Journal, require_alone: Alone) -> None:
    """Begin, unless somebody is there; whoever is kept from it leaves a database that others may work on."""
    kept = set(journal.collections)
    found = database.list_collection_names(filter={"type": "collection"})
    try:
        journal.note_replacing([name for name in found if name not in kept and not _is_apart(name)])
        require_alone()  # whoever comes after the note reads it, so whoever is not there now stays away
    except KeyboardInterrupt as error:
        journal.note_not_replacing()
        raise BackupError(
            "Interrupted before anything was replaced. Go on: restore --resume. Or remove what is left: restore "
            "--discard."
        ) from error
    except BackupError as error:
        journal.note_not_replacing()
        raise error if error is OTHER else BackupError(f"{error} Then: restore --resume.") from error


def _put_in_place(database: Database[Raw], journal: Journal) -> None:
    there = set(database.list_collection_names())
    for name in journal.collections:
        if journal.staged(name) in there:
            database[journal.staged(name)].rename(name, dropTarget=True)
    for name in journal.obsolete:
        database.drop_collection(name)
    for collection, index, seconds in journal.expiring:
        let_expire(database, collection, index, seconds)
    journal.close()


def _require_room(database: Database[Raw], *, may_replace: bool) -> None:
    require_whole(database)
    there = [name for name in database.list_collection_names() if not _is_apart(name)]
    if there and not may_replace:
        raise BackupError(
            f"The database {database.name} has {len(there)} collections, which would be replaced: say --replace, or "
            "--to-database NAME to restore beside it."
        )


def _require_known_version(archive: ArchiveReader) -> None:
    made_by = archive.head["made_by"]
    if _parts(made_by) > _parts(VERSION):
        raise BackupError(f"The archive was made by Octopus {made_by}, which is newer than this one, {VERSION}.")


def _require_no_view(database: Database[Raw], contents: Contents) -> None:
    """A collection can take the place of a collection only."""
    others = database.list_collection_names(filter={"type": {"$ne": "collection"}})
    if taken := sorted(contents.documents.keys() & set(others)):
        raise BackupError(f"The database has a view of the name {taken[0]}: drop it first.")


def _parts(version: str) -> list[int]:
    """Without the commit behind it: by that none is newer than another."""
    return [int(part) for part in version.partition("+")[0].split(".")]


def _is_apart(name: str) -> bool:
    """Whether it is no collection of the service."""
    return name.startswith("system.") or is_of_a_restore(name)


def _others(database: Database[Raw], own_name: str) -> list[str]:
    try:
        found = clients_of(database.client, database.name)
    except OperationFailure as error:
        raise BackupError(
            "This user may not see who is at work on the database (the privilege `inprog`). Stop the service, and say "
            "--service-is-stopped."
        ) from error
    kinds = {RESTORE: "another restore", SERVICE: "the service"}
    return sorted(f"{kinds[name.partition(':')[0]]} at {address}" for name, address in found if name != own_name)
