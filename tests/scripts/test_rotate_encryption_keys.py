import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from bson import ObjectId
from cryptography.fernet import Fernet, InvalidToken
from httpx import AsyncClient

from app.core.clock import utc_now
from app.core.config import Settings, use_settings
from app.core.scopes import Role
from app.crud import crud_encrypted_secret
from app.crud.crud_encrypted_secret import OF_DELETED_USERS, OF_USERS, Place
from app.db.mongo import get_database
from app.models.deleted_user import DeletedUser
from app.models.user import BEGINNING, Mfa, PendingMfa, User
from app.services import mfa_service
from tests.conftest import ENCRYPTION_KEY, SECRET
from tests.factories import make_signed_in, make_user
from tests.scripts.program import PROJECT, program_of

PROGRAM = program_of("rotate_encryption_keys")


def rotate(database_url: str, folder: Path, keys: str) -> subprocess.CompletedProcess[str]:
    variables = {"DATABASE_URL": database_url, "DATA_DIR": str(folder), "ENVIRONMENT": "test", "SECRET_KEY": SECRET}
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", PROGRAM],
        cwd=PROJECT,
        env={**variables, "ENCRYPTION_KEYS": keys},
        capture_output=True,
        text=True,
        check=False,
    )


async def make_protected_user(secret: bytes) -> User:
    sealed = Fernet(ENCRYPTION_KEY).encrypt(secret)
    mfa = Mfa(encrypted_secret=sealed, last_step=7, confirmed_at=utc_now(), recovery_digests=[b"one"])
    return (await make_user(mfa=mfa)).document


async def make_preparing_user(secret: bytes) -> User:
    pending = PendingMfa(encrypted_secret=Fernet(ENCRYPTION_KEY).encrypt(secret), created_at=utc_now())
    return (await make_user(pending_mfa=pending)).document


async def pending_secret_of(user: User, key: str) -> bytes:
    stored = await User.get(user.id)
    assert stored is not None
    assert stored.pending_mfa is not None
    return Fernet(key).decrypt(stored.pending_mfa.encrypted_secret)


async def secret_of(user: User, key: str) -> bytes:
    stored = await User.get(user.id)
    assert stored is not None
    assert stored.mfa is not None
    assert (stored.mfa.last_step, stored.mfa.recovery_digests) == (7, [b"one"])
    return Fernet(key).decrypt(stored.mfa.encrypted_secret)


class TestRotation:
    async def test_puts_every_secret_under_the_first_key(
        self, client: AsyncClient, database_url: str, tmp_path: Path
    ) -> None:
        assert client
        users = [await make_protected_user(b"secret %d" % number) for number in range(3)]
        await make_user()
        new = Fernet.generate_key().decode()

        ended = rotate(database_url, tmp_path, f"{new},{ENCRYPTION_KEY}")

        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == "3 secrets are under the first key now.\n"
        assert [await secret_of(user, new) for user in users] == [b"secret 0", b"secret 1", b"secret 2"]
        with pytest.raises(InvalidToken):
            await secret_of(users[0], ENCRYPTION_KEY)

    async def test_covers_what_is_not_confirmed_and_the_deleted_accounts(
        self, client: AsyncClient, database_url: str, tmp_path: Path
    ) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)
        preparing, gone = await make_preparing_user(b"pending"), await make_protected_user(b"gone")
        gone_preparing = await make_preparing_user(b"gone pending")
        for user in (gone, gone_preparing):
            assert (await client.delete(f"/api/v1/users/{user.id}", headers=root.headers)).status_code == 204
        new = Fernet.generate_key().decode()

        ended = rotate(database_url, tmp_path, f"{new},{ENCRYPTION_KEY}")

        assert (ended.returncode, ended.stdout) == (0, "3 secrets are under the first key now.\n")
        assert await pending_secret_of(preparing, new) == b"pending"
        for user in (gone, gone_preparing):
            restored = await client.post(f"/api/v1/admin/deleted-users/{user.id}/restore", headers=root.headers)
            assert restored.status_code == 200
        assert await secret_of(gone, new) == b"gone"
        assert await pending_secret_of(gone_preparing, new) == b"gone pending"

    async def test_meets_who_is_restored_and_who_is_deleted_while_it_runs(
        self, client: AsyncClient, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = await make_signed_in(role=Role.SUPERUSER)
        restored, deleted, late = [await make_protected_user(b"%d" % number) for number in range(3)]
        assert (await client.delete(f"/api/v1/users/{restored.id}", headers=root.headers)).status_code == 204
        new = Fernet.generate_key().decode()
        walk, has_moved = crud_encrypted_secret.walk, False

        async def move_before_and_after_the_archive(place: Place) -> AsyncIterator[tuple[ObjectId, bytes]]:
            nonlocal has_moved
            if place.collection == "deleted_users" and not has_moved:
                has_moved = True
                await client.post(f"/api/v1/admin/deleted-users/{restored.id}/restore", headers=root.headers)
                await client.delete(f"/api/v1/users/{deleted.id}", headers=root.headers)
            elif place.collection == "users" and has_moved:
                await client.delete(f"/api/v1/users/{late.id}", headers=root.headers)
            async for found in walk(place):
                yield found

        monkeypatch.setattr(crud_encrypted_secret, "walk", move_before_and_after_the_archive)
        use_settings(make_settings(encryption_keys=[new, ENCRYPTION_KEY]))
        assert await mfa_service.encrypt_again() == 2

        assert await secret_of(restored, new) == b"0"
        for user, secret in ((deleted, b"1"), (late, b"2")):
            archived = await DeletedUser.get(user.id)
            assert archived is not None
            assert Fernet(new).decrypt(archived.user["mfa"]["encrypted_secret"]) == secret

    @pytest.mark.parametrize("place", [*OF_USERS, *OF_DELETED_USERS])
    async def test_finds_them_by_an_index(self, client: AsyncClient, place: Place) -> None:
        assert client
        time = f"{place.field}.{place.time}"
        command = {"find": place.collection, "filter": {time: {"$gt": BEGINNING}}, "sort": {time: 1}}

        plan = await get_database().command({"explain": command, "verbosity": "queryPlanner"})

        stages = str(plan["queryPlanner"]["winningPlan"])
        assert "IXSCAN" in stages
        assert "COLLSCAN" not in stages
        assert "SORT" not in stages

    async def test_stops_at_a_key_that_is_missing_and_changes_nothing(
        self, client: AsyncClient, database_url: str, tmp_path: Path
    ) -> None:
        assert client
        user = await make_protected_user(b"secret")

        ended = rotate(database_url, tmp_path, Fernet.generate_key().decode())

        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) == 1
        assert "ENCRYPTION_KEYS" in ended.stderr
        assert await secret_of(user, ENCRYPTION_KEY) == b"secret"
