"""A real clamd that a test can stop, freeze and start again. It knows one virus: the test file of EICAR."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile_files import EICAR
from tests.server_process import ServerProcess

STREAM_MAX_BYTES = 4 * 1024 * 1024


class ClamdServer(ServerProcess):
    NAME = "clamd"

    def __init__(self, program: str, folder: Path) -> None:
        super().__init__()
        signatures = folder / "signatures"
        signatures.mkdir()
        (signatures / "test.ndb").write_text(f"Eicar-Test-Signature:0:*:{EICAR.hex()}\n")
        options = {
            "DatabaseDirectory": signatures,
            "TCPAddr": "127.0.0.1",
            "TCPSocket": self.port,
            "Foreground": "yes",
            "StreamMaxLength": STREAM_MAX_BYTES,
            "TemporaryDirectory": folder,
        }
        settings = folder / "clamd.conf"
        settings.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        for place in (folder, signatures):
            place.chmod(0o755)  # as root it becomes another user, who must be able to read
        self.command = [program, "--config-file", str(settings)]
        self.start()

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"zPING\0")
                return connection.recv(16) == b"PONG\0"
        except OSError:
            return False


def program() -> str | None:
    return shutil.which("clamd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@pytest.fixture(scope="module")
def running_clamd() -> Iterator[ClamdServer]:
    """One for the tests of a file, since it takes a second to start."""
    found = program()
    if found is None:
        missing = "There is no clamd."
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    folder = Path(tempfile.mkdtemp(prefix="clamd-"))
    server = ClamdServer(found, folder)
    yield server
    server.thaw()
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def clamd(running_clamd: ClamdServer) -> Iterator[ClamdServer]:
    """The scanner, well again after each test."""
    yield running_clamd
    running_clamd.thaw()
    if running_clamd.process.poll() is not None:
        running_clamd.start()
