"""Whatever the pages tell to type is typed by a test, or says what it would need.

A comment before a block, `<!-- run: tests/test_x.py -->` or `<!-- needs: Azure -->`, speaks for it; one that stands
before no block speaks for all blocks of its page that have none.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.db.embedded import find_mongod
from tests.assistant_server import open_assistant
from tests.clients.conftest import unavailable
from tests.factories import PASSWORD
from tests.hostile_files import pdf, photo
from tests.test_project_files import ROOT
from tests.test_server import Server, Start, start, until

__all__ = ["start"]  # the fixture
HERE = "tests/test_docs_commands.py"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"sh", "bash", "shell", "console", "powershell", "http", "python", "js", "diff", "regex"}
COMMAND = re.compile(
    r"(?:\$ |curl |python3? |docker |az |git |gh |pip |npm |openssl |mongo|GET /|POST /|import |[A-Z]=)"
)
MARKER = re.compile(r"<!-- (run|needs): (.+) -->")
NEEDED = {"Azure", "PowerShell", "Docker", "a sharded cluster", "your own migration"}
# The README is the first page that anybody sees, also as plain text: it carries no comments.
OF_THE_README = {
    "python3 scripts/run.py": ("run", "tests/scripts/test_environment.py"),
    "A=http://127.0.0.1:8000": ("run", HERE),
    "az login": ("needs", "Azure"),
}

# A script without the step before it, which installs what the tests run in already.
SCRIPT = (
    "import importlib, sys; sys.path.insert(0, sys.argv.pop(1)); import environment; "
    "environment.enter = lambda *_: None; importlib.import_module(sys.argv.pop(1)).main()"
)
# What a browser knows and Node does not: where relative paths lead. And a page that says something once it listens.
BROWSER = """
const fetchAnywhere = fetch;
globalThis.fetch = (path, options) => fetchAnywhere(process.env.A + path, options);
"""
FOLLOW = """
const headers = { Authorization: `Bearer ${process.env.T}`, "Content-Type": "application/json" };
const body = JSON.stringify({ content: "Hello again" });
follow(process.env.C, () => process.env.T, (event, data) => {
  console.log(event, data.content ?? "");
  if (event === "ready") fetch(`/api/v1/conversations/${process.env.C}/messages`, { method: "POST", headers, body });
});
"""


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    marker: tuple[str, str] | None

    @property
    def is_command(self) -> bool:
        return self.language in LANGUAGES or (self.language == "" and COMMAND.match(self.text) is not None)


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of code of a page, fenced or indented, each with what speaks for it."""
    lines = page.read_text().splitlines()
    found: list[Block] = []
    marker, of_page, at = None, None, 0
    while at < len(lines):
        line, begin = lines[at], at
        if line.startswith("```"):
            at = lines.index("```", at + 1)
            text = lines[begin + 1 : at]
        elif line.startswith("    ") and not _continues_a_list(lines, at):
            while at + 1 < len(lines) and lines[at + 1].startswith("    "):
                at += 1
            text = [each[4:] for each in lines[begin : at + 1]]
        else:
            if line and marker is not None:
                marker, of_page = None, marker
            if named := MARKER.fullmatch(line):
                marker = (named[1], named[2])
            at += 1
            continue
        language = line[3:].split(" ")[0] if line.startswith("```") else ""
        found.append(Block(page.name, begin + 1, language, "\n".join(text), marker))
        marker, at = None, at + 1
    for block in found:
        yield block._replace(marker=block.marker or of_page or _of_the_readme(block))


def _continues_a_list(lines: list[str], at: int) -> bool:
    before = next((line for line in reversed(lines[:at]) if line and not line.startswith("    ")), "")
    return re.match(r" *(?:[-*]|\d+\.) ", before) is not None


def _of_the_readme(block: Block) -> tuple[str, str] | None:
    if block.page != "README.md":
        return None
    return next((marker for begin, marker in OF_THE_README.items() if block.text.startswith(begin)), None)


COMMANDS = [block for page in PAGES for block in blocks(page) if block.is_command]


class TestBlocks:
    def test_each_says_which_test_runs_it_or_what_it_needs(self) -> None:
        silent = [f"{block.page}:{block.line}" for block in COMMANDS if block.marker is None]
        wanted = {block.marker[1] for block in COMMANDS if block.marker and block.marker[0] == "needs"}

        assert len(COMMANDS) > 50
        assert silent == []
        assert wanted <= NEEDED

    def test_names_a_test_that_knows_the_page(self) -> None:
        marked = [(block, *block.marker) for block in COMMANDS if block.marker]
        named = {(block.page, block.text, test) for block, verb, test in marked if verb == "run"}

        assert {test for _, _, test in named if not (ROOT / test).is_file()} == set()
        assert [(page, test) for page, text, test in named if not _knows(test, page, text)] == []

    def test_are_found_whichever_way_they_are_written(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(
            "# Page\n\n<!-- run: tests/a.py -->\n\nText:\n\n    curl -s x\n\n"
            "<!-- needs: Azure -->\n```sh\naz login\n```\n\n"
            "    {}\n\n- item\n\n      python3 no.py\n\n```\nGET /x\n```\n"
        )

        assert [(block.text, block.marker) for block in blocks(page) if block.is_command] == [
            ("curl -s x", ("run", "tests/a.py")),
            ("az login", ("needs", "Azure")),
            ("GET /x", ("run", "tests/a.py")),
        ]


def _knows(test: str, page: str, text: str) -> bool:
    """Whether the test reads the page, itself or by what it shares with those beside it, or is that of the script."""
    script = Path(test).stem.removeprefix("test_")
    beside = (ROOT / test).parent / "conftest.py"
    read = [file.read_text() for file in (ROOT / test, beside) if file.is_file()]
    return test == HERE or page in "".join(read) or f"scripts/{script}.py" in text or page == "README.md"


class Shell:
    """Types the commands of pages: with the variables that are set, which are those of earlier pages, and no others."""

    def __init__(self, server: Server, folder: Path, database_url: str) -> None:
        self.server = {"DATABASE_URL": database_url, "DATA_DIR": str(server.folder)}
        self.url, self.folder = str(server.client.base_url).rstrip("/"), folder
        self.set: dict[str, str] = {}
        self.instead = {"http://127.0.0.1:8000": self.url, "http://localhost:8000": self.url}

    def type(self, text: str, *, until: str = "") -> str:
        """What the commands say; of those that do not end, until they say that."""
        for shown, real in self.instead.items():
            text = text.replace(shown, real)
        text = re.sub(r"python3 scripts/(\w+)\.py", rf"python3 -c '{SCRIPT}' {ROOT}/scripts \1", text)
        if text.startswith("GET "):
            text = f'curl -s "$A{text.removeprefix("GET ")}" -H "Octopus-API-Key: $KEY"'
        environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_PROXY": "*", **self.set}
        bash = shutil.which("bash") or ""
        with subprocess.Popen(  # noqa: S603 - the pages are ours
            [bash, "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if until and until in line:
                    os.killpg(process.pid, signal.SIGTERM)
                    return "".join(said)
        assert (process.returncode, until) == (0, ""), (text, said)
        assert "urn:octopus:problem" not in "".join(said), (text, said)
        return "".join(said)


def commands_of(page: str) -> list[str]:
    """Those that this test has to type."""
    return [block.text for block in COMMANDS if block.page == page and block.marker == ("run", HERE)]


def test_configuration_of_ones_own_server_is_taken(tmp_path: Path) -> None:
    [content] = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "setup.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "mongod.conf").write_text(content)

    read = subprocess.run(  # noqa: S603 - the server of the tests
        [find_mongod(None), "--config", tmp_path / "mongod.conf", "--outputConfig"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert read.returncode == 0, read.stdout + read.stderr
    assert "transactionLifetimeLimitSeconds" in read.stdout


async def test_commands_do_what_the_pages_say(start: Start, database_url: str, tmp_path: Path) -> None:
    async with open_assistant() as assistant:
        settings = {name.upper(): str(value) for name, value in assistant.settings.items()}
        server = start(DATABASE_URL=database_url, **settings).ready()
        await asyncio.to_thread(_type_all, Shell(server, tmp_path, database_url), server)


def _type_all(shell: Shell, server: Server) -> None:
    [tour] = commands_of("README.md")
    told = shell.type(f'{tour}\necho "\\"$T\\" \\"$C\\""')
    bootstrapped, ada, message, token, conversation = values(told)
    assert (bootstrapped["name"], ada["email"], message["content"]) == ("master", "ada@example.com", "Hello")
    shell.set = {"OCTOPUS_URL": shell.url, "A": shell.url, "J": "Content-Type: application/json"}
    shell.set |= {"T": token, "TOKEN": token, "C": conversation, "ID": ada["id"], "KEY": bootstrapped["api_key"]}
    [ask] = commands_of("tokens.md")
    assert values(shell.type(ask))[0]["active"] is True
    _type_of_uploads(shell)
    _type_of_the_assistant(shell, server)
    _type_of_audit(shell)
    _type_of_events(shell)
    _type_of_setting_up(shell)


def _type_of_uploads(shell: Shell) -> None:
    for name, content in {"photo.jpg": photo(), "plan.pdf": pdf("Tea"), "notes.md": b"# Tea\n"}.items():
        (shell.folder / name).write_bytes(content)
    [put], [link] = commands_of("uploads.md"), commands_of("upload-links.md")

    made = values(shell.type(put))
    assert [(upload["filename"], upload["visibility"]) for upload in made] == [
        ("photo.jpg", "private"),
        ("plan.pdf", "public"),
        ("notes.md", "private"),
    ]
    [linked] = values(shell.type(f"ID={made[0]['id']}\n{link}"))
    assert set(linked) == {"url", "expires_at"}


def _type_of_the_assistant(shell: Shell, server: Server) -> None:
    bob = {"email": "bob@example.com", "password": PASSWORD}
    bob_id = server.post("/api/v1/users", bob).json()["id"]
    promotion, key = {"role": "support", "staff_level": 3}, {"Octopus-API-Key": shell.set["KEY"]}
    promoted = server.client.patch(f"/api/v1/admin/users/{bob_id}", json=promotion, headers=key)
    assert promoted.status_code == 200, promoted.text
    shell.set["STAFF"] = server.post("/api/v1/auth/login", bob).json()["access_token"]
    give, ask = commands_of("assistant.md")

    assert values(shell.type(give))[0]["credits"] == 100
    reply = shell.type(ask)
    assert reply.count("event: delta") == 2
    assert '"content":"Hello Ada"' in reply


def _type_of_events(shell: Shell) -> None:
    follow, program = commands_of("events.md")
    shell.set["ID"] = shell.set["C"]

    assert "event: ready" in shell.type(follow, until="event: ready")
    if shutil.which("node") is None:
        unavailable("The program of docs/events.md needs node.")
    (shell.folder / "follow.mjs").write_text(BROWSER + program + FOLLOW)
    assert "\nmessage.created Hello again\n" in shell.type("node follow.mjs", until="Hello again")


def _type_of_setting_up(shell: Shell) -> None:
    """As a newcomer: in one terminal that knows nothing but where the database of this test is."""
    shell.set = {name: shell.server[name] for name in ("DATABASE_URL", "DATA_DIR")} | {"ENVIRONMENT": "test"}
    *first_users, write_secrets = commands_of("setup.md")

    said = shell.type("\n".join(first_users))
    assert '"healthy"' in said
    [made] = values(said.splitlines()[-1])
    assert (made["email"], made["role"]) == ("lin@example.com", "user")
    shell.type(write_secrets)
    assert re.findall(r"^\w+(?==)", (shell.folder / ".env").read_text(), re.MULTILINE) == [
        "SECRET_KEY",
        "ENCRYPTION_KEYS",
        "BACKUP_KEY",
        "BOOTSTRAP_TOKEN",
        "MASTER_API_KEY",
    ]
    assert stat.S_IMODE((shell.folder / ".env").stat().st_mode) == 0o600


def _type_of_audit(shell: Shell) -> None:
    compute, verify, verify_anchor = commands_of("audit.md")
    until(lambda: values(shell.type(verify))[0]["head"])
    [chain] = values(shell.type(verify))
    head = chain["head"]
    shell.instead["seq=1042&hash=9f2c..."] = f"seq={head['seq']}&hash={head['hash']}"

    assert chain["valid"] is True
    assert values(shell.type(verify_anchor))[0]["valid"] is True
    [events] = values(
        shell.type('curl -s "$A/api/v1/admin/audit-events?action=user:created" -H "Octopus-API-Key: $KEY"')
    )
    sealed = [event for event in events if event["hash"]]
    assert sealed
    exec(compute, {"event": sealed[0]})  # noqa: S102 - the page is ours
    with pytest.raises(AssertionError):
        exec(compute, {"event": sealed[0] | {"outcome": "failure"}})  # noqa: S102


def values(said: str) -> list[Any]:
    """The JSON values that commands have said, one after the other."""
    found, at, said = [], 0, said.strip()
    while at < len(said):
        value, at = json.JSONDecoder().raw_decode(said, at)
        found.append(value)
        at += len(said[at:]) - len(said[at:].lstrip())
    return found
