import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import structlog

from app.core.context import RequestContext, set_context
from app.core.logging_config import configure_logging, get_logger

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Logging as before, once the test is over: its stream is gone then."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


def written(captured: Captured) -> list[dict[str, Any]]:
    """The lines, read as a machine would."""
    return [json.loads(line) for line in captured.readouterr().err.split("\n") if line]


class TestLine:
    def test_is_one_json_object(self, capsys: Captured) -> None:
        configure_logging("INFO")

        get_logger("app.tea").info("brewed", cups=2)

        (line,) = written(capsys)
        assert (line["event"], line["cups"], line["level"], line["module"]) == ("brewed", 2, "info", "app.tea")
        assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None

    def test_is_the_same_for_the_standard_library(self, capsys: Captured) -> None:
        configure_logging("INFO")

        logging.getLogger("somebody.else").info("hello %s", "there")

        (line,) = written(capsys)
        assert (line["event"], line["level"]) == ("hello there", "info")

    def test_stays_one_line_whatever_it_holds(self, capsys: Captured) -> None:
        configure_logging("INFO")

        get_logger("app.tea").info("brewed", path='/a\n{"event": "forged"}\r\n\u2028')

        (line,) = written(capsys)
        assert line["event"] == "brewed"

    @pytest.mark.parametrize("value", [object(), b"\xff", {1: 2}, {"a", "b"}, 2**80, "\ud800", float("nan")])
    def test_is_written_for_any_value(self, capsys: Captured, value: object) -> None:
        configure_logging("INFO")

        get_logger("app.tea").info("brewed", value=value)

        assert [line["event"] for line in written(capsys)] == ["brewed"]

    @pytest.mark.parametrize(("level", "count"), [("DEBUG", 4), ("INFO", 3), ("WARNING", 2), ("ERROR", 1)])
    def test_is_left_out_below_the_level(self, capsys: Captured, level: str, count: int) -> None:
        configure_logging(level)

        for name in ("debug", "info", "warning", "error"):
            getattr(get_logger("app.tea"), name)("brewed")

        assert len(written(capsys)) == count

    def test_goes_to_standard_error_alone(self, capsys: Captured) -> None:
        configure_logging("INFO")

        get_logger("app.tea").info("brewed")

        assert capsys.readouterr().out == ""

    def test_of_chatty_libraries_is_left_out(self, capsys: Captured) -> None:
        configure_logging("DEBUG")

        for name in ("pymongo.command", "asyncio", "passlib", "azure.core", "azure.identity", "msal", "uvicorn.access"):
            logging.getLogger(name).info("chatter")

        assert written(capsys) == []


class TestRequestId:
    def test_is_on_every_line_of_the_request(self, capsys: Captured) -> None:
        configure_logging("INFO")
        set_context(RequestContext(request_id="req-7"))

        get_logger("app.tea").info("brewed")
        logging.getLogger("somebody.else").warning("hello")

        assert [line["request_id"] for line in written(capsys)] == ["req-7", "req-7"]

    def test_is_absent_outside_of_a_request(self, capsys: Captured) -> None:
        configure_logging("INFO")
        set_context(RequestContext())

        get_logger("app.tea").info("brewed")

        assert "request_id" not in written(capsys)[0]


class TestSecrets:
    @pytest.mark.parametrize(
        "name",
        [
            *("password", "current_password", "hashed_password", "authorization"),
            *("token", "access_token", "refresh_token", "bootstrap_token"),
            *("key", "api_key", "master_api_key", "secret", "secret_key"),
        ],
    )
    def test_are_removed_by_name(self, capsys: Captured, name: str) -> None:
        configure_logging("INFO")

        get_logger("app.tea").info("brewed", **{name: "tiger-9f3"})

        text = capsys.readouterr().err
        assert "brewed" in text
        assert "tiger-9f3" not in text

    def test_are_removed_from_within(self, capsys: Captured) -> None:
        configure_logging("INFO")

        get_logger("app.tea").info("brewed", body={"password": "tiger-9f3", "cups": [{"token": "tiger-9f3"}]})

        text = capsys.readouterr().err
        assert "cups" in text
        assert "tiger-9f3" not in text

    def test_leave_what_is_none(self, capsys: Captured) -> None:
        configure_logging("INFO")

        get_logger("app.tea").info("brewed", key_id="Ab3dEf9H", keyboard="grand")

        (line,) = written(capsys)
        assert (line["key_id"], line["keyboard"]) == ("Ab3dEf9H", "grand")


class TestException:
    def test_is_told_with_its_trace(self, capsys: Captured) -> None:
        configure_logging("INFO")

        try:
            _ = {}["kettle"]  # type: ignore[index]
        except KeyError:
            get_logger("app.tea").exception("spilled")

        (line,) = written(capsys)
        assert "Traceback" in line["exception"]
        assert "KeyError: 'kettle'" in line["exception"]

    def test_is_told_without_the_values_around_it(self, capsys: Captured) -> None:
        configure_logging("INFO")
        hidden = "tiger-" + str(10**3 - 7)

        try:
            int(hidden[-3:] + "!")
        except ValueError as error:
            get_logger("app.tea").error("spilled", exc_info=error)
            logging.getLogger("somebody.else").exception("spilled")

        text = capsys.readouterr().err
        assert text.count("ValueError: invalid literal") == 2
        assert "tiger-993" not in text
