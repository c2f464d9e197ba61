"""Each promise of docs/security.md names a test that is there."""

import ast
import re

import pytest

from tests.test_project_files import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:\w+/)*test_\w+\.py(?:::\w+)*)`", PAGE)))


def names_in(node: ast.AST, path: list[str]) -> bool:
    """Whether the classes and functions of the path are there, each in the one before."""
    if not path:
        return True
    return any(
        names_in(child, path[1:])
        for child in ast.iter_child_nodes(node)
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name == path[0]
    )


class TestPage:
    @pytest.mark.parametrize("name", NAMED)
    def test_names_tests_that_are_there(self, name: str) -> None:
        file, *path = name.split("::")

        assert names_in(ast.parse((ROOT / "tests" / file).read_text()), path)

    def test_names_a_test_for_each_promise(self) -> None:
        promises = PAGE.partition("## Promises")[2].partition("\n## ")[0]
        rows = [line.split("|")[1:3] for line in promises.splitlines() if line.startswith("| ")]
        kept = {promise.strip(): re.findall(r"test_\w+\.py", by) for promise, by in rows}

        assert len(kept) > 40
        assert [promise for promise, tests in kept.items() if not tests and promise not in {"promise", "---"}] == []
