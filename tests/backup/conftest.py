from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.backup.terminal import Ended, Terminal
from tests.fresh_database import database, url

__all__ = ["database", "url"]  # fixtures
Run = Callable[..., Ended]


@pytest.fixture(scope="session")
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


@pytest.fixture
def run(terminal: Terminal, tmp_path: Path, url: str) -> Run:
    """Type it for that database, in an empty folder."""
    return partial(terminal.run, tmp_path, DATABASE_URL=url)
