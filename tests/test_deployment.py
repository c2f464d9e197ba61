"""The way to Azure, as far as it can be walked without Azure: names that are the same in several places, commands.

`az bicep build` compiles the templates in the pipeline.
"""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from app.core.config import Settings

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "docs" / "infra"
BICEP = sorted(INFRA.rglob("*.bicep"))
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/deployment.md")}
WORKFLOWS = {file.name: file.read_text() for file in (ROOT / ".github" / "workflows").glob("*.yml")}
# Of App Service itself, and of the library that signs in to the blob store.
OF_THE_PLATFORM = re.compile(r"WEBSITES?_[A-Z_]+|AZURE_CLIENT_ID")
# An `az` and a `gh` that remember what they are told, and what was in the file that they were shown.
RECORDER = """#!{python}
import json, os, stat, sys
from pathlib import Path
state = Path(os.environ["STATE"])
calls = json.loads(state.read_text()) if state.exists() else []
words = [Path(sys.argv[0]).name, *sys.argv[1:]]
call = {{"words": words}}
if "--file" in words:
    file = Path(words[words.index("--file") + 1])
    call["secret"], call["mode"] = file.read_text(), stat.S_IMODE(file.parent.stat().st_mode)
calls.append(call)
state.write_text(json.dumps(calls))
if words[1:3] == ["deployment", "group"]:
    print(os.environ.get("OUTPUTS", json.dumps({outputs})))
elif words[1:] == ["api", "repos/{{owner}}/{{repo}}/environments?per_page=100"]:
    print(os.environ["ENVIRONMENTS"])
elif words[-1].endswith("deployment-branch-policies"):
    print(json.dumps({{"branch_policies": [{{"name": "main"}}] if "name=main" in str(calls) else []}}))
elif words[1:4] == ["keyvault", "secret", "list"]:
    print(json.dumps([c["words"][c["words"].index("-n") + 1] for c in calls if "secret" in c]))
"""
OUTPUTS = {
    "vault": {"value": "octopus-1"},
    "variables": {"value": {"AZURE_APP": "octopus-1", "AZURE_REGISTRY": "octopus1"}},
    "url": {"value": "https://octopus-1.azurewebsites.net"},
}

ASKED = {"DATABASE_URL": "mongodb+srv://octopus:kS8vN2@db.example.net/octopus", "SMTP_URL": "smtps://m.example"}
GUARDED = {
    "name": "production",
    "deployment_branch_policy": {"protected_branches": False, "custom_branch_policies": True},
}


class TestTemplates:
    @pytest.mark.parametrize("file", BICEP, ids=lambda file: file.name)
    def test_use_what_they_declare(self, file: Path) -> None:
        text = _without_comments(file)

        for kind, name in re.findall(r"^(param|var|module) (\w+)", text, re.MULTILINE):
            uses = len(re.findall(rf"\b{name}\b", text)) - len(re.findall(rf"^ *{name}:|'{name}'", text, re.MULTILINE))
            assert uses > 1 or kind == "module", f"{name} is declared and not used"
        assert text.count("{") == text.count("}")
        assert text.count("[") == text.count("]")
        assert text.count("(") == text.count(")")
        assert all(
            re.fullmatch(r"Microsoft\.[\w./]+@20\d\d-[01]\d-[0-3]\d(-preview)?", kind)
            for kind in re.findall(r"^resource \w+ '(.+?)' =", text, re.MULTILINE)
        )

    def test_give_each_module_the_parameters_that_it_has(self) -> None:
        main = _without_comments(INFRA / "main.bicep")
        modules = re.findall(r"^module \w+ '(.+?)' = (?:if \(.*?\) )?\{(.*?)^\}", main, re.MULTILINE | re.DOTALL)

        assert {INFRA / path for path, _ in modules} == set(BICEP) - {INFRA / "main.bicep"}
        for path, body in modules:
            given = re.findall(r"^    (\w+):", body, re.MULTILINE)
            module = _without_comments(INFRA / path)
            assert set(given) == set(re.findall(r"^param (\w+)", module, re.MULTILINE)), path
            used = set(re.findall(rf"\b{Path(path).stem}\.outputs\.(\w+)", main))
            assert used <= set(re.findall(r"^output (\w+)", module, re.MULTILINE)), path

    def test_set_what_is_a_setting_or_known_to_the_platform(self) -> None:
        app = _without_comments(INFRA / "modules" / "app.bicep")
        (secrets,) = re.findall(r"var secrets = concat\((.*?)\n\)", app, re.DOTALL)
        names = re.findall(r"name: '([A-Z_]+)'", app) + re.findall(r"'([A-Z_]+)'", secrets)

        assert {name for name in names if not OF_THE_PLATFORM.fullmatch(name)} <= _settings()
        assert {"DATABASE_URL", "SECRET_KEY", "ENCRYPTION_KEYS", "BOOTSTRAP_TOKEN", "SMTP_URL"} <= set(names)
        assert len(names) == len(set(names))
        assert re.search(r"name: 'TRUSTED_PROXIES', value: '\[\"169\.254\.0\.0/16\"\]'", app)

    def test_tell_what_both_slots_log(self) -> None:
        app = _without_comments(INFRA / "modules" / "app.bicep")

        diagnosed = re.findall(
            r"^resource \w+ 'Microsoft.Insights/diagnosticSettings@.*?^}", app, re.MULTILINE | re.DOTALL
        )

        assert re.findall(r"scope: (\w+)", "".join(diagnosed)) == ["site", "staging"]

    def test_call_nobody_for_answers_that_are_long_by_nature(self) -> None:
        assert "HttpResponseTime" not in (INFRA / "modules" / "alerts.bicep").read_text()

    def test_keep_files_for_one_time_that_is_set_in_one_place(self) -> None:
        storage = _without_comments(INFRA / "modules" / "storage.bicep")

        days = re.findall(r"^ *(?:days|daysAfterCreationGreaterThan): (.+)$", storage, re.MULTILINE)

        assert sorted(days) == ["keepDeletedDays"] * 3 + ["keepDeletedDays - 1"]
        assert re.findall(r"^ *(isVersioningEnabled: true|changeFeed: \{)$", storage, re.MULTILINE) == [
            "isVersioningEnabled: true",
            "changeFeed: {",
        ]
        assert "blob-service-properties" not in (ROOT / "docs" / "backup.md").read_text()

    def test_keep_no_password(self) -> None:
        text = "".join(_without_comments(file) for file in BICEP)

        assert re.findall(r"(?:adminUserEnabled|allowSharedKeyAccess|allowBlobPublicAccess): true", text) == []
        assert "listKeys" not in text
        assert re.findall(r"@secure\(\)\nparam (\w+)", text) == ["cosmosPassword", "password"]


class TestWorkflow:
    def test_reads_the_variables_that_the_templates_give(self) -> None:
        main = _without_comments(INFRA / "main.bicep")
        (given,) = re.findall(r"^output variables object = \{(.*?)^\}", main, re.MULTILINE | re.DOTALL)

        read = set(re.findall(r"vars\.(\w+)", WORKFLOWS["main.yml"]))

        assert read == set(re.findall(r"^  (\w+):", given, re.MULTILINE))

    def test_signs_in_as_whom_the_templates_believe(self) -> None:
        identities = (INFRA / "modules" / "identities.bicep").read_text()

        subjects = re.findall(r"subject: '\$\{subjectPrefix\}:(.+)'", identities)

        assert subjects == ["ref:refs/heads/main", "environment:production"]
        assert "\n    environment: production\n" in WORKFLOWS["main.yml"]
        # Since June 2026 there are ids in it, so that nobody signs in under a name that was given up: GitHub is asked.
        asked = (
            "subjectPrefix=\"$(gh api 'repos/{owner}/{repo}/actions/oidc/customization/sub' --jq .sub_claim_prefix)\""
        )
        assert [page.count(asked) for page in PAGES.values()] == [1, 2]
        assert re.search(r"push:\n    branches: \[main\]\n", WORKFLOWS["main.yml"])

    @pytest.mark.parametrize("name", sorted(WORKFLOWS))
    def test_is_sound_shell(self, name: str) -> None:
        jobs = YAML(typ="safe").load(WORKFLOWS[name])["jobs"].values()
        commands = [step["run"] for job in jobs for step in job.get("steps", []) if "run" in step]
        for command in commands:
            read = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False)  # noqa: S607
            assert read.stderr == "", command

        assert commands != []

    def test_swaps_back_what_fails_after_the_swap(self) -> None:
        steps = re.findall(r"- name: (.+)", WORKFLOWS["main.yml"].partition("\n  deploy:\n")[2])

        assert steps[-3:] == ["Swap", "Check what is live", "Swap back"]
        assert "if: ${{ (failure() || cancelled()) && steps.swap.outcome == 'success' }}" in WORKFLOWS["main.yml"]


class TestCommands:
    def test_name_what_exists(self) -> None:
        texts = PAGES | WORKFLOWS | {"docker-compose.yml": (ROOT / "docker-compose.yml").read_text()}
        for page, text in texts.items():
            named = re.findall(r"(?<![\w/.-])(?:docs|scripts|app|\.github)/[\w./-]*\w", text)
            assert {path for path in named if not (ROOT / path).exists()} == set(), page

    def test_give_the_scripts_options_that_they_know(self) -> None:
        texts = "\n".join([*PAGES.values(), *WORKFLOWS.values()]).replace("\\\n", " ")
        for script, rest in re.findall(r"python3? (scripts/(?:azure_setup|smoke_test)\.py)([^\n`#&]*)", texts):
            known = set(re.findall(r'add_argument\("(--[\w-]+)"', (ROOT / script).read_text()))
            assert set(re.findall(r"(?<!\S)--[\w-]+", rest)) <= known, rest

    def test_give_the_templates_parameters_that_they_have(self) -> None:
        known = set(re.findall(r"^param (\w+)", (INFRA / "main.bicep").read_text(), re.MULTILINE))
        commands = "\n".join(PAGES.values()).replace("\\\n", " ")
        given = [
            name
            for parameters in re.findall(r"az deployment group create.*?--parameters ([^\n]*)", commands)
            for name in re.findall(r"(?<!\S)(\w+)=", parameters)
        ]

        assert {"subjectPrefix", "operatorId"} <= set(given)
        assert set(given) <= known

    def test_give_the_templates_what_has_no_default(self) -> None:
        needed = set(re.findall(r"^param (\w+) \w+$", (INFRA / "main.bicep").read_text(), re.MULTILINE))
        commands = re.findall(r"az deployment group create[^\n]*", "\n".join(PAGES.values()).replace("\\\n", " "))

        assert needed == {"subjectPrefix", "operatorId", "mailFrom"}
        assert len(commands) == 3
        for command in commands:
            assert needed <= set(re.findall(r"(?<!\S)(\w+)=", command)), command

    @pytest.mark.parametrize("page", PAGES)
    def test_set_what_they_use(self, page: str) -> None:
        for block in re.findall(r"(?m)(?:^    .+\n)+", PAGES[page]):
            used = set(re.findall(r"\$\{?([A-Z]\w*)", block))
            assert used <= set(re.findall(r"(?<!\S)([A-Z]\w*)=", block)), block

    def test_never_deploy_the_image_of_which_nothing_is_known(self) -> None:
        assert re.search(r"^@minLength\(1\)\nparam image string", (INFRA / "main.bicep").read_text(), re.MULTILINE)


class TestSetup:
    @pytest.fixture(autouse=True)
    def _programs(self, tmp_path: Path) -> None:
        for program in ("az", "gh"):
            file = tmp_path / program
            file.write_text(RECORDER.format(python=sys.executable, outputs=OUTPUTS))
            file.chmod(0o755)

    def test_fills_the_vault_once_and_tells_github(self, tmp_path: Path) -> None:
        first = _set_up(tmp_path, ASKED)
        second = _set_up(tmp_path, {}, environments=[GUARDED])

        calls = json.loads((tmp_path / "state").read_text())
        stored = {call["words"][call["words"].index("-n") + 1]: call["secret"] for call in calls if "secret" in call}
        assert [call["mode"] for call in calls if "secret" in call] == [stat.S_IRWXU] * 5
        assert {name.replace("-", "_") for name in stored} == {
            "SECRET_KEY",
            "ENCRYPTION_KEYS",
            "BOOTSTRAP_TOKEN",
            *ASKED,
        }
        assert stored["DATABASE-URL"] == ASKED["DATABASE_URL"]
        words = " ".join(word for call in calls for word in call["words"]) + first + second
        assert [name for name, value in stored.items() if value in words] == []
        assert ["gh", "variable", "set", "AZURE_REGISTRY", "--body", "octopus1"] in [call["words"] for call in calls]
        assert second.count("is there") == 5
        variables = {name.replace("-", "_").lower(): value for name, value in stored.items()}
        started = Settings(_env_file=None, environment="production", public_url="https://o.example", **variables)
        assert started.cipher.decrypt(started.cipher.encrypt(b"x")) == b"x"

    def test_lets_only_main_deploy(self, tmp_path: Path) -> None:
        _set_up(tmp_path, ASKED)
        _set_up(tmp_path, {}, environments=[GUARDED])

        place = "repos/{owner}/{repo}/environments/production"
        chosen = [
            "deployment_branch_policy[protected_branches]=false",
            "deployment_branch_policy[custom_branch_policies]=true",
        ]
        assert [words[2:] for words in _words(tmp_path) if "--method" in words] == [
            ["--method", "PUT", "--silent", place, "-F", chosen[0], "-F", chosen[1]],
            ["--method", "POST", "--silent", f"{place}/deployment-branch-policies", "-f", "name=main"],
        ]

    def test_takes_no_reviewers_away_and_does_not_go_on_where_every_branch_may_deploy(self, tmp_path: Path) -> None:
        said = _refused(tmp_path, ASKED, environments=[GUARDED | {"deployment_branch_policy": None}])

        assert said == "Every branch may deploy to the environment production on GitHub: choose main alone there.\n"
        assert [words for words in _words(tmp_path) if "--method" in words or "variable" in words] == []

    @pytest.mark.parametrize("outputs", ["null", "", "{}"])
    def test_says_that_a_deployment_has_failed(self, tmp_path: Path, outputs: str) -> None:
        said = _refused(tmp_path, ASKED | {"OUTPUTS": outputs})

        assert said.startswith("The deployment octopus has made nothing: it has failed")
        assert len(said.splitlines()) == 1
        assert len(_words(tmp_path)) == 1

    def test_stores_nothing_but_a_url_where_it_asks_for_one(self, tmp_path: Path) -> None:
        said = _refused(tmp_path, {"DATABASE_URL": "gh workflow run main.yml"})

        assert said.startswith("DATABASE_URL must be a URL, such as mongodb+srv://")
        assert "DATABASE-URL" not in str(_words(tmp_path))


def _set_up(folder: Path, variables: dict[str, str], environments: Sequence[dict[str, Any]] = ()) -> str:
    done = _run(folder, variables, environments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _refused(folder: Path, variables: dict[str, str], environments: Sequence[dict[str, Any]] = ()) -> str:
    done = _run(folder, variables, environments)
    assert done.returncode == 1
    return done.stderr


def _run(
    folder: Path, variables: dict[str, str], environments: Sequence[dict[str, Any]]
) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "STATE": str(folder / "state")}
    path["ENVIRONMENTS"] = json.dumps({"environments": environments})
    command = [sys.executable, str(ROOT / "scripts" / "azure_setup.py"), "octopus"]
    return subprocess.run(command, env=path | variables, capture_output=True, text=True, check=False)  # noqa: S603


def _words(folder: Path) -> list[list[str]]:
    """What `az` and `gh` were told."""
    return [call["words"] for call in json.loads((folder / "state").read_text())]


def _settings() -> set[str]:
    fields: dict[str, Any] = Settings.model_fields
    return {name.upper() for name in fields}


def _without_comments(file: Path) -> str:
    return re.sub(r"(?m)^\s*//.*$", "", file.read_text())
