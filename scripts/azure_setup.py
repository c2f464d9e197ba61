"""Fill what docs/infra has made in Azure, and tell GitHub of it: `python3 scripts/azure_setup.py RESOURCE_GROUP`.

Needs `az` and `gh`, signed in, and nothing but Python. Secrets that the vault lacks are made, DATABASE_URL and SMTP_URL
asked for, unless the environment has them; those that are there stay as they are, so it can be run again.
"""

import argparse
import base64
import getpass
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ENVIRONMENT: Final = "production"  # of the repository; the identity that deploys believes no other
BRANCH: Final = "main"  # the only one that may use it
MADE: Final[dict[str, Callable[[], str]]] = {
    "SECRET_KEY": lambda: secrets.token_urlsafe(48),
    "ENCRYPTION_KEYS": lambda: base64.urlsafe_b64encode(os.urandom(32)).decode(),
    "BOOTSTRAP_TOKEN": lambda: secrets.token_urlsafe(32),
}
ASKED: Final = {
    "DATABASE_URL": "mongodb+srv://user:password@host/octopus",
    "SMTP_URL": "smtp://user:password@host:587?starttls=1",
}


def main() -> None:
    options = _options()
    query = ["deployment", "group", "show", "-g", options.group, "-n", options.deployment]
    outputs = json.loads(_run("az", *query, "--query", "properties.outputs", "-o", "json").strip() or "null")
    if not outputs:
        sys.exit(
            f"The deployment {options.deployment} has made nothing: it has failed, or goes on. Mend and repeat that."
        )
    _fill(outputs["vault"]["value"], options.ask)
    _guard_environment()
    for name, value in outputs["variables"]["value"].items():
        _run("gh", "variable", "set", name, "--body", value)
    print(f"GitHub knows where to deliver. Push to main, and the service is at {outputs['url']['value']}.")


def _guard_environment() -> None:
    """Let only the branch deploy: who may push to any branch could else be who deploys, by a workflow in it.

    An environment that is there is not written, since that would take its reviewers away.
    """
    place = "repos/{owner}/{repo}/environments"
    there = {each["name"]: each for each in _asked_github(f"{place}?per_page=100")["environments"]}
    if ENVIRONMENT not in there:
        chosen = [f"deployment_branch_policy[{name}]" for name in ("protected_branches", "custom_branch_policies")]
        fields = ["-F", f"{chosen[0]}=false", "-F", f"{chosen[1]}=true"]
        _run("gh", "api", "--method", "PUT", "--silent", f"{place}/{ENVIRONMENT}", *fields)
    elif there[ENVIRONMENT]["deployment_branch_policy"] is None:
        sys.exit(f"Every branch may deploy to the environment {ENVIRONMENT} on GitHub: choose {BRANCH} alone there.")
    elif not there[ENVIRONMENT]["deployment_branch_policy"]["custom_branch_policies"]:
        return  # protected branches
    policies = f"{place}/{ENVIRONMENT}/deployment-branch-policies"
    if BRANCH not in [each["name"] for each in _asked_github(policies)["branch_policies"]]:
        _run("gh", "api", "--method", "POST", "--silent", policies, "-f", f"name={BRANCH}")


def _asked_github(path: str) -> Any:
    return json.loads(_run("gh", "api", path))


def _fill(vault: str, more: list[str]) -> None:
    """Put into the vault what it lacks."""
    query = ["keyvault", "secret", "list", "--vault-name", vault, "--query", "[].name", "-o", "json"]
    there: list[Any] = json.loads(_run("az", *query))
    for name in [*MADE, *ASKED, *more]:
        secret = name.replace("_", "-")
        if secret in there:
            print(f"{name}: is there")
        else:
            _store(vault, secret, MADE[name]() if name in MADE else _asked(name))
            print(f"{name}: stored")


def _asked(name: str) -> str:
    value = os.environ.get(name) or getpass.getpass(f"{name} ({ASKED.get(name, 'not shown')}): ")
    if name in ASKED and "://" not in value:
        sys.exit(f"{name} must be a URL, such as {ASKED[name]}.")  # not the next of several lines that were pasted
    return value.strip() or sys.exit(f"{name} is needed.")


def _store(vault: str, name: str, value: str) -> None:
    """By a file: other users of the machine can read arguments."""
    with tempfile.TemporaryDirectory() as folder:  # nobody else may look into it
        file = Path(folder) / "secret"
        file.write_text(value)
        at = ["--vault-name", vault, "-n", name, "--file", str(file)]
        _run("az", "keyvault", "secret", "set", *at, "--encoding", "utf-8", "-o", "none")


def _run(program: str, *arguments: str) -> str:
    found = shutil.which(program)
    if found is None:
        sys.exit(f"{program} is not on PATH.")
    done = subprocess.run([found, *arguments], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        sys.exit(f"This failed: {program} {' '.join(arguments[:3])}")
    return done.stdout


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", metavar="RESOURCE_GROUP")
    parser.add_argument("--deployment", default="octopus", help="the name that the deployment was given")
    parser.add_argument("--ask", action="append", default=[], metavar="NAME", help="one more setting to store")
    return parser.parse_args()


if __name__ == "__main__":
    main()
