"""Clock, names, context and version: each a few lines, and everything stands on them."""

import asyncio
import tomllib
from contextvars import Context
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.core.clock import utc_now
from app.core.context import RequestContext, current_context, set_context
from app.core.normalise import name_key
from app.core.version import VERSION


class TestUtcNow:
    def test_is_now(self) -> None:
        assert abs(utc_now() - datetime.now(UTC)) < timedelta(seconds=1)

    def test_is_in_utc(self) -> None:
        assert utc_now().utcoffset() == timedelta(0)

    def test_is_cut_to_the_millisecond(self) -> None:
        assert {utc_now().microsecond % 1000 for _ in range(5000)} == {0}

    def test_is_never_ahead(self) -> None:
        assert all(utc_now() <= datetime.now(UTC) for _ in range(1000))


class TestNameKey:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Ada@Example.COM", "ada@example.com"),
            ("Jose\u0301", "JOS\u00c9"),
            ("STRASSE", "straße"),
            ("\u212b", "\u00e5"),
            ("ΣΟΦΟΣ", "σοφος"),
            ("\u1e9b\u0323", "\u1e69"),
        ],
    )
    def test_is_the_same_for_spellings_of_one_name(self, one: str, other: str) -> None:
        assert name_key(one) == name_key(other)

    @pytest.mark.parametrize(("one", "other"), [("ada", "ada "), ("jose", "josé"), ("ada", "\u0430da"), ("a.b", "ab")])
    def test_differs_for_different_names(self, one: str, other: str) -> None:
        assert name_key(one) != name_key(other)

    @pytest.mark.parametrize("text", ["Ada", "Jose\u0301", "ß", "\u0345\u0301", "ŉ", "ΐ"])
    def test_is_its_own_key(self, text: str) -> None:
        assert name_key(name_key(text)) == name_key(text)


class TestContext:
    async def test_is_empty_outside_of_a_request(self) -> None:
        async def look() -> RequestContext:
            return current_context()

        context = await asyncio.get_running_loop().create_task(look(), context=Context())

        assert (context.request_id, context.client_ip, context.user_agent) == (None, None, None)

    async def test_is_each_requests_own(self) -> None:
        async def request(name: str) -> str | None:
            set_context(RequestContext(request_id=name))
            await asyncio.sleep(0)
            return current_context().request_id

        seen = await asyncio.gather(request("a"), request("b"), request("c"))

        assert [*seen] == ["a", "b", "c"]


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())

    assert project["project"]["version"] == VERSION
