"""What production says at the start of what it does not refuse."""

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from app.core.config import Settings
from app.main import create_app
from tests.conftest import PRODUCTION, running

Make = Callable[..., Settings]


async def warnings_at_start(settings: Settings) -> list[list[str]]:
    app = create_app(settings)  # before: it configures the logs
    with capture_logs() as logged:
        async with running(app):
            pass
    return [entry["roles"] for entry in logged if entry["event"] == "second_factor_not_required"]


class TestSecondFactorOfThePowerful:
    @pytest.mark.parametrize(
        ("required", "missing"),
        [
            ("", ["admin", "superuser"]),
            ("support", ["admin", "superuser"]),
            ("admin", ["superuser"]),
            ("superuser", ["admin"]),
        ],
    )
    async def test_is_missed_aloud_where_it_is_not_required(
        self, make_settings: Make, required: str, missing: list[str]
    ) -> None:
        assert await warnings_at_start(make_settings(**PRODUCTION, require_mfa_for=required)) == [missing]

    async def test_is_not_missed_where_it_is_required(self, make_settings: Make) -> None:
        assert await warnings_at_start(make_settings(**PRODUCTION, require_mfa_for="admin,superuser")) == []

    @pytest.mark.parametrize("environment", ["development", "test", "staging"])
    async def test_is_not_missed_elsewhere(self, make_settings: Make, environment: str) -> None:
        assert await warnings_at_start(make_settings(environment=environment)) == []
