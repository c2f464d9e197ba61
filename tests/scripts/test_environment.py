import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
# A Python that only writes down what it is asked to do, and says that.
RECORDER = """#!/bin/sh
echo "$@" >> "{record}"
echo "$@"
case "$*" in *install*) exit {code} ;; esac
"""


class Project:
    """A project of its own: pins, and an environment whose Python installs nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / "record"
        (root / ".venv" / "bin").mkdir(parents=True)
        self.pin("requirements.txt", "fastapi==1.0")
        self.pin("requirements-dev.txt", "-r requirements.txt\npytest==1.0")
        self.install_ends_with(0)

    def pin(self, name: str, content: str) -> None:
        (self.root / name).write_text(content)

    def install_ends_with(self, code: int) -> None:
        python = self.root / ".venv" / "bin" / "python"
        python.write_text(RECORDER.format(record=self.record, code=code))
        python.chmod(0o755)

    @property
    def installs(self) -> list[str]:
        """What was installed, in order."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [Path(line.split(" -r ")[1]).name for line in lines if " install " in line]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("environment")


@pytest.fixture
def project(tmp_path: Path, environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The script works on this project instead of ours."""
    project = Project(tmp_path)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    return project


@pytest.fixture
def prepare(environment: ModuleType, project: Project) -> Callable[[str], None]:
    assert project.installs == []
    run: Callable[[str], None] = environment.prepare
    return run


class TestPrepare:
    def test_installs_the_pins_the_first_time(self, prepare: Callable[[str], None], project: Project) -> None:
        prepare("requirements.txt")

        assert project.installs == ["requirements.txt"]

    def test_has_nothing_to_do_the_second_time(self, prepare: Callable[[str], None], project: Project) -> None:
        prepare("requirements-dev.txt")
        prepare("requirements-dev.txt")

        assert project.installs == ["requirements-dev.txt"]

    @pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
    def test_installs_again_when_the_pins_change(
        self, prepare: Callable[[str], None], project: Project, name: str
    ) -> None:
        prepare("requirements-dev.txt")

        project.pin(name, "fastapi==2.0")
        prepare("requirements-dev.txt")

        assert len(project.installs) == 2

    def test_installs_again_under_another_python(
        self,
        prepare: Callable[[str], None],
        project: Project,
        environment: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        prepare("requirements.txt")

        other = SimpleNamespace(version="3.13.1 (main)", version_info=(3, 13, 1), stderr=sys.stderr)
        monkeypatch.setattr(environment, "sys", other)
        prepare("requirements.txt")

        assert len(project.installs) == 2

    def test_installs_again_when_it_failed(self, prepare: Callable[[str], None], project: Project) -> None:
        project.install_ends_with(1)
        with pytest.raises(SystemExit) as refusal:
            prepare("requirements.txt")
        assert refusal.value.code not in {None, 0}

        project.install_ends_with(0)
        prepare("requirements.txt")
        prepare("requirements.txt")

        assert len(project.installs) == 2

    def test_is_done_once_for_two_at_once(self, prepare: Callable[[str], None], project: Project) -> None:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(prepare, "requirements.txt") for _ in range(4)]:
                done.result()

        assert project.installs == ["requirements.txt"]

    def test_says_what_it_does(
        self, prepare: Callable[[str], None], project: Project, capfd: pytest.CaptureFixture[str]
    ) -> None:
        prepare("requirements.txt")
        first = capfd.readouterr()
        prepare("requirements.txt")

        assert "requirements.txt" in first.err
        assert first.out == ""
        assert capfd.readouterr() == ("", "")
        assert len(project.installs) == 1

    @pytest.mark.parametrize("version", [(3, 10, 9), (2, 7, 18)])
    def test_refuses_an_old_python(
        self,
        prepare: Callable[[str], None],
        project: Project,
        environment: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        version: tuple[int, int, int],
    ) -> None:
        old = SimpleNamespace(version=".".join(map(str, version)), version_info=version, exit=sys.exit)
        monkeypatch.setattr(environment, "sys", old)

        with pytest.raises(SystemExit, match=r"3\.11"):
            prepare("requirements.txt")

        assert project.installs == []


class TestEnter:
    def test_goes_on_in_the_projects_python(self, project: Project) -> None:
        program = (
            f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import environment as e; from pathlib import Path;"
            f"e.ROOT = Path({str(project.root)!r}); e.VENV = e.ROOT / '.venv'; e.PYTHON = e.VENV / 'bin' / 'python';"
            "sys.argv = ['tool.py', '--port', '8001']; e.enter(); print('still here')"
        )

        ended = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ)
        )

        # Nothing of what was made and installed on the way: the output may go into a file.
        assert ended.stdout == "tool.py --port 8001\n"
        assert "Installing requirements.txt" in ended.stderr
        assert project.record.read_text().splitlines()[-1] == "tool.py --port 8001"


def test_environment_needs_nothing_but_the_standard_library() -> None:
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-S", "-E", "-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import environment"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
