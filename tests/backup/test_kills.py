"""Commands that are killed in the middle, and what is found then."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any, BinaryIO

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from app.backup import restore, take
from app.backup.errors import BackupError
from app.backup.folder_place import FolderPlace
from app.backup.journal import Journal
from app.backup.place import Named
from app.backup.progress import Progress
from app.db.mongo import connected
from app.db.restore_state import RestoreUnfinishedError
from tests.backup.conftest import Run
from tests.backup.terminal import Terminal

Raw = dict[str, Any]
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def fill(database: Database[Raw]) -> None:
    database.create_collection("jars", validator={"tea": {"$exists": True}}, validationLevel="moderate")
    database["jars"].insert_many([{"_id": number, "tea": "green"} for number in range(300)])
    database["jars"].create_index([("tea", 1), ("_id", -1)], name="tea", partialFilterExpression={"_id": {"$gt": 5}})
    database["jars"].create_index([("tea", "text")], name="words", default_language="none")
    database["cups"].create_index("until", name="expired", expireAfterSeconds=60)
    database["cups"].create_index("owner", name="owner_unique", unique=True, sparse=True)
    database["cups"].insert_many([{"_id": number, "until": LONG_AGO} for number in range(3)])
    database.create_collection("empty", collation={"locale": "de"})


def change(database: Database[Raw]) -> None:
    database["jars"].delete_many({"_id": {"$lt": 100}})
    database["jars"].drop_index("tea")
    database["cups"].drop()
    database["plates"].insert_one({"_id": 1})
    database["plates"].create_index("size", name="size")


def state(database: Database[Raw]) -> dict[str, Any]:
    """All that a restore could change."""
    found = {}
    for information in database.list_collections():
        name = information["name"]
        indexes = {index["name"]: dict(index) for index in database[name].list_indexes()}
        found[name] = (information["options"], indexes, list(database[name].find().sort("_id")))
    return found


def without_leftovers(database: Database[Raw]) -> dict[str, Any]:
    return {name: told for name, told in state(database).items() if not name.startswith("restore_")}


@pytest.fixture(scope="module")
def archive(terminal: Terminal, tmp_path_factory: pytest.TempPathFactory, mongodb: MongoClient[Raw]) -> str:
    """Of a database that was filled so."""
    folder = tmp_path_factory.mktemp("archive")
    address, replica_set = mongodb.address or ("", 0), mongodb.options.replica_set_name
    name = f"backup_of_{os.getpid()}"
    fill(mongodb[name])
    try:
        url = f"mongodb://{address[0]}:{address[1]}/{name}?replicaSet={replica_set}"
        ended = terminal.run(folder, "backup", "--to", str(folder), DATABASE_URL=url)
    finally:
        mongodb.drop_database(name)
    return str(folder / ended.archive)


class TestBackup:
    @pytest.mark.parametrize("moment", [("before", "find", 3), ("after", "find", 4), ("before", "publishing")], ids=str)
    def test_that_is_killed_leaves_no_archive(
        self, run: Run, database: Database[Raw], tmp_path: Path, moment: tuple[Any, ...]
    ) -> None:
        fill(database)
        before = state(database)

        killed = run("backup", kill=moment)

        assert killed.code == -9
        assert run("list").out == ""
        assert [path.suffix for path in (tmp_path / "backups").iterdir()] == [".draft"]
        assert state(database) == before
        whole = run("backup").archive
        assert [path.name for path in (tmp_path / "backups").iterdir()] == [whole]

    def test_that_is_told_to_end_leaves_nothing(self, run: Run, database: Database[Raw], tmp_path: Path) -> None:
        fill(database)

        ended = run("backup", kill=("before", "find", 3, 15))

        assert (ended.code, ended.err) == (1, "Interrupted.\n")
        assert list((tmp_path / "backups").iterdir()) == []


class TestRestore:
    @pytest.mark.parametrize(
        "moment",
        [
            ("after", "insert", 1),
            ("after", "create", 2),
            ("after", "insert", 2),
            ("after", "createIndexes", 2),
            ("before", "update", 1),
        ],
        ids=str,
    )
    def test_that_is_killed_while_it_loads_has_changed_nothing(
        self, run: Run, database: Database[Raw], archive: str, moment: tuple[Any, ...]
    ) -> None:
        fill(database)
        change(database)
        before = state(database)

        assert run("restore", archive, "--replace", kill=moment).code == -9

        assert without_leftovers(database) == before
        assert len(database.list_collection_names()) > len(before)  # it says so itself
        resumed = run("restore", "--resume")
        assert (resumed.code, "the database is as it was" in resumed.err) == (1, True)
        assert run("restore", "--discard").code == 0
        assert state(database) == before

    @pytest.mark.parametrize(
        "moment",
        [
            ("after", "update", 1),
            ("after", "update", 2),
            ("after", "renameCollection", 1),
            ("before", "renameCollection", 3),
            ("before", "drop", 1),
            ("before", "collMod", 2),
            ("before", "drop", 2),
        ],
        ids=str,
    )
    async def test_that_is_killed_while_it_replaces_is_finished_by_one_command(
        self, run: Run, database: Database[Raw], url: str, archive: str, moment: tuple[Any, ...]
    ) -> None:
        fill(database)
        expected = state(database)
        change(database)
        before = state(database)

        assert run("restore", archive, "--replace", kill=moment).code == -9

        if moment == ("after", "update", 1):  # everything is there, and nothing has begun
            assert without_leftovers(database) == before
        else:
            with pytest.raises(RestoreUnfinishedError, match="restore --resume"):
                async with connected(url):
                    pass
            for refused in (["backup"], ["restore", archive, "--replace"], ["restore", "--discard"]):
                ended = run(*refused)
                assert (ended.code, "restore --resume" in ended.err) == (1, True)
        assert run("restore", "--resume").code == 0
        assert state(database) == expected

    def test_that_is_told_to_end_while_it_replaces_says_how_to_go_on(
        self, run: Run, database: Database[Raw], archive: str
    ) -> None:
        fill(database)
        expected = state(database)
        change(database)

        ended = run("restore", archive, "--replace", kill=("before", "renameCollection", 2, 15))

        assert (ended.code, "Finish it: restore --resume" in ended.err) == (1, True)
        assert run("restore", "--resume").code == 0
        assert state(database) == expected

    @pytest.mark.parametrize("moment", [("after", "update", 2, 15), ("before", "aggregate", 5, 15)], ids=str)
    @pytest.mark.parametrize("command", ["--resume", "--discard"])
    def test_that_is_told_to_end_before_it_replaces_anything_locks_nobody_out(
        self, run: Run, database: Database[Raw], archive: str, moment: tuple[Any, ...], command: str
    ) -> None:
        """Once it has noted that it begins: while it notes that, and while it looks once more who is there."""
        fill(database)
        restored = state(database)
        change(database)
        before = state(database)

        ended = run("restore", archive, "--replace", kill=moment)

        assert (ended.code, ended.err.partition(". ")[0]) == (1, "Interrupted before anything was replaced")
        assert without_leftovers(database) == before
        assert run("backup").code == 0
        assert run("restore", command).code == 0
        assert state(database) == (restored if command == "--resume" else before)

    def test_that_is_told_to_end_leaves_another_alone_that_has_begun_to_replace(self, database: Database[Raw]) -> None:
        """As two operators can do who both finish a restore that was cut off."""
        Journal.begin(database, "tea.backup", ["cups"]).note_loaded([])
        first, second = Journal.find(database), Journal.find(database)
        assert first
        assert second
        first.note_replacing([])

        second.note_not_replacing()
        with pytest.raises(BackupError, match="Another restore"):
            second.note_replacing([])

        assert first.is_replacing()

    def test_lets_nothing_expire_before_it_is_in_place(self, run: Run, database: Database[Raw], archive: str) -> None:
        run("restore", archive, kill=("after", "createIndexes", 2))

        (cups,) = (name for name in database.list_collection_names() if name.endswith(".cups"))
        assert database[cups].index_information()["expired"]["expireAfterSeconds"] == 2_147_483_647
        assert database[cups].count_documents({}) == 3

    def test_that_was_cut_off_is_no_obstacle_to_another(self, run: Run, database: Database[Raw], archive: str) -> None:
        fill(database)
        expected = state(database)
        change(database)
        run("restore", archive, "--replace", kill=("after", "create", 2))

        assert run("restore", archive, "--replace").code == 0

        assert state(database) == expected

    def test_that_fails_leaves_another_alone_that_has_begun_meanwhile(
        self, database: Database[Raw], archive: str, tmp_path: Path
    ) -> None:
        """As two operators can do who both say that the service is stopped."""
        fill(database)
        change(database)
        expected = state(database)
        latest = Named(FolderPlace(tmp_path), take.back_up(database, FolderPlace(tmp_path), None, Progress()).name)
        has_begun, may_fail = Event(), Event()

        class Failing(Loading):
            def load(self) -> None:
                has_begun.set()
                may_fail.wait(10)
                raise BackupError("It fails.")

        class Overtaking(Loading):
            def load(self) -> None:
                may_fail.set()
                failing.join(10)

        def fail() -> None:
            with pytest.raises(BackupError, match="It fails"):
                restore_from(database, Named(Failing(Path(archive).parent), Path(archive).name))

        failing = Thread(target=fail)
        failing.start()
        assert has_begun.wait(10)
        restore_from(database, latest._replace(place=Overtaking(tmp_path)))

        assert state(database) == expected


class Loading(FolderPlace):
    """Is told when the archive, which was verified then, is read once more."""

    _opened = 0

    def load(self) -> None:
        raise NotImplementedError

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        self._opened += 1
        if self._opened > 1:
            self.load()
        with super().open(name) as file:
            yield file


def restore_from(database: Database[Raw], archive: Named) -> None:
    """As in a command that does not look for others."""
    options: dict[str, Any] = {"may_replace": True, "require_alone": lambda: None, "progress": Progress()}
    restore.restore(database, archive, None, **options)
