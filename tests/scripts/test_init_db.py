import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tests.conftest import SECRET
from tests.fresh_database import database, url
from tests.scripts.program import PROJECT, program_of

__all__ = ["database", "url"]  # fixtures
PROGRAM = program_of("init_db")

Client = MongoClient[dict[str, Any]]
Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def name(database: Database[dict[str, Any]]) -> str:
    return database.name


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def start(url: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", PROGRAM],
            cwd=PROJECT,
            env={"DATABASE_URL": url, "DATA_DIR": str(tmp_path), "ENVIRONMENT": "test", "SECRET_KEY": SECRET},
            capture_output=True,
            text=True,
            check=False,
        )

    return start


def indexes_of(mongodb: Client, name: str) -> dict[str, list[str]]:
    database = mongodb[name]
    return {
        collection: sorted(database[collection].index_information())
        for collection in sorted(database.list_collection_names())
    }


class TestInitDb:
    def test_makes_the_indexes(self, run: Run, url: str, name: str, mongodb: Client) -> None:
        ended = run(url)

        assert (ended.returncode, ended.stderr) == (0, "")
        assert {"email_unique", "username_unique"} <= set(indexes_of(mongodb, name)["users"])
        assert name in ended.stdout

    def test_changes_nothing_the_second_time(self, run: Run, url: str, name: str, mongodb: Client) -> None:
        first = run(url)
        indexes = indexes_of(mongodb, name)
        mongodb[name]["users"].insert_one({"_id": 1, "email_key": "ada@example.com"})

        second = run(url)

        assert (second.returncode, second.stdout) == (0, first.stdout)
        assert indexes_of(mongodb, name) == indexes
        assert mongodb[name]["users"].count_documents({}) == 1

    @pytest.mark.parametrize(
        "url",
        [
            "mongodb://127.0.0.1:1/octopus?serverSelectionTimeoutMS=200",
            "mysql://s3cret@host",
            "mongodb://ada:s3cret@127.0.0.1:tea/octopus",
            "mongodb://ada:tea/s3cret@127.0.0.1/octopus",
            "mongodb://ada:tea/s3cret@database/octopus",
        ],
    )
    def test_says_in_one_line_why_it_can_not(self, run: Run, url: str) -> None:
        ended = run(url)

        assert (ended.returncode, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1
        assert "s3cret" not in ended.stderr


class TestRepair:
    def test_makes_an_index_that_was_dropped(self, run: Run, mongodb: Client, url: str, name: str) -> None:
        assert run(url).returncode == 0
        mongodb[name]["users"].drop_index("email_unique")

        again = run(url)

        assert again.returncode == 0
        assert mongodb[name]["users"].index_information()["email_unique"]["unique"]
