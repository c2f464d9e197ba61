"""Where a test types `backup_db.py`."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import SECRET

PROJECT = Path(__file__).parents[2]


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    peak: int  # the most bytes that were resident

    @property
    def archive(self) -> str:
        """The archive that a backup names first."""
        assert self.code == 0, self
        return self.out.splitlines()[0]


class Terminal:
    def __init__(self) -> None:
        self._busy = threading.Lock()
        variables = {name: value for name, value in os.environ.items() if name.startswith(("PATH", "HOME", "COVERAGE"))}
        self._forks = subprocess.Popen(
            [sys.executable, "-m", "tests.backup.forks"],
            cwd=PROJECT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, *arguments: str, kill: tuple[Any, ...] | None = None, **variables: str) -> Ended:
        """Type it in a folder, where its backups are too."""
        out, err = folder / "out", folder / "err"
        order = {
            "folder": str(folder),
            "arguments": arguments,
            "variables": {"ENVIRONMENT": "test", "SECRET_KEY": SECRET, "DATA_DIR": str(folder), **variables},
            "kill": kill,
            "out": str(out),
            "err": str(err),
        }
        with self._busy:
            out.unlink(missing_ok=True)
            err.unlink(missing_ok=True)
            assert self._forks.stdin
            assert self._forks.stdout
            self._forks.stdin.write(json.dumps(order) + "\n")
            self._forks.stdin.flush()
            report = json.loads(self._forks.stdout.readline())
            return Ended(report["code"], out.read_text(), _without_progress(err.read_text()), report["peak"])

    def close(self) -> None:
        self._forks.communicate(timeout=60)


def _without_progress(text: str) -> str:
    return re.sub(r"^[a-z ]+: \d+ %\n", "", text, flags=re.MULTILINE)
