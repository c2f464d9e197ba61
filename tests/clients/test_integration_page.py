"""The services of docs/integration.md, taken from the page and started by its commands, before a real Octopus."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jwt
import pytest

from tests.clients.conftest import Serving
from tests.signing_keys import key_of
from tests.test_project_files import ROOT
from tests.test_server import Server, free_port, sign_up, until

PAGE = (ROOT / "docs" / "integration.md").read_text()
FILES = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^```console\n\$ (.*)\n```$", PAGE, re.MULTILINE)
FAULTS = ["", "Bearer wrong", "Bearer a.b.c", "Basic YTpi"]


class Service(NamedTuple):
    """A service of the page, in a process of its own."""

    name: str
    process: subprocess.Popen[bytes]
    client: httpx.Client

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def answers(self) -> bool:
        assert self.process.poll() is None, f"{self.name} has ended."
        try:
            self.client.get("/me")
        except httpx.TransportError:
            return False
        return True


@pytest.fixture
def octopus(serving: Serving) -> Server:
    return serving("ES256")


@pytest.fixture
def admin(octopus: Server) -> dict[str, str]:
    return {"Octopus-API-Key": octopus.post("/bootstrap").json()["api_key"]}


@pytest.fixture
def services(octopus: Server, admin: dict[str, str], tmp_path: Path, node_folder: Path) -> Iterator[list[Service]]:
    for name, program in FILES.items():
        (tmp_path / name).write_text(program)
    shutil.copy(ROOT / "docs" / "integration" / "octopus_auth.py", tmp_path)
    (tmp_path / "node_modules").symlink_to(node_folder / "node_modules")
    key = make_key(octopus, admin, "tokens:introspect")["key"]
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OCTOPUS_URL": str(octopus.client.base_url).rstrip("/"),
        "OCTOPUS_API_KEY": key,
    }
    started = [service_of(command, tmp_path, environment) for command in COMMANDS]
    for service in started:
        until(service.answers)
    yield started
    for service in started:
        os.killpg(service.process.pid, signal.SIGKILL)
        service.process.wait()
        service.client.close()


def service_of(command: str, folder: Path, environment: dict[str, str]) -> Service:
    """Started as the page says, but on a free port."""
    port = free_port()
    assert command.count("8001") == 1
    process = subprocess.Popen(  # noqa: S602 - the page is ours
        command.replace("8001", str(port)),
        shell=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return Service(command, process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))


def make_key(octopus: Server, headers: dict[str, str], scope: str) -> dict[str, Any]:
    made = octopus.client.post("/api/v1/api-keys", json={"name": scope, "scopes": [scope]}, headers=headers)
    assert made.status_code == 201, made.text
    return dict(made.json())


def without_scopes(token: str) -> dict[str, str]:
    """The token as Octopus signs it for whose role needs a second factor, until there is one."""
    claims = jwt.decode(token, options={"verify_signature": False}) | {"scope": ""}
    header = {"kid": jwt.get_unverified_header(token)["kid"]}
    return {"Authorization": f"Bearer {jwt.encode(claims, key_of('ES256'), 'ES256', headers=header)}"}


def test_services_of_the_page_let_in_whom_they_should(
    octopus: Server, admin: dict[str, str], services: list[Service]
) -> None:
    bearer = {"Authorization": f"Bearer {sign_up(octopus)}"}
    ada = {"kind": "user", "user_id": octopus.client.get("/api/v1/auth/me", headers=bearer).json()["id"]}
    chats, later = make_key(octopus, bearer, "conversations:read"), make_key(octopus, bearer, "items:read")
    shown = {"Octopus-API-Key": chats["key"]}
    service_key = {"Octopus-API-Key": make_key(octopus, admin, "items:read")["key"]}
    typo = {"Octopus-API-Key": chats["key"][:-1] + ("x" if chats["key"][-1] != "x" else "y")}

    assert len(services) == 4
    unenrolled = without_scopes(bearer["Authorization"].partition(" ")[2])

    for service in services:
        refused = [service.get("/me", {"Authorization": fault} if fault else {}) for fault in FAULTS]
        refused.append(service.get("/me", typo))
        assert [answer.status_code for answer in refused] == [401] * 5, service.name
        assert {answer.headers["www-authenticate"].split()[0] for answer in refused} == {"Bearer"}
        assert {answer.headers["content-type"].split(";")[0] for answer in refused} == {"application/problem+json"}
        assert refused[0].json()["code"] == "not_authenticated"
        for headers, known in ((bearer, ada), (shown, ada), (service_key, {"kind": "service", "user_id": None})):
            told = service.get("/me", headers)
            assert (told.status_code, told.json()) == (200, known), service.name
        assert [service.get("/items", headers).status_code for headers in (bearer, service_key)] == [200, 200]
        weak = service.get("/items", shown)
        assert (weak.status_code, weak.json()["code"]) == (403, "insufficient_scope"), service.name
        assert service.get("/me", bearer | shown).status_code == 400
        pending = service.get("/me", unenrolled)
        assert (pending.status_code, pending.json()["code"]) == (401, "mfa_required"), service.name

    turned_off = octopus.client.post(f"/api/v1/api-keys/{chats['id']}/deactivate", headers=bearer)
    assert turned_off.status_code == 200
    for service in services:
        until(lambda get=service.get: get("/me", shown).status_code == 401, seconds=20)  # type: ignore[misc]

    octopus.kill()
    for service in services:
        away = service.get("/me", {"Octopus-API-Key": later["key"]})
        assert (away.status_code, away.json()["code"]) == (503, "authentication_unavailable"), service.name
        assert int(away.headers["retry-after"]) > 0
