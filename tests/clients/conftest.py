"""A service that really runs, and the programs of others that call it."""

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SECRET, TEST_HOME
from tests.signing_keys import key_file, key_of, private_pem, public_pem
from tests.test_server import Server, Start, start

__all__ = ["start"]  # the fixture of real servers

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "tokens.md"
# What npm says when it reaches nobody and has nothing kept.
_OUT_OF_REACH = re.compile(r"\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ENOTCACHED)\b")

Serving = Callable[[str], Server]


@pytest.fixture
def serving(start: Start, database_url: str, tmp_path: Path) -> Serving:
    """A server that signs so, and publishes an old key too."""

    def run(algorithm: str) -> Server:
        variables = {"DATABASE_URL": database_url, "SECRET_KEY": SECRET, "JWT_ALGORITHM": algorithm}
        if algorithm != "HS256":
            pem = key_file(tmp_path, public_pem(key_of(algorithm, "old")), private_pem(key_of(algorithm)))
            variables["JWT_PRIVATE_KEY_FILE"] = str(pem)
        return start(**variables).ready()

    return run


def example(language: str) -> str:
    """The program of that language in the document."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return str(block)


def unavailable(reason: str) -> None:
    """Leave the test out, but not where everything must be checked."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def node_folder() -> Path:
    """A folder with the example of the document and what it needs, made once for the run."""
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        unavailable(f"These tests need {' and '.join(missing)}: install Node 20 or newer.")
    folder = TEST_HOME / "node"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "verify.mjs").exists():
            _install(folder)
    return folder


def _install(folder: Path) -> None:
    for name in ("package.json", "package-lock.json", "run.mjs"):
        shutil.copy(HERE / name, folder)
    command = ["npm", "ci", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    if reason := _OUT_OF_REACH.search(ended.stderr):
        unavailable(f"These tests need packages of npm, which is out of reach: {reason[0]}.")
    assert ended.returncode == 0, ended.stderr
    (folder / "verify.mjs").write_text(example("js"))
