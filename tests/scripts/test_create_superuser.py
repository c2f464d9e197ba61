import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient
from pymongo import MongoClient

from app.core import live_cache
from app.core.clock import utc_now
from app.core.scopes import Role
from app.models.user import Mfa
from tests.api.signing_in import enrol, log_in
from tests.conftest import SECRET
from tests.factories import PASSWORD, make_signed_in, make_user
from tests.scripts.program import PROJECT, program_of

PROGRAM = program_of("create_superuser")

NEW_PASSWORD = "walnut-Harbour-77-comet"
SECOND_FACTOR = Mfa(encrypted_secret=b"sealed", last_step=0, confirmed_at=utc_now(), recovery_digests=[])

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(database_url: str, tmp_path: Path) -> Run:
    """Run the script with options, and something typed."""

    def start(*options: str, typed: str = PASSWORD + "\n", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", PROGRAM, *options],
            cwd=PROJECT,
            env={
                "DATABASE_URL": database_url,
                "DATA_DIR": str(tmp_path),
                "ENVIRONMENT": "test",
                "SECRET_KEY": SECRET,
                "BCRYPT_ROUNDS": "4",
                **variables,
            },
            input=typed,
            capture_output=True,
            text=True,
            check=False,
        )

    return start


@pytest.fixture
def users(mongodb: MongoClient[dict[str, Any]], database_url: str) -> Any:
    """The stored accounts, as another client sees them."""
    return mongodb[database_url.rpartition("/")[2].partition("?")[0]]["users"]


class TestCreateSuperuser:
    async def test_makes_an_account_that_can_sign_in(self, run: Run, client: AsyncClient) -> None:
        ended = run("--email", "Ada@Example.com", "--username", "ada", "--password-stdin")

        assert (ended.returncode, ended.stderr) == (0, "")
        for account in ({"email": "ada@example.com"}, {"username": "ada"}):
            response = await client.post("/api/v1/auth/login", json={**account, "password": PASSWORD})
            assert response.status_code == 200
        headers = {"Authorization": f"Bearer {response.json()['access_token']}"}
        profile = (await client.get("/api/v1/users/me", headers=headers)).json()
        assert (profile["email"], profile["role"], profile["is_superuser"]) == ("Ada@example.com", "superuser", True)

    async def test_makes_one_on_the_record_even_where_registration_is_closed(self, run: Run, users: Any) -> None:
        ended = run("--email", "ada@example.com", "--password-stdin", REGISTRATION="closed")

        assert ended.returncode == 0

        assert [user["role"] for user in users.find()] == ["superuser"]
        assert [(event["action"], event["actor"]["name"]) for event in users.database["audit_events"].find()] == [
            ("user:created", "create_superuser")
        ]

    async def test_takes_one_line_as_the_password(self, run: Run, client: AsyncClient) -> None:
        run("--email", "ada@example.com", "--password-stdin", typed=f"{PASSWORD}\r\nmore\n")

        response = await client.post("/api/v1/auth/login", json={"email": "ada@example.com", "password": PASSWORD})
        assert response.status_code == 200

    @pytest.mark.parametrize(
        ("email", "password"),
        [
            ("ada@example.com", "password1234"),
            ("ada.lovelace@example.com", "ada.lovelace@example.com-9"),
            ("no-address", PASSWORD),
        ],
    )
    async def test_refuses_in_one_line(self, run: Run, users: Any, email: str, password: str) -> None:
        ended = run(f"--email={email}", "--password-stdin", typed=password + "\n")

        assert (ended.returncode, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1
        assert password not in ended.stderr
        assert users.count_documents({}) == 0

    @pytest.mark.parametrize(
        "options", [["--email", "ADA@example.com"], ["--email", "new@example.com", "--username", "Ada"]]
    )
    async def test_refuses_in_one_line_what_is_taken(
        self, run: Run, client: AsyncClient, users: Any, options: list[str]
    ) -> None:
        assert client
        await make_user(email="ada@example.com", username="ada")

        ended = run(*options, "--password-stdin")

        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
        assert [user["role"] for user in users.find()] == ["user"]

    @pytest.mark.parametrize("options", [["--password", PASSWORD], [f"--password={PASSWORD}"]])
    async def test_takes_no_password_as_an_argument(self, run: Run, users: Any, options: list[str]) -> None:
        ended = run("--email", "ada@example.com", *options)

        assert ended.returncode == 2
        assert "--password-stdin takes it" in ended.stderr
        assert PASSWORD not in ended.stdout + ended.stderr
        assert users.count_documents({}) == 0

    @pytest.mark.parametrize("options", [[], ["--email="], ["--reset-password"], ["--disable-mfa"]])
    async def test_takes_no_password_for_the_address(self, run: Run, options: list[str]) -> None:
        ended = run(*options, "--password-stdin")

        assert (ended.returncode, ended.stdout) == (2, "")
        assert "--password-stdin needs --email" in ended.stderr
        assert PASSWORD not in ended.stderr

    @pytest.mark.parametrize("options", [[], ["--disable-mfa"]])
    async def test_says_in_one_line_that_nobody_answers(self, run: Run, options: list[str]) -> None:
        ended = run(*options, typed="")

        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
        assert "--email" in ended.stderr


@pytest.mark.usefixtures("client")
class TestLettingIn:
    async def test_gives_a_new_password_and_ends_the_sessions(self, run: Run, client: AsyncClient) -> None:
        root = await make_signed_in(role=Role.SUPERUSER, email="root@example.com")
        for _ in range(5):
            await client.post("/api/v1/auth/login", json={"email": "root@example.com", "password": "wrong"})

        ended = run("--email", "ROOT@example.com", "--reset-password", "--password-stdin", typed=f"{NEW_PASSWORD}\n")

        assert (ended.returncode, ended.stderr) == (0, "")
        assert NEW_PASSWORD not in ended.stdout
        live_cache.go_deaf()  # another process has ended the session
        assert (await client.get("/api/v1/users/me", headers=root.headers)).status_code == 401
        new = {"email": "root@example.com", "password": NEW_PASSWORD}
        assert (await client.post("/api/v1/auth/login", json=new)).status_code == 200

    async def test_turns_the_second_factor_off(self, run: Run, client: AsyncClient) -> None:
        root = await make_user(role=Role.SUPERUSER, email="root@example.com", mfa=SECOND_FACTOR)
        login = {"email": "root@example.com", "password": root.password}
        assert (await client.post("/api/v1/auth/login", json=login)).json()["code"] == "mfa_required"

        ended = run("--email", "root@example.com", "--disable-mfa")

        assert (ended.returncode, ended.stderr) == (0, "")
        assert (await client.post("/api/v1/auth/login", json=login)).status_code == 200
        assert "no second factor" in run("--email", "root@example.com", "--disable-mfa").stdout

    async def test_is_on_the_record(self, run: Run, users: Any) -> None:
        await make_user(role=Role.SUPERUSER, email="root@example.com", mfa=SECOND_FACTOR)

        run("--email", "root@example.com", "--reset-password", "--disable-mfa", "--password-stdin")

        events = list(users.database["audit_events"].find())
        assert [(event["action"], event["actor"]["name"]) for event in events] == [
            ("user:updated", "create_superuser"),
            ("mfa:disabled", "create_superuser"),
        ]

    @pytest.mark.parametrize("role", [Role.USER, Role.ADMIN])
    async def test_turns_the_second_factor_of_anybody_off_and_forgets_the_wrong_codes(
        self, run: Run, client: AsyncClient, role: Role
    ) -> None:
        ada = await make_user(role=role, email="ada@example.com")
        await enrol(client, ada)
        for _ in range(6):
            response = await log_in(client, ada, otp="000000")
        assert response.json()["code"] == "account_locked"

        ended = run("--email", "ada@example.com", "--disable-mfa")

        assert (ended.returncode, ended.stderr) == (0, "")
        assert (await log_in(client, ada)).status_code == 200
        again = await enrol(client, ada)
        assert (await log_in(client, ada, otp=again.recovery_codes[0])).status_code == 200

    @pytest.mark.parametrize(
        ("email", "options"),
        [
            ("ada@example.com", ["--reset-password"]),
            ("ada@example.com", ["--reset-password", "--disable-mfa"]),
            ("nobody@example.com", ["--reset-password"]),
            ("nobody@example.com", ["--disable-mfa"]),
        ],
    )
    async def test_gives_nobody_else_a_new_password(self, run: Run, users: Any, email: str, options: list[str]) -> None:
        await make_user(role=Role.ADMIN, email="ada@example.com", mfa=SECOND_FACTOR)
        before = users.find_one()

        ended = run("--email", email, *options, "--password-stdin", typed=f"{NEW_PASSWORD}\n")

        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (1, "", 1)
        assert users.find_one() == before

    async def test_refuses_a_weak_password(self, run: Run, users: Any) -> None:
        await make_user(role=Role.SUPERUSER, email="root@example.com")
        before = users.find_one()

        ended = run("--email", "root@example.com", "--reset-password", "--password-stdin", typed="password1234\n")

        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
        assert users.find_one() == before
