"""What a restore has done and has yet to do, in the database that it restores: whoever finds it can go on."""

import secrets
from typing import Final, NamedTuple

from bson import ObjectId
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from app.backup.archive import Raw
from app.backup.errors import BackupError
from app.core.clock import utc_now
from app.db.restore_state import DISCARDING, ENTRY, JOURNAL, LOADED, LOADING, REPLACING

OTHER: Final = BackupError("Another restore of this database has begun meanwhile; this one ends.")


class Expiring(NamedTuple):
    """An index that lets documents expire; until they are in place, none does."""

    collection: str
    name: str
    seconds: int


class Journal:
    """Every change of it is one conditional write, so of two restores one learns that it is not the one."""

    def __init__(self, database: Database[Raw], entry: Raw) -> None:
        self._entries = database[JOURNAL]
        self._entry = entry
        self._own = secrets.token_hex(8)  # of two that resume one restore, it says which began to replace

    @classmethod
    def begin(cls, database: Database[Raw], archive: str, collections: list[str]) -> "Journal":
        entry = {"_id": ENTRY, "restore": str(ObjectId()), "state": LOADING, "archive": archive, "at": utc_now()}
        try:
            database[JOURNAL].insert_one({**entry, "collections": collections})
        except DuplicateKeyError as error:
            raise OTHER from error
        return cls(database, {**entry, "collections": collections})

    @classmethod
    def find(cls, database: Database[Raw]) -> "Journal | None":
        entry = database[JOURNAL].find_one({"_id": ENTRY})
        return None if entry is None else cls(database, entry)

    @property
    def state(self) -> str:
        return str(self._entry["state"])

    @property
    def archive(self) -> str:
        return str(self._entry["archive"])

    @property
    def collections(self) -> list[str]:
        return list(self._entry["collections"])

    @property
    def obsolete(self) -> list[str]:
        """Collections that the archive does not have."""
        return list(self._entry["obsolete"])

    @property
    def expiring(self) -> list[Expiring]:
        return [Expiring(**each) for each in self._entry["expiring"]]

    def staged(self, collection: str) -> str:
        """The name that a collection has until it takes its place."""
        return f"restore_{self._entry['restore']}.{collection}"

    def note_loaded(self, expiring: list[Expiring]) -> None:
        self._move(LOADING, LOADED, expiring=[each._asdict() for each in expiring])

    def note_replacing(self, obsolete: list[str]) -> None:
        self._move(LOADED, REPLACING, obsolete=obsolete, by=self._own)

    def note_not_replacing(self) -> None:
        """As if nothing had begun, which is so, unless it was another that has."""
        where = {"_id": ENTRY, "restore": self._entry["restore"], "state": REPLACING, "by": self._own}
        self._entries.update_one(where, {"$set": {"state": LOADED}})

    def note_discarding(self) -> bool:
        """False when it has begun to replace, is over, or another has begun since."""
        where = {"_id": ENTRY, "restore": self._entry["restore"], "state": {"$ne": REPLACING}}
        return self._entries.update_one(where, {"$set": {"state": DISCARDING}}).matched_count == 1

    def is_replacing(self) -> bool:
        """As it is by now: somebody else may have resumed it."""
        where = {"_id": ENTRY, "restore": self._entry["restore"], "state": REPLACING}
        return self._entries.find_one(where) is not None

    def close(self) -> None:
        self._entries.drop()

    def _move(self, before: str, after: str, **more: object) -> None:
        change = {"state": after, **more}
        where = {"_id": ENTRY, "restore": self._entry["restore"], "state": before}
        if self._entries.update_one(where, {"$set": change}).matched_count == 0:
            raise OTHER
        self._entry |= change


def require_whole(database: Database[Raw]) -> None:
    """Refuse a database of which a part is the old one, and a part the restored one."""
    journal = Journal.find(database)
    if journal is not None and journal.state == REPLACING:
        raise BackupError(f"The restore of {journal.archive} was cut off: finish it first, restore --resume.")
