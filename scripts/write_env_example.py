"""Write `.env.example` and `docs/settings.md` from the settings: `python3 scripts/write_env_example.py [--check]`.

With `--check` nothing is written: it fails when a file differs from what would be.
"""

import json
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import environment
from write_files import write_or_check

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic.fields import FieldInfo

# The variable that begins each group, in the order of `app/core/config.py`.
GROUPS: Final = {
    "ENVIRONMENT": "Process",
    "DATA_DIR": "Database and files",
    "SECRET_KEY": "Secrets, tokens and accounts",
    "SMTP_URL": "Mail",
    "MAX_CONNECTIONS": "Connections",
    "ASSISTANT_BASE_URL": "Assistant",
    "MIGRATE_ON_START": "Migrations",
    "BACKUP_DIR": "Backups",
    "CORS_ORIGINS": "Browsers, proxies and host names",
    "RATE_LIMIT_ANONYMOUS": "Limits",
    "MAX_UPLOAD_BYTES": "Uploads",
    "METRICS_TOKEN": "Metrics and traces",
}
ENV_HEAD: Final = """\
# Every setting with its default. Copy this file to `.env` and take the # off what you change.
# The environment wins over `.env`; `python3 scripts/generate_secrets.py` prints fresh secrets.
# Made from app/core/config.py by scripts/write_env_example.py.
"""
DOCS_HEAD: Final = """\
# Settings

A variable of the environment wins over the same one in `.env`, and that over the default. One that is set to nothing
counts as not set. With `ENVIRONMENT=production` the service refuses to start on what is unsafe there, and names every
fault at once. `python3 scripts/generate_secrets.py` prints fresh secrets.

This page is made from `app/core/config.py` by `python3 scripts/write_env_example.py`.

| variable | default | meaning |
| --- | --- | --- |
"""


class Setting(NamedTuple):
    name: str
    default: str
    meaning: str


def main() -> None:
    environment.enter("requirements.txt")
    import service  # noqa: F401, PLC0415 - makes `app` importable

    from app.core.config import Settings  # noqa: PLC0415

    settings = [_setting(name, field) for name, field in Settings.model_fields.items()]
    if strangers := GROUPS.keys() - {setting.name for setting in settings}:
        sys.exit(f"No such setting to begin a group with: {', '.join(sorted(strangers))}.")
    root = environment.ROOT
    write_or_check({root / ".env.example": _env_example(settings), root / "docs/settings.md": _docs(settings)}, __doc__)


def _setting(name: str, field: "FieldInfo") -> Setting:
    """What there is to say of a setting. One without a description is a mistake, and fails here."""
    if not field.description:
        sys.exit(f"The setting {name.upper()} has no description.")
    return Setting(name.upper(), _default(field), field.description)


def _default(field: "FieldInfo") -> str:
    """The default as it would stand in `.env`. A default of the code is public, so it shows no secret."""
    from pydantic import SecretStr  # noqa: PLC0415
    from pydantic_settings import NoDecode  # noqa: PLC0415

    default = field.get_default()
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if default is None or NoDecode in field.metadata:  # the latter is a comma-separated list, empty by default
        return ""
    return json.dumps(default) if isinstance(default, (bool, tuple)) else str(default)


def _env_example(settings: "Iterable[Setting]") -> str:
    """Everything is commented out, so that a copy changes nothing."""
    lines = [ENV_HEAD]
    for setting in settings:
        if setting.name in GROUPS:
            lines.append(f"\n### {GROUPS[setting.name]}\n")
        lines.append(f"# {setting.meaning}\n#{setting.name}={setting.default}\n")
    return "".join(lines)


def _docs(settings: "Iterable[Setting]") -> str:
    return DOCS_HEAD + "".join(_row(setting) for setting in settings)


def _row(setting: Setting) -> str:
    default = f"`{setting.default}`" if setting.default else ""
    cells = (f"`{setting.name}`", default, setting.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


if __name__ == "__main__":
    main()
