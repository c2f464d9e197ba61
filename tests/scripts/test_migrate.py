import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from tests import old_database
from tests.conftest import SECRET
from tests.fresh_database import database, url
from tests.measuring import process_environment
from tests.old_database import LONG
from tests.scripts.program import PROJECT, program_of

__all__ = ["database", "url"]  # fixtures
PROGRAM = program_of("migrate")
# The same, killed when it has written the third batch and not noted that yet.
KILLED = (
    """
import os, signal
from app.db.lease import Lease

note = Lease.note

async def note_unless_dead(self, changes):
    if changes.get("running.position", {}).get("seq") == 2993:
        os.kill(os.getpid(), signal.SIGKILL)
    await note(self, changes)

Lease.note = note_unless_dead
"""
    + PROGRAM
)

Raw = dict[str, Any]
Run = Callable[..., tuple[str, str]]


@pytest.fixture
def variables(url: str, tmp_path: Path) -> dict[str, str]:
    return {"DATABASE_URL": url, "DATA_DIR": str(tmp_path), "ENVIRONMENT": "test", "SECRET_KEY": SECRET}


@pytest.fixture
def run(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """In this process: what it prints, and with what it ends."""
    monkeypatch.syspath_prepend(str(PROJECT / "scripts"))
    import environment  # noqa: PLC0415 - found now
    import migrate  # noqa: PLC0415

    monkeypatch.setattr(environment, "enter", lambda: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def start(*options: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["migrate.py", *options])
        fault = ""
        try:
            migrate.main()
        except SystemExit as end:
            fault = str(end)
        return capsys.readouterr().out, fault

    return start


def begin(program: str, *options: str, variables: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", program, *options],
        cwd=PROJECT,
        env=process_environment("migrate.py", times=3) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestUp:
    def test_goes_on_where_another_was_killed_in_one_of_two_processes(
        self, run: Run, variables: dict[str, str], database: Database[Raw]
    ) -> None:
        old_database.fill(database)
        of_long = {"conversation_id": LONG}
        killed = begin(KILLED, "up", variables=variables)
        killed.communicate(timeout=60)
        assert killed.returncode == -9
        assert run("status")[0] == (
            "0001_place_messages: forward under way, at step 2\n"
            f"The database {database.name} is older than this version.\n"
        )
        # One that comes by again would fill that in.
        database["messages"].update_many(of_long | {"seq": {"$in": [5, 2500]}}, {"$unset": {"block": ""}})

        both = [begin(PROGRAM, "up", variables=variables) for _ in range(2)]
        # Its lease has run out.
        database["installation"].update_one({"_id": "schema"}, {"$set": {"until": old_database.BEGUN}})
        ended = [each.communicate(timeout=60) for each in both]

        assert sorted(ended) == [("Applied: 0001_place_messages.\n", ""), ("Applied: nothing.\n", "")]
        rows = list(database["messages"].find(of_long).sort("seq", 1))
        assert [row["nth"] for row in rows] == [(seq + 1) // 2 for seq in range(1, 4101)]
        assert [row["seq"] for row in rows if "block" not in row] == [5]
        assert "words" in database["messages"].index_information()

    def test_is_undone_by_down_and_tells_how_things_are(self, run: Run, database: Database[Raw]) -> None:
        old_database.index(database)
        name = database.name

        assert run("status")[0] == (
            f"0001_place_messages: not applied\nThe database {name} is older than this version, or empty.\n"
        )
        assert run("up", "--to", "1")[0] == "Applied: 0001_place_messages.\n"
        applied = run("status")[0].splitlines()
        assert applied[0].startswith("0001_place_messages: applied 2")
        assert applied[1:] == [f"The database {name} is up to date."]
        assert run("down")[0] == "Taken back: 0001_place_messages.\n"
        assert run("down") == ("Taken back: nothing.\n", "")
        assert (
            run("status")[0] == f"0001_place_messages: not applied\nThe database {name} is older than this version.\n"
        )

    def test_refuses_what_it_can_not_do(self, run: Run, database: Database[Raw]) -> None:
        assert run("up", "--to", "7") == ("", "0 of 1 migrations are applied: there is no way from there to 7.")
        marks = {"applied": [{"name": "0001_place_messages"}, {"name": "0002_pour_milk"}]}
        database["installation"].insert_one({"_id": "schema", **marks})

        assert "newer than this version" in run("down")[1]
        assert "0002_pour_milk" in run("down")[1]

        assert (database["installation"].find_one() or {})["applied"] == marks["applied"]

    @pytest.mark.parametrize("command", ["status", "up"])
    def test_says_what_is_wrong_with_the_url_without_a_word_of_it(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, command: str
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", "mongodb://ada:tea/s3cret@127.0.0.1/octopus")

        assert run(command) == (
            "",
            "DATABASE_URL: is no URL of MongoDB; a user and a password in it must be percent-encoded",
        )

    def test_names_each_setting_that_is_wrong(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BCRYPT_ROUNDS", "few")
        monkeypatch.setenv("WORKERS", "many")

        out, fault = run("status")

        assert (out, [line.partition(":")[0] for line in fault.splitlines()]) == ("", ["workers", "bcrypt_rounds"])
