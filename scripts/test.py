"""Run every check: `python3 scripts/test.py`. With arguments, only pytest, with them: `scripts/test.py -k login`."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import environment
import parts

LINES, BRANCHES = 95, 90  # per cent of app/ that the tests must run
WORKERS = "4"  # more than there are cores: many tests wait, for processes and for time-outs
CHECKS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
    "layers": ["lint-imports", "--no-cache"],
    "house rules": ["python", "scripts/check_house_rules.py"],
}


def main() -> None:
    os.chdir(environment.ROOT)
    environment.enter("requirements-dev.txt")
    if len(sys.argv) > 1:
        sys.exit(_run(["pytest", *sys.argv[1:]]))
    meanwhile = [threading.Thread(target=parts.install), threading.Thread(target=_compile)]
    for each in meanwhile:
        each.start()
    for name, command in CHECKS.items():
        started = time.monotonic()
        if _run(command) != 0:
            sys.exit(f"{name}: failed")
        print(f"{name}: passed in {time.monotonic() - started:.1f} s", flush=True)
    for each in meanwhile:
        each.join()
    if _run(["pytest", "-n", WORKERS, "--dist", "worksteal", "--cov", "--cov-report="]) != 0:
        sys.exit("tests: failed")
    _require_coverage()


def _compile() -> None:
    """Have one process find the tests, so that what it loads is compiled once, and not by each of those to come."""
    collect = [str(environment.VENV / "bin" / "pytest"), "--collect-only", "-q"]
    subprocess.run(collect, check=False, capture_output=True)  # noqa: S603 - a tool of the environment


def _require_coverage() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        _run(["coverage", "json", "-q", "-o", str(report)])
        totals = json.loads(report.read_text())["totals"]
    lines = 100 * totals["covered_lines"] / totals["num_statements"]
    branches = 100 * totals["covered_branches"] / totals["num_branches"]
    print(f"coverage: {lines:.1f} % of lines (at least {LINES}), {branches:.1f} % of branches (at least {BRANCHES})")
    if lines < LINES or branches < BRANCHES:
        _run(["coverage", "report"])
        sys.exit("coverage: failed")


def _run(command: list[str]) -> int:
    program = environment.VENV / "bin" / command[0]
    return subprocess.run([str(program), *command[1:]], check=False).returncode  # noqa: S603 - tools of the environment


if __name__ == "__main__":
    main()
