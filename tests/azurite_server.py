"""A real Azurite, Microsoft's own server of the protocol of Azure Blob Storage, that a test can stop and freeze."""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server_process import ServerProcess

# The account and the key that every Azurite has; they are in its documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class AzuriteServer(ServerProcess):
    NAME = "Azurite"

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        super().__init__()
        self.scheme = "https" if "--cert" in options else "http"
        self.command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(folder)]
        self.command += ["--silent", "--disableTelemetry", "--skipApiVersionCheck", *options]
        self.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def connection(self) -> str:
        return f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.url};DefaultEndpointsProtocol=http"

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def program() -> str | None:
    """The one that AZURITE names, the one in the environment of the project, or one on PATH."""
    own = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    if named := os.environ.get("AZURITE"):
        return named
    return str(own) if own.exists() else shutil.which("azurite-blob")


@contextmanager
def running_azurite(*options: str) -> Iterator[AzuriteServer]:
    """Without one the test is skipped, where the tests are run for good it fails."""
    found = program()
    if found is None:
        missing = "There is no azurite-blob in .venv/azurite or on PATH, and AZURITE names none."
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    folder = Path(tempfile.mkdtemp(prefix="azurite-"))
    server = AzuriteServer(found, folder, *options)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
