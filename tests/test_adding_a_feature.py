"""Follows docs/adding-a-feature.md on a copy of the project that lacks the feature, so that the page stays true."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_project_files import ROOT, tracked

PAGE = ROOT / "docs" / "adding-a-feature.md"
# What a run of tests tells the processes it starts, and the one inside must not hear: it is a run of its own.
OUTER = ("COV", "GIT_", "PYTEST_")
# The copy is the project again when the page comes to its tests, and those run here anyway: they need only be there.
SHORTENED = {"pytest": ["--collect-only"]}


class Block(NamedTuple):
    """What the page says to do: make a file, apply edits, or run commands."""

    kind: str
    file: str
    text: str

    @property
    def files(self) -> list[str]:
        return [self.file] if self.file else re.findall(r"^\+\+\+ b/(.+)$", self.text, flags=re.MULTILINE)

    def follow(self, project: "Project") -> None:
        if self.kind == "python":
            with (project.folder / self.file).open("x") as new:
                new.write(self.text)
        elif self.kind == "diff":
            project.run("git", "apply", given=self.text)
        else:
            for command in self.text.splitlines():
                program, *arguments = command.removeprefix("$ ").split()
                project.run(program, *arguments, *SHORTENED.get(program, []))

    def take_back(self, project: "Project") -> None:
        if self.kind == "python":
            (project.folder / self.file).unlink()
        elif self.kind == "diff":
            project.run("git", "apply", "--reverse", given=self.text)


class Project:
    """A copy of the project, and the environment of who works on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OUTER)}
        self.environment = inherited | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "GIT_CEILING_DIRECTORIES": str(folder.parent),
        }
        for file in tracked():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)

    def same(self, files: set[str]) -> set[str]:
        """Which of the files are here as they are in the project."""
        here = {file for file in files if (self.folder / file).exists()}
        return {file for file in here if (self.folder / file).read_bytes() == (ROOT / file).read_bytes()}

    def run(self, *command: str, given: str = "") -> None:
        done = subprocess.run(  # noqa: S603 - what our own page says
            command,
            cwd=self.folder,
            env=self.environment,
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{given}\n{done.stdout}"


@pytest.fixture
def blocks() -> list[Block]:
    found = re.findall(r"^```(\w*) ?(\S*)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [Block(*parts) for parts in found]


class TestPage:
    def test_holds_nothing_that_is_not_followed(self, blocks: list[Block]) -> None:
        commands = [line for block in blocks if block.kind == "console" for line in block.text.splitlines()]

        assert PAGE.read_text().count("```") == 2 * len(blocks)
        assert {(block.kind, bool(block.file)) for block in blocks} == {
            ("python", True),
            ("diff", False),
            ("console", False),
        }
        assert all(command.startswith("$ ") for command in commands)

    def test_leads_from_a_project_without_items_to_this_one(self, blocks: list[Block], tmp_path: Path) -> None:
        files = {file for block in blocks for file in block.files}
        project = Project(tmp_path / "project")
        for block in reversed(blocks):
            block.take_back(project)
        assert project.same(files) == set()

        for block in blocks:
            assert "pytest" not in block.text or block.kind != "console" or project.same(files) == files
            block.follow(project)

        assert len(files) > 10
        assert project.same(files) == files
