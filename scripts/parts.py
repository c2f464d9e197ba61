"""The servers that tests talk to and that no Python package brings: Azurite, ClamAV, Chromium.

What is there is left as it is; what can't be had here is left out. The tests of a part that is missing say so and skip
themselves, in CI they fail.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import environment

AZURITE: Final = "azurite@3.35.0"  # as tests know it: a later one may speak another version of the protocol
_PACKAGES: Final = {"clamd": "clamav-daemon", "chromium": "chromium"}
_PLACES: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def install() -> None:
    """Get what is missing, as far as this machine and its user allow."""
    _install_azurite()
    _install_packages([package for program, package in _PACKAGES.items() if not shutil.which(program, path=_PLACES)])


def _install_azurite() -> None:
    folder = environment.VENV / "azurite"
    npm = shutil.which("npm")
    if npm and not (folder / "node_modules" / ".bin" / "azurite-blob").exists() and not shutil.which("azurite-blob"):
        _run([npm, "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", str(folder), AZURITE])


def _install_packages(names: list[str]) -> None:
    """On Debian and its kin, for whoever may: in a container of CI that is everybody."""
    apt = shutil.which("apt-get")
    if not names or apt is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        _run([apt, "update", "-qq"])
    _run([apt, "install", "-y", "-qq", "--no-install-recommends", *names])


def _run(command: list[str]) -> None:
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, check=False, env=quiet, capture_output=True, text=True)  # noqa: S603 - names of ours
    if done.returncode != 0:
        print(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}", flush=True)
