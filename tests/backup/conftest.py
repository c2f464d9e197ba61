from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tests.backup.terminal import Ended, Terminal

Raw = dict[str, Any]
Run = Callable[..., Ended]


@pytest.fixture(scope="session")
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


@pytest.fixture
def database(mongodb: MongoClient[Raw]) -> Iterator[Database[Raw]]:
    """One that does not exist yet, and is gone after the test."""
    name = f"backup_{uuid4().hex[:8]}"
    yield mongodb[name]
    mongodb.drop_database(name)


@pytest.fixture
def url(database_url: str, database: Database[Raw]) -> str:
    server, _, rest = database_url.rpartition("/")
    return f"{server}/{database.name}?{rest.partition('?')[2]}"


@pytest.fixture
def run(terminal: Terminal, tmp_path: Path, url: str) -> Run:
    """Type it for that database, in an empty folder."""
    return partial(terminal.run, tmp_path, DATABASE_URL=url)
