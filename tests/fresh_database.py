"""A database of the test's own, in which nothing was made yet: fixtures to import."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient
from pymongo.database import Database


@pytest.fixture
def database(mongodb: MongoClient[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    """One that does not exist yet, and is gone after the test."""
    name = f"fresh_{uuid4().hex[:8]}"
    yield mongodb[name]
    mongodb.drop_database(name)


@pytest.fixture
def url(database_url: str, database: Database[dict[str, Any]]) -> str:
    server, _, rest = database_url.rpartition("/")
    return f"{server}/{database.name}?{rest.partition('?')[2]}"
