import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from app.core.context import RequestContext, set_context
from app.core.logging_config import configure_logging, get_logger
from app.core.version import VERSION

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


def fail(words: str) -> None:
    raise ValueError(words)


class TestLine:
    def test_is_one_json_object(self, capsys: Captured) -> None:
        configure_logging("INFO")
        set_context(RequestContext())

        get_logger("app.tea").info("brewed", cups=2)

        (line,) = written(capsys)
        assert abs(datetime.fromisoformat(line.pop("@timestamp")) - datetime.now(UTC)) < timedelta(minutes=1)
        assert line == {
            "log.level": "info",
            "message": "brewed",
            "event.action": "brewed",
            "log.logger": "app.tea",
            "octopus.cups": 2,
            "service.name": "octopus",
            "service.version": VERSION,
            "ecs.version": "8.17.0",
        }

    def test_is_the_same_for_the_standard_library(self, capsys: Captured) -> None:
        configure_logging("INFO")

        logging.getLogger("somebody.else").info("hello %s", "there")

        (line,) = written(capsys)
        assert (line["message"], line["log.level"], line["log.logger"]) == ("hello there", "info", "somebody.else")
        assert "event.action" not in line

    def test_stays_one_line_whatever_it_holds(self, capsys: Captured) -> None:
        configure_logging("INFO")

        get_logger("app.tea").info("brewed", path='/a\n{"message": "forged"}\r\n\u2028', names=["\x1b[2Jada\x9b1m"])
        logging.getLogger("somebody.else").info("hello\n{}\u202e")

        ours, theirs = written(capsys)
        assert ours["message"] == "brewed"
        assert ours["url.path"] == '/a\\n{"message": "forged"}\\r\\n\\u2028'
        assert ours["octopus.names"] == ["\\x1b[2Jada\\x9b1m"]
        assert theirs["message"] == "hello\\n{}\\u202e"

    def test_is_bounded_and_tells_the_essential_all_the_same(self, capsys: Captured) -> None:
        configure_logging("INFO")
        deep: list[object] = []
        deep.append(deep)

        try:
            fail("\U0001f419" * 100_000)
        except ValueError:
            get_logger("app.tea").exception(
                "spilled", status=500, path="/" + "\U0001f419" * 100_000, cups=["x" * 2000] * 1000, deep=deep
            )

        text = capsys.readouterr().err
        line = json.loads(text)
        assert len(text.encode()) <= 16 * 1024
        assert (line["message"], line["http.response.status_code"], line["octopus.is_cut"]) == ("spilled", 500, True)
        assert line["error.type"] == "ValueError"

    @pytest.mark.parametrize("value", [object(), b"\xff", {1: 2}, {"a", "b"}, 2**80, "\ud800", float("nan")])
    def test_is_written_for_any_value(self, capsys: Captured, value: object) -> None:
        configure_logging("INFO")

        get_logger("app.tea").info("brewed", value=value)

        assert [line["message"] for line in written(capsys)] == ["brewed"]

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

        assert [line["http.request.id"] for line in written(capsys)] == ["req-7", "req-7"]

    def test_is_absent_outside_of_a_request(self, capsys: Captured) -> None:
        configure_logging("INFO")
        set_context(RequestContext())

        get_logger("app.tea").info("brewed")

        assert "http.request.id" not in written(capsys)[0]


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
        assert (line["octopus.key_id"], line["octopus.keyboard"]) == ("Ab3dEf9H", "grand")

    @pytest.mark.parametrize(
        "words",
        [
            "Bearer {}",
            "https://ada:{}@example.com/tea",
            "GET /tea?signature={}&cups=2",
            "{{'refresh_token': '{}', 'cups': 2}}",
            '{{"api_key": "{}"}}',
            "password={}",
            "[type=string_type, input_value='{}', input_type=str]",
            "E11000 duplicate key error dup key: {{ key_hash: '{}' }}",
        ],
    )
    def test_are_removed_from_the_words_of_libraries_and_exceptions(self, capsys: Captured, words: str) -> None:
        configure_logging("INFO")

        words = words.format("tiger-9f3-x")

        logging.getLogger("somebody.else").warning(words)
        try:
            fail(words)
        except ValueError:
            get_logger("app.tea").exception("spilled")

        text = capsys.readouterr().err
        assert len(text.splitlines()) == 2
        assert "tiger-9f3-x" not in text

    @pytest.mark.parametrize("piece", ["a-", "eyJ", "token", "://a"])
    def test_are_looked_for_in_no_time_however_long_the_words_of_a_caller_are(
        self, capsys: Captured, piece: str
    ) -> None:
        configure_logging("INFO")
        begun = time.process_time()

        logging.getLogger("somebody.else").warning(piece * 10_000)
        logging.getLogger("somebody.else").warning("%s password=tiger-9f3", piece * 20_000)

        assert time.process_time() - begun < 1
        assert "tiger-9f3" not in capsys.readouterr().err

    def test_are_removed_where_a_text_looks_like_one(self, capsys: Captured) -> None:
        configure_logging("INFO")
        key, token = "octopus_Ab3dEf9H_" + "q" * 38, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI3In0.c2lnbmF0dXJl"

        get_logger("app.tea").info(f"brewed {key}", cups=[key])
        logging.getLogger("somebody.else").warning("hello %s %s", key, token)

        text = capsys.readouterr().err
        assert "octopus_Ab3dEf9H_…" in text
        assert [part for part in ("q" * 38, "c2lnbmF0dXJl") if part in text] == []


class TestAtATerminal:
    """A person reads it, and a terminal obeys what it is sent."""

    def test_is_a_line_without_secrets_that_steers_nothing(
        self, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        configure_logging("INFO")
        words = "token=tiger-9f3 \x1b[2J"

        get_logger("app.tea").info("brewed", path="/a\n\x1b[2J\x9b2J", password="tiger-9f3", cups=2)
        try:
            fail(words)
        except ValueError:
            get_logger("app.tea").exception("spilled")
        logging.getLogger("somebody.else").warning("hello\x1b[2J Bearer tiger-9f3")

        text = capsys.readouterr().err
        assert "\x1b[2J" not in text
        assert "\x9b" not in text
        assert "tiger-9f3" not in text
        assert "Traceback" in text
        assert len([line for line in text.split("\n") if "/a\\n" in line and "cups" in line]) == 1


class TestException:
    def test_is_told_with_its_trace(self, capsys: Captured) -> None:
        configure_logging("INFO")

        try:
            _ = {}["kettle"]  # type: ignore[index]
        except KeyError:
            get_logger("app.tea").exception("spilled")

        (line,) = written(capsys)
        assert "Traceback" in line["error.stack_trace"]
        assert (line["error.type"], line["error.message"]) == ("KeyError", "'kettle'")
        assert "KeyError: 'kettle'" in line["error.stack_trace"]

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
