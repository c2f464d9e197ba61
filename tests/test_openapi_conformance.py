"""Does every answer keep what the OpenAPI document says? Asked with requests that nobody here thought of."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.factories import PASSWORD
from tests.measuring import process_environment
from tests.test_server import Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# The real ids let requests reach something. Ending the session in use would make strangers of all that follow.
CONFIG = """
headers = {{ {header} }}
continue-on-failure = true

[generation]
with-security-parameters = false

[parameters]
conversation_id = "{conversation_id}"
user_id = "{user_id}"
"""
HEADERS = {"user": "Authorization", "admin": "Authorization", "key": "Octopus-API-Key"}

Stored = MongoClient[dict[str, Any]]


class AskedServer(Server):
    """It runs no line that other tests do not run, but thousands of times."""

    measured = 0


@pytest.fixture
def server(database_url: str, short_folder: Path) -> Iterator[Server]:
    server = AskedServer(short_folder, DATABASE_URL=database_url, LOCKOUT_ATTEMPTS="100")
    yield server.ready()
    server.kill()


def sign_up(server: Server, email: str) -> str:
    return str(server.post("/api/v1/users", {"email": email, "password": PASSWORD}).json()["id"])


def log_in(server: Server, email: str) -> str:
    return str(server.post("/api/v1/auth/login", {"email": email, "password": PASSWORD}).json()["access_token"])


def credential_of(caller: str, server: Server, mongodb: Stored, database_url: str) -> str:
    """What the caller shows in its header."""
    if caller == "key":
        return str(server.post("/bootstrap").json()["api_key"])
    sign_up(server, "ada@example.com")
    if caller == "admin":
        users = mongodb[database_url.rpartition("/")[2].partition("?")[0]]["users"]
        users.update_one({"email_key": "ada@example.com"}, {"$set": {"role": "superuser"}})
    return f"Bearer {log_in(server, 'ada@example.com')}"


# Who gets past every door is asked with every wrong value that there is; of the others it is what the doors answer.
PHASES = {"user": "examples,fuzzing", "admin": "examples,coverage,fuzzing", "key": "examples,fuzzing"}


@pytest.mark.parametrize("caller", PHASES)
def test_every_answer_is_the_documented_one(
    server: Server, mongodb: Stored, database_url: str, tmp_path: Path, caller: str
) -> None:
    user_id = sign_up(server, "grace@example.com")
    credential = credential_of(caller, server, mongodb, database_url)
    header = {HEADERS[caller]: credential}
    made = server.client.post("/api/v1/conversations", json={"participant_ids": [user_id]}, headers=header)
    config = tmp_path / "schemathesis.toml"
    shown = f'{HEADERS[caller]} = "${{CREDENTIAL}}"'
    config.write_text(CONFIG.format(header=shown, user_id=user_id, conversation_id=made.json()["id"]))

    ended = subprocess.run(  # noqa: S603 - a program of the environment
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", config, "run"),
            *(f"http://127.0.0.1:{server.port}/openapi.json", "--checks", CHECKS, "--max-examples", "6"),
            *("--phases", PHASES[caller], "--exclude-path-regex", "/auth/(logout|sessions/)|/(events|reply)$"),
            *("--no-color", "--warnings", "off"),
        ],
        cwd=tmp_path,
        env={**process_environment("schemathesis", times=0), "CREDENTIAL": credential},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout[-20_000:]
    assert server.client.get("/api/v1/auth/me", headers=header).status_code == 200, server.log.read_text()
