"""What production says at the start of what it does not refuse."""

from collections.abc import Callable, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.core.config import Settings
from app.main import create_app
from tests.conftest import PRODUCTION, running

Make = Callable[..., Settings]


async def lines_at_start(settings: Settings) -> list[MutableMapping[str, Any]]:
    app = create_app(settings)  # before: it configures the logs
    with capture_logs() as logged:
        async with running(app):
            pass
    return logged


async def warnings_at_start(settings: Settings) -> list[list[str]]:
    logged = await lines_at_start(settings)
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


class TestRateLimits:
    @staticmethod
    async def multiplied(settings: Settings) -> list[int]:
        return [e["workers"] for e in await lines_at_start(settings) if e["event"] == "rate_limits_multiplied"]

    async def test_of_several_workers_that_count_alone_are_named(self, make_settings: Make) -> None:
        assert await self.multiplied(make_settings(**PRODUCTION, workers=4)) == [4]

    async def test_of_one_worker_are_what_they_say(self, make_settings: Make) -> None:
        assert await self.multiplied(make_settings(**PRODUCTION, workers=1)) == []

    async def test_that_are_shared_are_what_they_say(self, make_settings: Make) -> None:
        settings = make_settings(**PRODUCTION, workers=4, rate_limit_storage_url="redis://127.0.0.1:9")

        assert await self.multiplied(settings) == []


class TestPlaceBehindAProxy:
    @staticmethod
    async def missed(settings: Settings) -> list[str]:
        names = {"any_host_answered", "no_proxy_trusted"}
        return [str(entry["hint"]) for entry in await lines_at_start(settings) if entry["event"] in names]

    async def test_is_missed_aloud_where_it_is_not_told(self, make_settings: Make) -> None:
        assert await self.missed(make_settings(**PRODUCTION)) == [
            'set TRUSTED_HOSTS=["octopus.example"]',
            "set TRUSTED_PROXIES to what ends TLS, or nobody is sent to https",
        ]

    async def test_is_not_missed_where_it_is_told(self, make_settings: Make) -> None:
        told = {"trusted_hosts": ["octopus.example"], "trusted_proxies": ["192.0.2.1"]}

        assert await self.missed(make_settings(**PRODUCTION, **told)) == []
