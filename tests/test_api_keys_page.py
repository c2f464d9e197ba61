"""What docs/api-keys.md tells users to type is typed here, against the service as it is run."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from app.core import key_format
from tests.test_project_files import ROOT
from tests.test_server import Server, Start, sign_up, start

__all__ = ["start"]  # the fixture
PAGE = (ROOT / "docs" / "api-keys.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def make_service_key(server: Server, admin: str, scope: str) -> str:
    body = {"name": scope, "scopes": [scope]}
    response = server.client.post("/api/v1/api-keys", json=body, headers={"Octopus-API-Key": admin})
    return str(response.json()["key"])


def typed(block: str, variables: dict[str, str]) -> Any:
    """What the commands answer."""
    bash = shutil.which("bash")
    assert bash
    ended = subprocess.run(  # noqa: S603 - the page is ours
        [bash, "-euo", "pipefail", "-c", block],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "NO_PROXY": "*", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, (block, ended.stdout, ended.stderr)
    return json.loads(ended.stdout)


class TestCommands:
    def test_do_what_the_page_says(self, start: Start, database_url: str) -> None:
        server = start(DATABASE_URL=database_url).ready()
        admin = server.post("/bootstrap").json()["api_key"]
        variables = {
            "OCTOPUS_URL": str(server.client.base_url).rstrip("/"),
            "TOKEN": sign_up(server),
            "ADMIN_KEY": admin,
            "GATEWAY_KEY": make_service_key(server, admin, "tokens:introspect"),
        }
        answers = []
        for block in blocks("sh"):
            answer = typed(block, variables)
            answers.append(answer)
            if isinstance(answer, dict) and "key" in answer:
                variables |= {"KEY": answer["key"], "ID": answer["id"]}

        made, items, changed, rotated, usage, expiring, verified = answers
        assert (made["name"], made["quota"]["remaining"], items) == ("nightly backup", 10_000, [])
        assert changed["quota"]["limit"] == 500
        assert (rotated["rotated_from"], rotated["allowed_ips"]) == (made["id"], made["allowed_ips"])
        assert (len(usage), expiring) == (31, [])
        assert (verified["code"], verified["key_id"], verified["remaining"]) == ("valid", rotated["key_id"], 499)

    def test_are_told_for_both_shells(self) -> None:
        paths = [re.findall(r"/api/v1/[a-z-]+", "\n".join(blocks(shell))) for shell in ("sh", "powershell")]

        assert len(blocks("sh")) == 7
        assert [path for path in paths[1] if "auth" not in path] == paths[0]


class TestForm:
    @pytest.mark.parametrize("at", [0, 9, 20, 48, 49, 54])
    def test_is_that_of_keys(self, at: int) -> None:
        [regex], [program] = blocks("regex"), blocks("python")
        scope: dict[str, Any] = {}
        exec(program, scope)  # noqa: S102 - the page is ours
        text = key_format.new_key().text
        changed = text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1 :]

        assert re.fullmatch(regex.strip(), text)
        assert scope["is_octopus_key"](text)
        assert not scope["is_octopus_key"](changed)
        assert not scope["is_octopus_key"](text[:-1])
