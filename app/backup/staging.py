"""Making collections beside those that are there, under names of their own, with everything but a life that ends."""

import re
from collections.abc import Iterable
from typing import Final

from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from app.backup.archive import EXACT, Collection, Contents, Documents, Raw
from app.backup.errors import BackupError
from app.backup.journal import Expiring, Journal
from app.db.restore_state import JOURNAL

_STAGED: Final = re.compile(r"restore_[0-9a-f]{24}\.")
_NEVER: Final = 2**31 - 1  # the longest life that an index can give: 68 years after the time in the document


def is_of_a_restore(name: str) -> bool:
    return name == JOURNAL or _STAGED.match(name) is not None


def staged_collections(database: Database[Raw], journal: Journal) -> list[str]:
    """What a restore has made that is in no place yet."""
    return [name for name in database.list_collection_names() if name.startswith(journal.staged(""))]


class Staging:
    """The collections of one restore, before they take their places."""

    def __init__(self, database: Database[Raw], journal: Journal) -> None:
        self._database = database.with_options(EXACT)
        self._journal = journal

    def load(self, parts: Iterable[Collection | Documents]) -> None:
        name = ""
        for part in parts:
            if isinstance(part, Collection):
                name = self._journal.staged(part.name)
                self._database.create_collection(name, **part.options)
            else:
                documents = [RawBSONDocument(each) for each in part.each()]
                self._database[name].insert_many(documents, ordered=False, bypass_document_validation=True)

    def finish(self, contents: Contents) -> list[Expiring]:
        """Make the indexes and count what is there. The indexes that are yet to let documents expire."""
        expiring = [each for collection in contents.collections for each in self._make_indexes(collection)]
        for name, expected in contents.documents.items():
            if (found := self._database[self._journal.staged(name)].count_documents({})) != expected:
                raise BackupError(f"{name} has {found} documents where the archive has {expected}.")
        return expiring

    def _make_indexes(self, collection: Collection) -> list[Expiring]:
        """Documents whose time has come must not go before they are in place: nobody would know how many there were."""
        indexes = [dict(each) for each in collection.indexes if each["name"] != "_id_" and not each.get("clustered")]
        expiring = []
        for index in indexes:
            if "expireAfterSeconds" in index:
                expiring.append(Expiring(collection.name, index["name"], int(index["expireAfterSeconds"])))
                index["expireAfterSeconds"] = _NEVER
        staged = self._journal.staged(collection.name)
        if indexes:
            self._database.command({"createIndexes": staged, "indexes": indexes})
        for _, name, _ in expiring:  # who may not do this must learn it now, not when there is no way back
            let_expire(self._database, staged, name, _NEVER)
        return expiring


def let_expire(database: Database[Raw], collection: str, index: str, seconds: int) -> None:
    database.command({"collMod": collection, "index": {"name": index, "expireAfterSeconds": seconds}})
