"""What `docker compose up` starts, by its very commands, with the servers of the tests in place of the images."""

import os
import re
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from ruamel.yaml import YAML

from app.core.config import Settings
from app.db.embedded import find_mongod
from tests import azurite_server
from tests.image import ROOT, environment_of, lay_out
from tests.redis_server import RedisServer, redis_server

__all__ = ["redis_server"]  # a fixture
Service = dict[str, Any]


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    found: dict[str, Service] = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
    return found


class TestServices:
    def test_are_kept_small(self, services: dict[str, Service]) -> None:
        for name, service in services.items():
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert service["read_only"] is (name != "clamav"), name
            assert service["mem_limit"], name
            assert service["pids_limit"], name
            assert service["stop_grace_period"] == "40s", name
            assert not service.get("privileged"), name

    def test_are_pinned_to_a_release(self, services: dict[str, Service]) -> None:
        foreign = {service["image"] for service in services.values() if "build" not in service}

        assert foreign == {
            *("mongo:8.0", "redis:8.2-alpine", "mcr.microsoft.com/azure-storage/azurite:3.35.0"),
            *("clamav/clamav-debian:1.4", "axllent/mailpit:v1.31"),
        }

    def test_wait_for_what_can_be_waited_for(self, services: dict[str, Service]) -> None:
        for name, service in services.items():
            for other, wait in service.get("depends_on", {}).items():
                if wait["condition"] == "service_healthy":
                    assert services[other]["healthcheck"]["test"], f"{name} waits for {other}"
                elif wait["condition"] == "service_completed_successfully":
                    assert services[other]["restart"] == "no", f"{name} waits for {other}"
        assert set(services["api"]["environment"]) <= {field.upper() for field in Settings.model_fields}

    def test_hold_no_password(self) -> None:
        assert azurite_server.ACCOUNT not in text_of_services()
        assert re.findall(r"(?i)pass\w*[=:] *[^ $]", text_of_services()) == []


def text_of_services() -> str:
    return (ROOT / "docker-compose.yml").read_text() + (ROOT / "docs" / "compose.development.yml").read_text()


class TestUp:
    def test_ends_in_a_working_service_that_starts_anew_when_the_code_changes(
        self, services: dict[str, Service], tmp_path: Path, redis_server: RedisServer
    ) -> None:
        keys, image = tmp_path / "keys", lay_out(tmp_path)
        keys.mkdir()
        _run_twice_the_making_of_keys(services["keys"], keys)
        with ExitStack() as stack:
            port = stack.enter_context(_mongod(services["mongodb"], keys, tmp_path))
            for _ in range(2):  # `up` runs it each time
                assert _made_ready(services["replica-set"], image, keys, port) == "The replica set is ready.\n"
            password = (keys / "password").read_text()
            _is_guarded(port, password)
            store = stack.enter_context(_azurite(services["azurite"], keys, tmp_path))
            places = _places(keys, port, store)
            with _api(services["api"], image, places, redis_server.url) as (url, log):
                assert _has_made_a_superuser(services["api"], image, places)
                walked = _run(
                    ["python", "scripts/smoke_test.py", url, "--wait=120", "--walk"], environment_of(image), image
                )
                assert walked.endswith(f"DELETE /api/v1/users/me: 204\nGET /api/v1/auth/me: 401\n{url} is well.\n")
                assert redis_server.names() != []

                (image / "app" / "main.py").touch()

                _until(lambda: log.read_text().count('":"started"') == 2, log)
            assert log.read_text().count('":"stopped"') == 2


def _run_twice_the_making_of_keys(service: Service, keys: Path) -> None:
    script = _plain(service["entrypoint"][2]).replace("/data/configdb", str(keys))
    kept: list[dict[str, bytes]] = []
    for _ in range(2):
        _run([*service["entrypoint"][:2], script], {"PATH": os.environ["PATH"]}, keys)
        kept.append({file.name: file.read_bytes() for file in keys.iterdir()})

    assert kept[0] == kept[1]
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in keys.iterdir()}
    assert modes == {"keyfile": 0o400, "storage-key": 0o440, "password": 0o440, "admin-password": 0o440}
    assert len(kept[0]["password"]) == len(kept[0]["admin-password"]) == 48
    assert kept[0]["password"] != kept[0]["admin-password"]


@contextmanager
def _mongod(service: Service, keys: Path, folder: Path) -> Iterator[int]:
    """The database by the command of its service; its port."""
    (folder / "db").mkdir()
    (folder / "tmp").mkdir()
    port = _free_port()
    places = {"--bind_ip_all": "--bind_ip=127.0.0.1", "--dbpath=/data/db": f"--dbpath={folder / 'db'}"}
    command = [places.get(part, part).replace("/data/configdb", str(keys)) for part in service["command"]]
    command += [f"--port={port}", f"--unixSocketPrefix={folder / 'tmp'}", f"--logpath={folder / 'mongod.log'}"]
    with _process([str(find_mongod(None)), *command[1:]], {}, folder, folder / "mongod.out"):
        check = [part.replace("27017", str(port)) for part in service["healthcheck"]["test"][1:]]
        _until(lambda: subprocess.run(check, check=False, capture_output=True).returncode == 0, folder / "mongod.log")  # noqa: S603
        yield port


def _made_ready(service: Service, image: Path, keys: Path, port: int) -> str:
    places = {"--member=mongodb:27017": f"--member=127.0.0.1:{port}", "--secrets=/run/keys": f"--secrets={keys}"}
    command = [places.get(part, part) for part in service["command"]]
    return _run([*command, f"--port={port}"], environment_of(image), image)


def _is_guarded(port: int, password: str) -> None:
    """Whether nobody gets in without the password, and the service may not make users with it."""
    with MongoClient[Any]("127.0.0.1", port, directConnection=True) as stranger:
        with pytest.raises(OperationFailure, match="requires authentication"):
            stranger.octopus.command("find", "users")
        with pytest.raises(OperationFailure, match="requires authentication"):
            stranger.admin.command({"createUser": "eve", "pwd": "e", "roles": ["root"]})
    with MongoClient[Any]("127.0.0.1", port, directConnection=True, username="octopus", password=password) as service:
        # What a killed worker has locked is free again as soon as docs/setup.md wants it to be.
        told = service.admin.command({"getParameter": 1, "transactionLifetimeLimitSeconds": 1})
        assert told["transactionLifetimeLimitSeconds"] == 5
        with pytest.raises(OperationFailure, match="not authorized"):
            service.admin.command({"createUser": "eve", "pwd": "e", "roles": ["root"]})


@contextmanager
def _azurite(service: Service, keys: Path, folder: Path) -> Iterator[int]:
    """The blob store by the command of its service; its port."""
    program = _azurite_program()
    port, store = _free_port(), folder / "blobs"
    store.mkdir()
    script = _plain(service["entrypoint"][2])
    for there, here in [("0.0.0.0", "127.0.0.1"), ("10000", str(port)), ("/data", str(store))]:  # noqa: S104
        script = script.replace(there, here)
    script = script.replace("/run/keys", str(keys))
    path = f"{program.parent}:{os.environ['PATH']}"
    check = [part.replace("10000", str(port)) for part in service["healthcheck"]["test"][1:]]
    with _process([*service["entrypoint"][:2], script], {"PATH": path}, folder, folder / "azurite.out"):
        _until(
            lambda: subprocess.run(check, check=False, capture_output=True).returncode == 0,  # noqa: S603
            folder / "azurite.out",
        )
        yield port


def _azurite_program() -> Path:
    found = azurite_server.program()
    if found is None:
        missing = "There is no azurite-blob in .venv/azurite or on PATH, and AZURITE names none."
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return Path(found)


def _places(keys: Path, database: int, store: int) -> dict[str, str]:
    """What stands in the commands, and what it is here."""
    return {
        "/run/keys": str(keys),
        "0.0.0.0": "127.0.0.1",  # noqa: S104
        "mongodb:27017": f"127.0.0.1:{database}",
        "azurite:10000": f"127.0.0.1:{store}",
    }


def _entered(service: Service, command: list[str], places: dict[str, str]) -> list[str]:
    """The command behind the entrypoint of its service."""
    words = [_plain(word) for word in (*service["entrypoint"], *command)]
    for there, here in places.items():
        words = [word.replace(there, here) for word in words]
    return words


def _has_made_a_superuser(service: Service, image: Path, places: dict[str, str]) -> bool:
    """By the line that operators are shown, with what makes it ask nothing."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    (line,) = re.findall("^    docker compose run --rm api (.*)$", page, re.MULTILINE)
    command = _entered(service, [*line.split(), "--email=ada@example.com", "--password-stdin"], places)
    variables = environment_of(image) | {"ENVIRONMENT": "development", "BCRYPT_ROUNDS": "4"}
    return _run(command, variables, image, typed="correct horse battery\n").startswith(
        "Superuser ada@example.com is made"
    )


@contextmanager
def _api(service: Service, image: Path, places: dict[str, str], limits: str) -> Iterator[tuple[str, Path]]:
    """The service by the command of the development override; its URL, and its log."""
    override = YAML(typ="safe").load(ROOT / "docs" / "compose.development.yml")["services"]["api"]
    assert override["volumes"] == ["./app:/srv/octopus/app:ro"]
    port, log = _free_port(), image.parent / "api.out"
    variables = environment_of(image) | {"OPTIONS": override["environment"]["OPTIONS"], "PORT": str(port)}
    variables |= {"ENVIRONMENT": "development", "RATE_LIMIT_STORAGE_URL": limits, "BCRYPT_ROUNDS": "4"}
    with _process(_entered(service, service["command"], places), variables, image, log) as process:
        yield f"http://127.0.0.1:{port}", log
        process.terminate()  # which the shell must not keep from the service
        process.wait(timeout=30)


@contextmanager
def _process(
    command: list[str], variables: dict[str, str], folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=variables, cwd=folder, stdout=output, stderr=output) as process,  # noqa: S603
    ):
        try:
            yield process
        finally:
            process.kill()


def _run(command: list[str], variables: dict[str, str], folder: Path, *, typed: str = "") -> str:
    done = subprocess.run(  # noqa: S603
        command, env=variables, cwd=folder, input=typed, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _plain(script: str) -> str:
    """As the shell gets it: compose makes one dollar of two."""
    return script.replace("$$", "$")


def _until(condition: Callable[[], bool], log: Path) -> None:
    give_up_at = time.monotonic() + 120
    while True:
        if condition():
            return
        assert time.monotonic() < give_up_at, log.read_text()
        time.sleep(0.05)  # nothing tells of it


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
