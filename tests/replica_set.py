"""Three real database servers that elect their primary, and die and come back as a test tells them to."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.db.embedded import find_mongod
from tests.server_process import ServerProcess

Raw = dict[str, Any]
NAME: Final = "failing"
# Members that miss each other for a second elect another primary, so that a minute sees many elections.
_ELECTIONS: Final = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 200}


class Mongod(ServerProcess):
    """A server with a folder of its own that it keeps, and is small."""

    NAME = "MongoDB server"

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__()
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.command = [
            *(str(find_mongod(None)), "--dbpath", str(folder), "--port", str(self.port), "--bind_ip", "127.0.0.1"),
            *("--replSet", NAME, "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25", "--quiet"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            *("--setParameter", "transactionLifetimeLimitSeconds=5"),
            *options,
        ]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, command: Raw | str) -> Raw:
        with MongoClient[Raw](
            self.address, directConnection=True, serverSelectionTimeoutMS=300, socketTimeoutMS=2000
        ) as client:
            return client.admin.command(command)

    def answers(self) -> bool:
        try:
            return bool(self.ask("hello"))
        except PyMongoError:
            return False

    def is_primary(self) -> bool:
        try:
            return bool(self.ask("hello").get("isWritablePrimary"))
        except PyMongoError:
            return False


class ReplicaSet:
    """Its members, of which any can be killed and started again."""

    def __init__(self, members: Sequence[Mongod]) -> None:
        self.members = members

    def initiate(self) -> None:
        config = [{"_id": at, "host": member.address} for at, member in enumerate(self.members)]
        self.members[0].ask({"replSetInitiate": {"_id": NAME, "members": config, "settings": _ELECTIONS}})
        primary = self.primary()
        while any(member["stateStr"] not in {"PRIMARY", "SECONDARY"} for member in self._states(primary)):
            time.sleep(0.05)  # one that has not copied everything yet can't be elected

    @staticmethod
    def _states(member: Mongod) -> list[Raw]:
        states: list[Raw] = member.ask("replSetGetStatus")["members"]
        return states

    def url(self, database: str) -> str:
        hosts = ",".join(member.address for member in self.members)
        return f"mongodb://{hosts}/{database}?replicaSet={NAME}"

    def primary(self, seconds: float = 30) -> Mongod:
        """The member that takes writes, once there is one."""
        give_up_at = time.monotonic() + seconds
        while True:
            for member in self.members:
                if member.is_primary():
                    return member
            assert time.monotonic() < give_up_at, "No member was elected."
            time.sleep(0.05)  # nothing tells of it

    def step_down(self) -> None:
        """Let the primary hand over in good order, as an operator does who restarts it."""
        self.primary().ask({"replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 1, "force": True})


@contextmanager
def replica_set(count: int = 3, *options: str) -> Iterator[ReplicaSet]:
    """So many members in memory where that can be. They are gone after the block, whatever happened in it."""
    memory = Path("/dev/shm")  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="octopus-set-", dir=memory if memory.is_dir() else None))
    members = [Mongod(folder / str(at), *options) for at in range(count)]
    try:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(Mongod.start, members))
        made = ReplicaSet(members)
        made.initiate()
        yield made
    finally:
        for member in members:
            if hasattr(member, "process"):
                member.kill()
        shutil.rmtree(folder, ignore_errors=True)
