"""Reading a database as it was at one moment, while others write to it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, cast

from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure

from app.backup.archive import EXACT, Collection, Raw
from app.backup.errors import BackupError
from app.backup.journal import require_whole
from app.backup.staging import is_of_a_restore

_WINDOW: Final = "minSnapshotHistoryWindowInSeconds"
_USUAL_WINDOW: Final = 300
_SNAPSHOT_TOO_OLD: Final = 239
_SNAPSHOT_UNAVAILABLE: Final = 246


class CatalogueChangedError(BackupError):
    """A collection or an index was made, dropped or renamed: begin again."""


class Snapshot:
    """Collections as they are now, and their documents as they were when it was opened."""

    def __init__(self, database: Database[Raw], session: ClientSession) -> None:
        self._database = database
        self._session = session
        self._known = _catalogue(database)
        self._history = _History(database)
        self.collections = _described(database, self._known)
        if not self._known:
            raise BackupError(f"There is nothing in the database {database.name}.")
        # The first read chooses the moment. What collections there are can't be read from a snapshot: so they must be
        # the same before and after it.
        with _translated():
            database[next(iter(self._known))].find_one({}, {"_id": 1}, session=session)
        require_whole(database)  # a restore that is over by now has changed what is compared next
        now = _catalogue(database)
        if now != self._known or _described(database, now) != self.collections:
            raise CatalogueChangedError("Collections or indexes were made or dropped.")

    def batches(self, collection: str) -> Iterator[bytes]:
        """All documents, some at a time."""
        with _translated():
            for batch in self._database[collection].find_raw_batches({}, session=self._session):
                self._history.keep()
                yield cast("bytes", batch)  # the driver's types take it for a document

    def size(self) -> int:
        """About how many bytes there will be."""
        return sum(int(self._database.command("collStats", name)["size"]) for name in self._known)

    def require_same_collections(self) -> None:
        """One that was dropped meanwhile reads as an empty one: so ask at the end whether all are there."""
        now = _catalogue(self._database)
        if any(now.get(name) != information for name, information in self._known.items()):
            raise CatalogueChangedError("Collections were dropped or changed.")

    def close(self) -> None:
        self._history.let_go()


@contextmanager
def snapshot_of(database: Database[Raw]) -> Iterator[Snapshot]:
    """The moment lies in the block: every write that was acknowledged before is in what is read."""
    with database.client.start_session(snapshot=True) as session:
        snapshot = Snapshot(database, session)
        try:
            yield snapshot
        finally:
            snapshot.close()


class _History:
    """How long the server keeps what snapshots need. When half of that has passed, it is told to keep it for longer."""

    def __init__(self, database: Database[Raw]) -> None:
        self._admin = database.client.admin
        self._begun_at = time.monotonic()
        self._usual = self._window = _USUAL_WINDOW
        with suppress(OperationFailure):  # not everybody may ask
            self._usual = self._window = int(self._admin.command({"getParameter": 1, _WINDOW: 1})[_WINDOW])

    def keep(self) -> None:
        if time.monotonic() - self._begun_at > self._window / 2:
            self._window *= 2
            self._set(self._window)

    def let_go(self) -> None:
        if self._window != self._usual:
            self._set(self._usual)

    def _set(self, seconds: int) -> None:
        with suppress(OperationFailure):  # not everybody may: then it has to be done in the usual time
            self._admin.command({"setParameter": 1, _WINDOW: seconds})


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OperationFailure as error:
        if error.code == _SNAPSHOT_UNAVAILABLE:
            raise CatalogueChangedError("Indexes or collections were made.") from error
        if error.code == _SNAPSHOT_TOO_OLD:
            raise BackupError(
                "The backup took longer than the server keeps the past of its documents, and may not have it kept for "
                f"longer. Nothing was written. Let an administrator raise {_WINDOW} on every server."
            ) from error
        raise


def _catalogue(database: Database[Raw]) -> dict[str, Raw]:
    """What there is to be backed up, by its name."""
    found: dict[str, Raw] = {}
    for information in database.with_options(EXACT).list_collections():
        name: str = information["name"]
        if name.startswith("system.") or information["type"] == "view" or is_of_a_restore(name):
            continue
        kind = "capped" if information["options"].get("capped") else information["type"]
        if kind != "collection":
            raise BackupError(f"{name} is a {kind} collection, which can't be read from a snapshot. Octopus has none.")
        found[name] = dict(information)
    return dict(sorted(found.items()))


def _described(database: Database[Raw], catalogue: dict[str, Raw]) -> list[Collection]:
    exact = database.with_options(EXACT)
    return [
        Collection(name, dict(information["options"]), [dict(each) for each in exact[name].list_indexes()])
        for name, information in catalogue.items()
    ]
