import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet, InvalidToken
from httpx import AsyncClient

from app.core.clock import utc_now
from app.models.user import Mfa, User
from tests.conftest import ENCRYPTION_KEY, SECRET
from tests.factories import make_user

PROJECT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.path.insert(0, "scripts")
import environment
environment.enter = lambda: None
import rotate_encryption_keys
rotate_encryption_keys.main()
"""


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
