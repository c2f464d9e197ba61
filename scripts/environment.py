"""The project's own Python environment, made on first use.

Standard library only: it runs before anything is installed.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
COMPLETE = ".complete"  # the mark in the environment of an image
OLDEST, NEWEST = (3, 11), (3, 13)


def enter(requirements: str = "requirements.txt") -> None:
    """Go on in the project's environment, with at least these requirements installed.

    Returns when this process runs in it; otherwise the process is replaced by one that does. An image brings an
    environment of its own that is whole, and nothing could be written there.
    """
    if (Path(sys.prefix) / COMPLETE).exists():
        return
    # Images for pipelines set it, for processes that start once. Here the first start makes the bytecode, and pip none.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    prepare(requirements)
    if Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(PYTHON, [str(PYTHON), *sys.argv])  # noqa: S606 - our own interpreter and arguments


def prepare(requirements: str) -> None:
    """Make the environment and install the pins, unless that is done. Of two commands at once, one waits."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit(f"Octopus needs Python 3.{OLDEST[1]} to 3.{NEWEST[1]}; this is {sys.version.split()[0]}.")
    if _is_ready(requirements):
        return
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_ready(requirements):
            return
        if not _works():
            _say(f"Making a Python environment in {VENV.name} ...")
            _make()
        _say(f"Installing {requirements} (once, about a minute) ...")
        _run(
            PYTHON,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--progress-bar=on",
            "--no-deps",  # the pins are complete
            "--no-compile",
            "-r",
            ROOT / requirements,
        )
        _stamp(requirements).write_text(_fingerprint(requirements))
        # The pins of development contain those of the service.
        _stamp("requirements.txt").write_text(_fingerprint("requirements.txt"))


def _make() -> None:
    try:
        venv.create(VENV, clear=True, with_pip=True)
    except subprocess.CalledProcessError:
        # Debian splits `ensurepip` off into python3-venv; a pip outside can install into an environment without one.
        venv.create(VENV, clear=True, with_pip=False)
        _run(sys.executable, "-m", "pip", "--python", PYTHON, "install", "--quiet", "pip")


def _is_ready(requirements: str) -> bool:
    stamp = _stamp(requirements)
    return stamp.exists() and stamp.read_text() == _fingerprint(requirements) and PYTHON.exists()


def _works() -> bool:
    if not PYTHON.exists():
        return False
    return subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0  # noqa: S603


def _stamp(requirements: str) -> Path:
    return VENV / f".installed-{requirements}"


def _fingerprint(requirements: str) -> str:
    """What must be installed: the pins, those that they include, and the Python they are for."""
    content = (ROOT / requirements).read_bytes() + (ROOT / "requirements.txt").read_bytes() + sys.version.encode()
    return hashlib.sha256(content).hexdigest()


def _say(text: str) -> None:
    """Not on standard output, which is the script's own: the first to run may be one whose output goes into a file."""
    print(text, file=sys.stderr, flush=True)


def _run(*command: str | Path) -> None:
    if subprocess.run([str(part) for part in command], stdout=sys.stderr, check=False).returncode != 0:  # noqa: S603
        sys.exit(f"This failed: {' '.join(map(str, command))}")
