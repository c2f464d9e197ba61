"""`backup_db.py`, as operators type it."""

import io
import re
import secrets
import shlex
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest.mock import ANY

import pytest
from azure.storage.blob import BlobServiceClient
from pymongo import MongoClient
from pymongo.database import Database

from app.backup import snapshot, take
from app.backup.blocks import BlockReader, BlockWriter
from app.backup.errors import BackupError
from app.backup.folder_place import FolderPlace
from app.backup.journal import Journal
from app.backup.place import Named
from app.backup.progress import Progress
from app.backup.restore import verify
from app.db.presence import database_of
from tests import old_database
from tests.azure_app import azurite
from tests.azurite_server import AzuriteServer
from tests.backup.conftest import Run
from tests.backup.terminal import PROJECT, Terminal
from tests.backup.test_kills import fill, state
from tests.conftest import SECRET, Serve
from tests.scripts.program import program_of

__all__ = ["azurite"]  # the fixture
KEY = urlsafe_b64encode(secrets.token_bytes(32)).decode()
OTHER_KEY = urlsafe_b64encode(secrets.token_bytes(32)).decode()
MIB = 1024 * 1024
PAGE = (PROJECT / "docs" / "backup.md").read_text()
Raw = dict[str, Any]


def fill_with(database: Database[Raw], megabytes: int) -> None:
    """Documents that can't be compressed."""
    for _ in range(megabytes):
        database["bytes"].insert_many([{"b": secrets.token_bytes(65_000)} for _ in range(16)])


class TestBackup:
    def test_is_for_its_owner_alone_and_is_listed(self, run: Run, database: Database[Raw], tmp_path: Path) -> None:
        fill(database)

        name = run("backup").archive

        path = tmp_path / "backups" / name
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        listed = run("list").out
        assert listed.startswith(f"{name}  20")
        assert listed.endswith(f"  {path.stat().st_size} bytes  3 collections  by 0.1.0  not encrypted\n")
        assert "3 collections, 303 documents of 20" in run("verify", name).out

    def test_keeps_the_latest_of_this_database(self, run: Run, database: Database[Raw], tmp_path: Path) -> None:
        fill(database)
        stranger = tmp_path / "backups" / "other-20200101T000000Z-0000.backup"
        first, second = run("backup").archive, run("backup").archive
        stranger.write_bytes(b"octopus backup\n")

        third = run("backup", "--keep", "2")

        assert third.out.splitlines()[3:] == [f"Removed: {first}"]
        names = {path.name for path in (tmp_path / "backups").iterdir()}
        assert names == {second, third.archive, stranger.name}
        assert f"{stranger.name}  15 bytes  DAMAGED: the head was" in run("list").out

    def test_is_made_and_listed_beside_what_can_not_be_read(
        self, run: Run, database: Database[Raw], tmp_path: Path
    ) -> None:
        fill(database)
        first = tmp_path / "backups" / run("backup").archive
        later = first.with_name("1-later.backup")
        later.write_bytes(saying(first.read_bytes(), format=2))

        made = run("backup", "--keep", "1")

        assert made.out.splitlines()[3:] == [f"Removed: {first.name}"]
        listed = run("list").out.splitlines()
        assert f"{later.name}  {later.stat().st_size} bytes  The archive has the format 2" in listed[0]
        assert listed[1].startswith(made.archive)

    def test_is_listed_beside_one_that_is_removed_meanwhile(
        self, run: Run, database: Database[Raw], tmp_path: Path
    ) -> None:
        fill(database)
        made = run("backup").archive

        class Vanishing(FolderPlace):
            def names(self) -> Iterator[str]:
                yield from ("gone.backup", *super().names())

        listed = list(take.listed(Vanishing(tmp_path / "backups")))

        assert [each.name for each in listed] == ["gone.backup", made]
        assert [each.head is None for each in listed] == [True, False]
        assert "No such file" in listed[0].fault

    def test_keeps_what_it_has_just_made_when_the_clock_was_put_back(
        self, run: Run, database: Database[Raw], tmp_path: Path
    ) -> None:
        fill(database)
        before = tmp_path / "backups" / run("backup").archive
        before.write_bytes(saying(before.read_bytes(), at="2099-01-01T00:00:00.000Z"))

        latest = run("backup", "--keep", "1")

        assert latest.out.splitlines()[3:] == [f"Removed: {before.name}"]
        assert [path.name for path in before.parent.iterdir()] == [latest.archive]

    def test_begins_again_when_collections_change_meanwhile(self, database: Database[Raw], tmp_path: Path) -> None:
        fill(database)
        changes: list[Callable[[], object]] = [
            lambda: move_about(database, "jars"),  # its documents can't be read from the snapshot any more
            lambda: database.drop_collection("empty"),  # it would read as empty
        ]

        class Changing(FolderPlace):
            @contextmanager
            def draft(self, name: str) -> Iterator[BinaryIO]:
                with super().draft(name) as out:
                    if changes:
                        changes.pop()()
                    yield out

        place = Changing(tmp_path)
        taken = take.back_up(database, place, None, Progress())

        assert changes == []
        assert [path.name for path in tmp_path.iterdir()] == [taken.name]
        reader = verify(Named(place, taken.name), None, pytest.fail, Progress())
        assert reader.contents.documents == {"cups": 3, "jars": 300}

    def test_is_none_of_a_database_that_a_restore_has_left_half_replaced_meanwhile(
        self, database: Database[Raw], tmp_path: Path
    ) -> None:
        fill(database)

        class Replaced(FolderPlace):
            @contextmanager
            def draft(self, name: str) -> Iterator[BinaryIO]:
                with super().draft(name) as out:
                    if Journal.find(database) is None:
                        journal = Journal.begin(database, "tea.backup", ["cups", "jars"])
                        journal.note_loaded([])
                        journal.note_replacing([])
                        move_about(database, "jars")
                    yield out

        with pytest.raises(BackupError, match="restore --resume"):
            take.back_up(database, Replaced(tmp_path), None, Progress())

        assert list(tmp_path.iterdir()) == []

    def test_has_the_server_keep_the_past_for_as_long_as_it_takes(
        self, database: Database[Raw], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(database)
        window = {"getParameter": 1, "minSnapshotHistoryWindowInSeconds": 1}
        times = iter([0.0, 200.0, 200.0])
        monkeypatch.setattr(snapshot, "time", SimpleNamespace(monotonic=lambda: next(times)))

        with snapshot.snapshot_of(database) as opened:
            list(opened.batches("jars"))
            during = database.client.admin.command(window)

        after = database.client.admin.command(window)
        name = "minSnapshotHistoryWindowInSeconds"
        assert (during[name], after[name]) == (600, 300)

    @pytest.mark.parametrize(
        ("url", "fault"),
        [
            (
                "mongodb://ada:green/Tea@127.0.0.1/octopus",
                "is no URL of MongoDB; a user and a password in it must be percent-encoded",
            ),
            (
                "mongodb://ada:Tea@127.0.0.1,127.0.0.2/octopus?directConnection=true",
                "can't be used; is the host right, and are the options?",
            ),
        ],
    )
    def test_says_what_is_wrong_with_an_url_without_a_word_of_it(self, run: Run, url: str, fault: str) -> None:
        assert run("backup", DATABASE_URL=url)[:3] == (1, "", f"DATABASE_URL: {fault}\n")

    def test_names_each_setting_that_is_wrong(self, run: Run) -> None:
        refused = run("backup", WORKERS="many", BCRYPT_ROUNDS="few")

        assert (refused.code, refused.out) == (1, "")
        assert [line.partition(":")[0] for line in refused.err.splitlines()] == ["workers", "bcrypt_rounds"]

    @pytest.mark.parametrize("place", ["azure", "azure:nightly"])
    def test_makes_no_folder_for_what_is_meant_for_azure(
        self, run: Run, database: Database[Raw], tmp_path: Path, place: str
    ) -> None:
        fill(database)

        refused = [run("backup", "--to", place), run("list", place)]

        assert [(each.code, each.out) for each in refused] == [(1, "")] * 2
        assert all(each.err.startswith(f"{place}: the storage account is azure: and no more") for each in refused)
        assert not (tmp_path / place).exists()
        assert run("backup", "--to", f"./{place}").code == 0

    def test_refuses_what_has_no_snapshot(self, run: Run, database: Database[Raw]) -> None:
        nothing = run("backup")
        database.create_collection("ring", capped=True, size=4096)
        capped = run("backup")

        assert (nothing.code, nothing.err) == (1, f"There is nothing in the database {database.name}.\n")
        assert (capped.code, capped.err.partition(",")[0]) == (1, "ring is a capped collection")


class TestEncryption:
    def test_needs_the_key_and_tells_it_to_nobody(self, run: Run, database: Database[Raw], tmp_path: Path) -> None:
        fill(database)
        before = state(database)
        key_file = tmp_path / "key"
        key_file.write_text(f"{KEY}\n")

        made = run("backup", BACKUP_KEY=KEY)

        content = (tmp_path / "backups" / made.archive).read_bytes()
        assert b"green" not in content
        ended = [
            made,
            run("list"),
            run("verify", made.archive, BACKUP_KEY_FILE=str(key_file)),
            run("verify", made.archive),
            run("restore", made.archive, "--replace", BACKUP_KEY=OTHER_KEY),
            run("verify", made.archive, BACKUP_KEY=KEY[:-4]),
            run("verify", made.archive, BACKUP_KEY=KEY, BACKUP_KEY_FILE=str(key_file)),
            run("verify", made.archive, BACKUP_KEY_FILE=str(tmp_path / "none")),
        ]
        assert [each.code for each in ended] == [0, 0, 0, 1, 1, 1, 1, 1]
        assert "encrypted under the key " in ended[3].err
        assert "; ours is " in ended[4].err
        assert state(database) == before
        assert [KEY[:40] in each.out + each.err for each in ended] == [False] * 8
        database.client.drop_database(database.name)
        assert run("restore", made.archive, BACKUP_KEY_FILE=str(key_file)).code == 0
        assert state(database) == before

    def test_takes_no_archive_in_clear_where_there_is_a_key(self, run: Run, database: Database[Raw]) -> None:
        fill(database)
        clear, sealed = run("backup").archive, run("backup", BACKUP_KEY=KEY).archive
        database["jars"].delete_one({"_id": 7})
        before = state(database)

        refused = [run(*command, BACKUP_KEY=KEY) for command in (("verify", clear), ("restore", clear, "--replace"))]

        assert [each.code for each in refused] == [1, 1]
        assert ["The archive is not encrypted, though there is a key" in each.err for each in refused] == [True] * 2
        assert state(database) == before
        assert ", not encrypted: whole.\n" in run("verify", clear).out
        assert re.search(
            r", encrypted under the key [0-9a-f]{12}: whole\.\n", run("verify", sealed, BACKUP_KEY=KEY).out
        )


class TestRestore:
    def test_refuses_what_it_must_not_do_and_changes_nothing(
        self, run: Run, database: Database[Raw], tmp_path: Path
    ) -> None:
        fill(database)
        archive = tmp_path / "backups" / run("backup").archive
        database["jars"].delete_one({"_id": 7})
        before = state(database)
        content = archive.read_bytes()
        damaged, newer = tmp_path / "damaged.backup", tmp_path / "newer.backup"
        damaged.write_bytes(content[:-300] + bytes([content[-300] ^ 1]) + content[-299:])
        newer.write_bytes(saying(content, made_by="99.0.0+4f2a9c1"))

        refused = [
            run("restore", str(archive)),
            run("restore", str(damaged), "--replace"),
            run("restore", str(newer), "--replace"),
            run("restore", str(tmp_path / "none.backup"), "--replace"),
            run("restore", "--resume"),
            run("restore", "azure:any", "--replace"),
        ]

        assert [each.code for each in refused] == [1] * 6
        words = [
            "say --replace",
            "FAULT: block ",
            "99.0.0+4f2a9c1, which is newer",
            "No such file",
            "nothing to resume",
            "azure: needs AZURE",
        ]
        assert [word in each.err for word, each in zip(words, refused, strict=True)] == [True] * 6, refused
        assert state(database) == before
        found = run("verify", str(damaged))
        assert (found.code, found.err) == (1, "1 faults: this archive can't be restored.\n")
        assert re.fullmatch(r"FAULT: block \d+ \(byte \d+\) was altered, or is not the one of its place\n", found.out)

    @pytest.mark.parametrize("name", ["", "admin"])
    def test_never_takes_another_database_for_the_one_that_is_named(
        self, run: Run, database: Database[Raw], name: str
    ) -> None:
        fill(database)
        archive = run("backup").archive
        database["jars"].delete_one({"_id": 7})
        before = state(database)

        assert run("restore", archive, "--replace", "--to-database", name)[:2] == (2, "")

        assert state(database) == before

    def test_takes_what_an_image_has_made_whose_version_names_its_commit(
        self, run: Run, database: Database[Raw], tmp_path: Path
    ) -> None:
        fill(database)
        before = state(database)
        archive = tmp_path / "backups" / run("backup").archive
        archive.write_bytes(saying(archive.read_bytes(), made_by="0.1.0+4f2a9c1"))
        database["jars"].drop()

        assert run("restore", str(archive), "--replace") == (0, ANY, "", ANY)

        assert state(database) == before

    @pytest.mark.parametrize("ending", ["", "#green"])
    async def test_waits_for_no_service_that_goes_on(
        self, run: Run, serve: Serve, mongodb: MongoClient[Raw], url: str, ending: str, request: pytest.FixtureRequest
    ) -> None:
        url = url.replace("?", f"{ending}?")
        database = mongodb.get_database(database_of(url))
        request.addfinalizer(lambda: mongodb.drop_database(database.name))
        run = partial(run, DATABASE_URL=url)
        async with serve(database_url=url):
            archive = run("backup").archive
            before = database["installation"].count_documents({})
            refused = run("restore", archive, "--replace")
        restored = run("restore", archive, "--replace")

        assert before > 0
        assert (refused.code, refused.err) == (
            1,
            f"At work on {database.name}: the service at 127.0.0.1. Stop that first.\n",
        )
        assert restored.code == 0

    async def test_of_an_older_version_is_brought_up_to_date_by_the_next_start(
        self, run: Run, serve: Serve, database: Database[Raw], url: str
    ) -> None:
        """Also where the one that it replaces was up to date already."""
        old_database.fill(database)
        archive = run("backup").archive
        async with serve(database_url=url):
            pass

        assert run("restore", archive, "--replace").code == 0

        is_old = {"nth": {"$exists": False}}
        assert database["messages"].count_documents(is_old) > 4100
        assert "schema" not in database["installation"].distinct("_id")
        async with serve(database_url=url):
            assert database["messages"].count_documents(is_old) == 0
            assert "words" in database["messages"].index_information()

    def test_uses_as_much_memory_for_much_as_for_little(self, run: Run, database: Database[Raw]) -> None:
        """40 MB are more than any buffer on the way holds; 120 MB are three times as much."""
        peaks: list[tuple[int, int]] = []
        for megabytes in (40, 120):
            fill_with(database, megabytes - len(peaks) * 40)
            made = run("backup")
            database.drop_collection("bytes")
            restored = run("restore", made.archive)
            assert database["bytes"].count_documents({}) == megabytes * 16
            peaks.append((made.peak, restored.peak))

        assert [abs(much - little) < 24 * MIB for little, much in zip(*peaks, strict=True)] == [True, True], peaks


class TestAzure:
    def test_has_whole_archives_only(self, run: Run, database: Database[Raw], azurite: AzuriteServer) -> None:
        fill(database)
        fill_with(database, 20)  # more than one block
        before = state(database)
        settings = {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection, "BACKUP_KEY": KEY}
        settings["AZURE_BACKUP_CONTAINER"] = f"backups-{secrets.token_hex(4)}"

        killed = run("backup", "--to", "azure:", kill=("after", "find", 5), **settings)
        nothing = run("list", "azure:", **settings)
        archive = f"azure:{run('backup', '--to', 'azure:', **settings).archive}"

        assert (killed.code, nothing.code, nothing.out) == (-9, 0, "")
        assert run("verify", archive, **settings).code == 0
        database["jars"].drop()
        assert run("restore", archive, "--replace", **settings).code == 0
        assert state(database) == before
        again = run("backup", "--to", "azure:", "--keep", "1", **settings)
        assert run("list", "azure:", **settings).out.split("  ")[0] == again.archive

    def test_names_what_it_has_made_also_where_it_may_remove_nothing(
        self, run: Run, database: Database[Raw], azurite: AzuriteServer
    ) -> None:
        fill(database)
        container = f"backups-{secrets.token_hex(4)}"
        settings = {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection, "AZURE_BACKUP_CONTAINER": container}
        first = run("backup", "--to", "azure:", **settings).archive
        with BlobServiceClient.from_connection_string(azurite.connection) as account:
            account.get_blob_client(container, first).acquire_lease()

        ended = run("backup", "--to", "azure:", "--keep", "1", **settings)

        assert (ended.code, ended.err) == (1, "Azure Blob Storage: LeaseIdMissing.\n")
        made, _, checksum = ended.out.splitlines()
        assert checksum in run("verify", f"azure:{made}", **settings).out


# Fills an embedded database, and keeps it until its standard input ends.
USER = """
import sys
from pathlib import Path
from pymongo import MongoClient
from app.db.embedded import embedded_server
with embedded_server(Path(sys.argv[1])) as url, MongoClient(url) as client:
    client["octopus"]["jars"].insert_one({"_id": 1})
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def embedded_database(folder: Path) -> Iterator[None]:
    """So that the server does not start and stop with every command."""
    command = [sys.executable, "-c", USER, str(folder)]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:  # noqa: S603
        try:
            assert user.stdout
            assert user.stdout.readline() == b"ready\n"
            yield
        finally:
            user.communicate()


class TestPage:
    def test_commands_do_what_it_says_on_an_embedded_database(
        self, terminal: Terminal, short_folder: Path, azurite: AzuriteServer
    ) -> None:
        upload = short_folder / "uploads" / "3f" / "a0" / "3fa0.original"
        upload.parent.mkdir(parents=True)
        upload.write_text("tea")
        settings = {"DATABASE_URL": "embedded", "AZURE_STORAGE_CONNECTION_STRING": azurite.connection}
        settings["AZURE_BACKUP_CONTAINER"] = f"backups-{secrets.token_hex(4)}"
        archives: list[str] = []

        with embedded_database(short_folder):
            for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
                for line in block.splitlines():
                    program, *words = shlex.split(line.replace("$DATA_DIR", str(short_folder)))
                    if program == "cp":
                        subprocess.run([program, *words], cwd=short_folder, check=True)  # noqa: S603 - the page is ours
                        continue
                    latest = archives[-1:] if "azure" in line else archives[:1]
                    arguments = [word.replace("ARCHIVE", "".join(latest)) for word in words[1:]]
                    ended = terminal.run(short_folder, *arguments, kill=None, **settings)
                    assert (words[0], ended.code, ended.err) == ("scripts/backup_db.py", 0, ""), line
                    if arguments[0] == "backup":
                        archives.append(ended.archive)

        assert len(archives) == 3
        assert (short_folder / "copies-of-uploads/3f/a0/3fa0.original").read_text() == "tea"


class TestScript:
    def test_is_the_command(self, tmp_path: Path) -> None:
        ended = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", program_of("backup_db"), "list"],
            cwd=PROJECT,
            env={"DATA_DIR": str(tmp_path), "ENVIRONMENT": "test", "SECRET_KEY": SECRET, "BACKUP_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def move_about(database: Database[Raw], collection: str) -> None:
    database[collection].rename("elsewhere")
    database["elsewhere"].rename(collection)


def saying(content: bytes, **said: object) -> bytes:
    """The same archive with another head."""
    reader, out = BlockReader(io.BytesIO(content)), io.BytesIO()
    writer = BlockWriter(out, {**reader.head, **said}, None)
    blocks = [block.content or b"" for block in reader.blocks(None, pytest.fail)]
    for number, block in enumerate(blocks, 1):
        writer.write(block, is_last=number == len(blocks))
    return out.getvalue()
