import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.tokens import read_access_token
from tests.core.active import activate
from tests.core.test_signing import token_of_ours
from tests.scripts.program import program_of

PROGRAM = "import os\nos.umask(0)" + program_of("generate_signing_key")


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", PROGRAM, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


class TestGenerateSigningKey:
    @pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
    def test_makes_a_file_that_signs(self, tmp_path: Path, algorithm: str) -> None:
        ended = run(tmp_path, "--algorithm", algorithm, "--out", "signing.pem")

        path = tmp_path / "signing.pem"
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.splitlines() == [f"JWT_ALGORITHM={algorithm}", f"JWT_PRIVATE_KEY_FILE={path}"]
        assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----\n")
        activate(jwt_algorithm=algorithm, jwt_private_key_file=path)
        assert read_access_token(token_of_ours())

    def test_lets_nobody_else_read_the_file(self, tmp_path: Path) -> None:
        run(tmp_path, "--out", "signing.pem")

        assert stat.S_IMODE((tmp_path / "signing.pem").stat().st_mode) == 0o600

    def test_prints_the_key_when_no_file_is_named(self, tmp_path: Path) -> None:
        ended = run(tmp_path, "--algorithm", "EdDSA")

        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("-----BEGIN PRIVATE KEY-----\n")
        assert ended.stdout.endswith("\n-----END PRIVATE KEY-----\n")
        assert list(tmp_path.iterdir()) == []

    def test_is_never_the_same(self, tmp_path: Path) -> None:
        assert run(tmp_path, "--algorithm", "EdDSA").stdout != run(tmp_path, "--algorithm", "EdDSA").stdout

    def test_overwrites_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "signing.pem").write_text("in use")

        ended = run(tmp_path, "--out", "signing.pem")

        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == "signing.pem: File exists\n"
        assert (tmp_path / "signing.pem").read_text() == "in use"

    def test_follows_no_link_to_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "signing.pem").symlink_to(tmp_path / "elsewhere")

        assert run(tmp_path, "--out", "signing.pem").returncode == 1
        assert not (tmp_path / "elsewhere").exists()

    @pytest.mark.parametrize("out", ["absent/signing.pem", "."])
    def test_says_in_one_line_what_can_not_be_written(self, tmp_path: Path, out: str) -> None:
        ended = run(tmp_path, "--out", out)

        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)

    @pytest.mark.parametrize("algorithm", ["HS256", "none", "RS512", ""])
    def test_knows_no_other_algorithm(self, tmp_path: Path, algorithm: str) -> None:
        assert run(tmp_path, "--algorithm", algorithm).returncode == 2
