"""The process that owns the embedded MongoDB server; see `embedded.py`.

python -m app.db.embedded_keeper FOLDER MONGOD
"""

import ctypes
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from app.db.embedded import START_SECONDS, try_lock

_POLL_SECONDS: Final = 0.05
_LOCK_ATTEMPTS: Final = 4
_DB_PATH_IN_USE: Final = 100  # mongod's exit code
_PR_SET_PDEATHSIG: Final = 1
_NOT_YET_INITIALIZED: Final = 94


class Keeper:
    """Runs one server over one folder for as long as the folder is in use."""

    def __init__(self, home: Path, mongod: Path) -> None:
        self.home = home
        self.mongod = mongod
        self.server: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Serve until nobody uses the folder any more, beside the caller. Nothing to do when another keeper does.

        The caller returns once the lock is held, so it can tell a keeper that works from one that has failed.
        """
        with (self.home / "keeper.lock").open("w") as mine:
            # Whoever looks whether there is a keeper holds the lock for a moment.
            for _ in range(_LOCK_ATTEMPTS):
                if has_lock := try_lock(mine, fcntl.LOCK_EX):
                    break
                time.sleep(_POLL_SECONDS)
            if not has_lock:
                return
            (self.home / "server.json").unlink(missing_ok=True)
            if os.fork() == 0:  # the lock goes along
                os.setsid()  # Ctrl-C at the terminal must reach the application first
                self._serve()

    def _serve(self) -> None:
        with (self.home / "in-use.lock").open("w") as in_use:
            try:
                while not try_lock(in_use, fcntl.LOCK_EX):
                    if self.server is None or self.server.poll() is not None:
                        self._start()
                    time.sleep(_POLL_SECONDS)
            except (OSError, RuntimeError, PyMongoError) as error:
                self._write_state(error=f"The embedded MongoDB server could not start. {error}")
                raise
            finally:
                self._stop()

    def _start(self) -> None:
        state = self._read_identity()
        (self.home / "data").mkdir(exist_ok=True, mode=0o700)
        give_up_at = time.monotonic() + START_SECONDS
        while True:
            self._launch(state)
            while not self._is_primary(state):
                if self.server is not None and self.server.poll() is not None:
                    break
                if time.monotonic() > give_up_at:
                    raise RuntimeError(f"It was not ready within {START_SECONDS} s.")
                time.sleep(_POLL_SECONDS)
            else:
                self._write_state(**state, pid=self.server.pid if self.server else None)
                return
            self._recover(state, give_up_at)

    def _launch(self, state: dict[str, Any]) -> None:
        """Start mongod so that it dies with its keeper (where the system knows that)."""
        command = [
            *(str(self.mongod), "--dbpath", str(self.home / "data"), "--bind_ip", "127.0.0.1"),
            *("--port", str(state["port"]), "--replSet", state["replica_set"]),
            *("--wiredTigerCacheSizeGB", "0.5", "--oplogSize", "256", "--quiet"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            # What a killed process leaves open is given up then, not after a minute: ours take 3 s at most.
            *("--setParameter", "transactionLifetimeLimitSeconds=5"),
        ]
        log = self.home / "mongod.log"
        with log.open("wb") as output:  # of the last start only
            self.server = subprocess.Popen(  # noqa: S603 - the configured server and our own arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - the keeper has one thread
            )

    def _is_primary(self, state: dict[str, Any]) -> bool:
        """Whether the server takes writes; a new folder is made a replica set of one, a moved port is told to it."""
        address = f"127.0.0.1:{state['port']}"
        member = {"_id": state["replica_set"], "members": [{"_id": 0, "host": address}]}
        try:
            with MongoClient[dict[str, Any]](
                "127.0.0.1", state["port"], directConnection=True, serverSelectionTimeoutMS=200
            ) as client:
                hello = client.admin.command("hello")
                if hello.get("isWritablePrimary"):
                    # Not one that a killed keeper left at the same port: nobody would stop it in the end.
                    return self.server is not None and client.admin.command("serverStatus")["pid"] == self.server.pid
                try:
                    config = client.admin.command("replSetGetConfig")["config"]
                except OperationFailure as error:
                    if error.code == _NOT_YET_INITIALIZED:
                        client.admin.command({"replSetInitiate": member})
                    return False
                if config["members"][0]["host"] != address:
                    config["members"][0]["host"] = address
                    config["version"] += 1
                    client.admin.command({"replSetReconfig": config, "force": True})
        except PyMongoError:
            pass
        return False

    def _recover(self, state: dict[str, Any], give_up_at: float) -> None:
        """Prepare another try after the server ended at once, or say why there can't be one."""
        code = self.server.returncode if self.server else None
        if time.monotonic() > give_up_at:
            raise RuntimeError("It did not get ready in time.")
        if code is not None and code < 0:
            return  # it was killed: simply start it again
        if code == _DB_PATH_IN_USE:
            self._end_orphan()
        elif not _is_free(state["port"]):
            state["port"] = _free_port()
            self._write_identity(state)
        else:
            tail = (self.home / "mongod.log").read_text(errors="replace").splitlines()[-3:]
            raise RuntimeError(f"It ended with exit code {code}: {' '.join(tail)[-800:]}")

    def _end_orphan(self) -> None:
        """End the server that a killed keeper left behind. Its pid is in the lock file that it holds."""
        with suppress(ValueError, ProcessLookupError, FileNotFoundError):
            os.kill(int((self.home / "data" / "mongod.lock").read_text()), signal.SIGTERM)
        time.sleep(_POLL_SECONDS)

    def _stop(self) -> None:
        if self.server is not None and self.server.poll() is None:
            self.server.terminate()
            self.server.wait()

    def _read_identity(self) -> dict[str, Any]:
        """Port and replica-set name of this folder. The port stays the same, so that clients find it again."""
        path = self.home / "identity.json"
        if path.exists():
            state: dict[str, Any] = json.loads(path.read_text())
            return state
        state = {"port": _free_port(), "replica_set": f"octopus-{secrets.token_hex(4)}"}
        self._write_identity(state)
        return state

    def _write_identity(self, state: dict[str, Any]) -> None:
        _write_atomically(self.home / "identity.json", state)

    def _write_state(self, **state: Any) -> None:
        _write_atomically(self.home / "server.json", state)


def _write_atomically(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content))
    draft.replace(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _die_with_parent() -> None:
    """Linux: have the kernel send SIGTERM when the keeper dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Keeper(Path(sys.argv[1]), Path(sys.argv[2])).run()


if __name__ == "__main__":
    main()
