"""The settings of a test that needs no database."""

from pathlib import Path
from typing import Any

from app.core.config import Settings, use_settings
from tests.conftest import SECRET

OTHER_SECRET = "Wq8dUe2ZrB6mXv0KtNy4GhLs9PcJf3Ai"


def activate(**overrides: Any) -> Settings:
    """Make settings and use them for the process, as the start of the application does."""
    defaults: dict[str, Any] = {
        "environment": "test",
        "secret_key": SECRET,
        "data_dir": Path("never-written"),
        "bcrypt_rounds": 4,
    }
    settings = Settings(_env_file=None, **{**defaults, **overrides})
    use_settings(settings)
    return settings
