"""The look at all logs of a run, which no secret of it may be in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import leaks
from tests.test_project_files import ROOT

KEY = "octopus_Ab3dEf9H_" + "q7Xw2Zk9Lm4Np8Rt6Vb1" + "Yc5Hd3Gf0Js" + "0aB1cD"
CONFTEST = """
import os
from pathlib import Path
from tests import leaks

HERE = Path(__file__).parent / "watched"
WATCH = leaks.Watch(HERE, os.environ.get("PYTEST_XDIST_WORKER", "main"))
leaks.install(WATCH)

def pytest_configure(config):
    config.pluginmanager.register(leaks.Plugin(WATCH, None if hasattr(config, "workerinput") else HERE))
"""
LEAKING = """
import subprocess, sys
from conftest import WATCH

def test_tells_nothing():
    WATCH.made("w8Kq2Xv7Zr5Tn3Lp")

def test_tells_all(tmp_path):
    with (tmp_path / "server.log").open("wb") as log:
        subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('w8Kq2Xv7Zr5Tn3Lp')"], stderr=log)
"""


def found(folder: Path, secret: str, logged: str) -> list[leaks.Leak]:
    watch = leaks.Watch(folder, "gw0")
    watch.begin("tests/test_tea.py::test_tea")
    watch.logged("before\n")
    watch.logged(logged)
    watch.begin("tests/test_tea.py::test_cups")
    watch.made(secret)
    watch.close()
    return leaks.find_leaks(folder)


class TestFindLeaks:
    @pytest.mark.parametrize(
        ("secret", "logged"),
        [
            (KEY, f'{{"message":"hello {KEY}"}}\n'),
            (KEY, f"x{KEY[17:]}\n"),
            ("turnip-Lantern-42-orbit", "password turnip-Lantern-42-orbit!\n"),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI3In0.pQ8rS2tU4vW6xY0zA1bC3dE5fG7hI9jK-_x", "pQ8rS2tU4vW6xY0zA1b\n"),
        ],
    )
    def test_names_the_test_and_the_line(self, tmp_path: Path, secret: str, logged: str) -> None:
        (leak,) = found(tmp_path, secret, logged)

        assert leak.test == "tests/test_tea.py::test_tea"
        assert leak.piece in leak.line

    @pytest.mark.parametrize(
        ("secret", "logged"),
        [
            (KEY, "octopus_Ab3dEf9H_… was asked\n"),
            ("aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaa\n"),
            ("short", "short\n"),
            ("turnip-Lantern-42-orbit", "turnip Lantern 42 orbit\n"),
        ],
    )
    def test_leaves_what_may_be_seen(self, tmp_path: Path, secret: str, logged: str) -> None:
        assert found(tmp_path, secret, logged) == []

    def test_looks_for_secrets_of_all_workers_also_of_one_that_was_killed(self, tmp_path: Path) -> None:
        (tmp_path / "gw1.secrets").write_bytes(b"half of one wi")

        assert [leak.piece for leak in found(tmp_path, KEY, KEY)] == ["q7Xw2Zk9Lm"]


class TestRun:
    def test_fails_where_a_process_of_a_worker_has_told_a_secret(self, tmp_path: Path) -> None:
        (tmp_path / "test_leaking.py").write_text(LEAKING)
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        own = ("OCTOPUS_TEST", "PYTEST_", "COVERAGE_", "COV_")
        variables = {name: value for name, value in os.environ.items() if not name.startswith(own)}

        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "xdist", "-n", "1"],
            cwd=tmp_path,
            env=variables | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )

        assert run.returncode == 1, run.stdout
        assert "2 passed" in run.stdout
        assert "w8Kq2Xv7Zr in test_leaking.py::test_tells_all:" in run.stdout
