import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from app.core.clock import utc_now
from app.core.config import Settings, use_settings
from app.core.principal import Principal
from app.db.mongo import connected
from app.models.audit_event import AuditEvent
from app.models.deleted_user import DeletedUser
from app.services import user_service
from tests.conftest import SECRET
from tests.factories import StoredUser, make_conversation, make_messages, make_user
from tests.scripts.program import PROJECT, program_of

PROGRAM = program_of("purge_deleted")

Run = Callable[..., subprocess.CompletedProcess[str]]
Database = AsyncDatabase[dict[str, Any]]


@pytest.fixture
async def database(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Database]:
    """Without the application, which purges by itself."""
    use_settings(make_settings())
    async with connected(database_url) as database:
        yield database


@pytest.fixture
def run(database_url: str, tmp_path: Path) -> Run:
    def start(*options: str, url: str = database_url) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", PROGRAM, *options],
            cwd=PROJECT,
            env={"DATABASE_URL": url, "DATA_DIR": str(tmp_path), "ENVIRONMENT": "test", "SECRET_KEY": SECRET},
            capture_output=True,
            text=True,
            check=False,
        )

    return start


async def deleted(email: str, *, days_ago: int) -> StoredUser:
    user = await make_user(email=email)
    by = Principal.system("test")
    await user_service.delete(user.id, current_password=None, reason=None, versions=None, by=by)
    at = utc_now() - timedelta(days=days_ago)
    await DeletedUser.find({"_id": user.id}).set({"deleted_at": at, "purge_at": at + timedelta(days=30)})
    return user


class TestPurgeDeleted:
    async def test_purges_what_is_due_with_what_it_owned(self, run: Run, database: Database) -> None:
        ada, ben = await deleted("ada@example.com", days_ago=31), await deleted("ben@example.com", days_ago=29)
        for user in (ada, ben):
            await make_messages(await make_conversation(user), 3, by=user)

        ended = run()

        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Purged: 1.\n", "")
        assert [row.id for row in await DeletedUser.find().to_list()] == [ben.id]
        assert await database["messages"].distinct("user_id") == [ben.id]
        (event,) = await AuditEvent.find({"action": "user:purged"}).to_list()
        assert event.target.id == ada.id

    async def test_lists_what_is_due_and_changes_nothing(self, run: Run, database: Database) -> None:
        ada, _ = await deleted("ada@example.com", days_ago=31), await deleted("ben@example.com", days_ago=29)
        begun = await deleted("eve@example.com", days_ago=40)
        await DeletedUser.find({"_id": begun.id}).set({"purge_started_at": utc_now()})
        before = await database["deleted_users"].find().to_list()

        ended = run("--list")

        lines = ended.stdout.splitlines()
        assert (ended.returncode, ended.stderr) == (0, "")
        assert [line.split()[:2] for line in lines] == [
            [str(begun.id), "eve@example.com"],
            [str(ada.id), "ada@example.com"],
        ]
        assert [line.rpartition(", ")[2] for line in lines] == ["being purged", "due"]
        assert "$bcrypt" not in ended.stdout
        assert await database["deleted_users"].find().to_list() == before

    async def test_leaves_what_somebody_else_is_at(self, run: Run, database: Database) -> None:
        assert database is not None
        ada = await deleted("ada@example.com", days_ago=31)
        await DeletedUser.find({"_id": ada.id}).set({"claimed_until": utc_now() + timedelta(minutes=1)})

        assert run().stdout == "Purged: 0.\n"

        assert await DeletedUser.find({"_id": ada.id}).count() == 1

    async def test_says_when_one_was_interrupted(self, run: Run, database: Database) -> None:
        assert database is not None
        ada = await deleted("ada@example.com", days_ago=31)
        await database.command("collMod", "audit_events", validator={"action": {"$exists": False}})
        try:
            ended = run()
        finally:
            await database.command("collMod", "audit_events", validator={})

        assert (ended.returncode, ended.stdout) == (1, "Purged: 0.\n")
        assert "Interrupted: 1." in ended.stderr
        assert await DeletedUser.find({"_id": ada.id}).count() == 1

    def test_says_in_one_line_why_it_can_not(self, run: Run) -> None:
        ended = run(url="mongodb://127.0.0.1:1/octopus?serverSelectionTimeoutMS=200")

        assert (ended.returncode, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1
