"""A line of the log: an event in the names of the Elastic Common Schema, as JSON. docs/logs.md explains it.

What somebody has sent forges no line and moves no cursor: whatever steers a terminal is written out. A line is
bounded, and what looks like a credential is taken out of texts wherever it comes from.
"""

import json
import re
import sys
import traceback
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from app.core import tracing
from app.core.clock import utc_now
from app.core.context import current_context
from app.core.ecs import VERSION as ECS_VERSION
from app.core.key_format import masked
from app.core.version import VERSION

MAX_LINE_BYTES: Final = 16 * 1024 - 1  # with its newline, the piece in which container engines keep a log
_MAX_TEXT: Final = 2048
_MAX_TRACE: Final = 8192
_MAX_READ: Final = 32 * 1024  # of the words of somebody else, who may quote a whole request
_MAX_TEXT_WHEN_CUT: Final = 120
_MAX_DEPTH: Final = 6
_MAX_PARTS: Final = 100
REMOVED: Final = "[removed]"

# What the code calls it, and what the schema does. Everything else is `octopus.` and its name.
_FIELDS: Final[Mapping[str, str]] = {
    "code": "error.code",
    "error": "error.type",
    "exit_status": "process.exit_code",
    "ip": "client.ip",
    "method": "http.request.method",
    "module": "log.logger",
    "path": "url.path",
    "reason": "event.reason",
    "request_id": "http.request.id",
    "status": "http.response.status_code",
    "user_agent": "user_agent.original",
}
_LEVELS: Final[Mapping[str, str]] = {"warn": "warning", "exception": "error"}
_OUTCOMES: Final = {0: "unknown", 1: "success", 2: "success", 3: "success", 4: "failure", 5: "failure"}
_SERVICE: Final = {"service.name": "octopus", "service.version": VERSION, "ecs.version": ECS_VERSION}
_NANOSECONDS: Final = 1_000_000  # in a millisecond

# Values under such names never reach a log, whoever logs them.
_SECRET_NAME: Final = re.compile(
    r"password|secret|token|authorization|cookie|digest|hash|api_?key$|^key$", re.IGNORECASE
)
# What steers a terminal, ends a line, hides or turns round what follows it, or is half a character.
_UNSEEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_UNSEEN_IN_TRACES: Final = re.compile(_UNSEEN.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))
# What libraries put into their messages: tokens, what is between `://` and `@`, and values beside a telling name.
# A long word is looked at once, not again from each of its letters: a caller may have sent it.
_CREDENTIALS: Final = (
    (re.compile(r"(?<![\w-])(?=[\w-]++\.)([\w-]*?)eyJ[\w-]{8,}(\.[\w-]*){1,2}"), rf"\1{REMOVED}"),
    (re.compile(r"(://)[^\s/@]+@"), rf"\1{REMOVED}@"),
    (re.compile(r"(input_value=).*?(?=, input_type=|\]|$)", re.MULTILINE | re.DOTALL), rf"\1{REMOVED}"),
    (
        re.compile(
            r"""(?ix)((?<![\w-])[\w-]*
            (?:password|secret|token|signature|authorization|cookie|digest|hash|api[_-]?key|\bsig)
            ["']? \s* [=:] \s* (?:bearer\s+|basic\s+|b?["'])?) [^\s"'&,;)}\]]+"""
        ),
        rf"\1{REMOVED}",
    ),
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"), rf"\1{REMOVED}"),
)


def render(level: str, event: dict[str, Any]) -> str:
    """The line for an event as the code gives it, in whose dictionary nothing is left in order."""
    line: dict[str, Any] = {
        "@timestamp": utc_now().isoformat(timespec="milliseconds")[:23] + "Z",
        "log.level": _LEVELS.get(level, level),
        "message": text(str(event.pop("event", ""))),
    }
    if "event.kind" not in event and "module" in event:  # what libraries say is no name of an action
        line["event.action"] = line["message"]
    error = _error_of(event.pop("exc_info", None))
    if "status" in event:
        _tell_of_request(line, event)
    for name, value in event.items():
        if value is None:
            continue
        field, is_secret = _field_of(name)
        line[field] = REMOVED if is_secret else value if type(value) is int else clean(value)
    line.update(error)
    if "http.request.id" not in line and (request_id := current_context().request_id) is not None:
        line["http.request.id"] = request_id
    if (ids := tracing.ids()) is not None:
        line["trace.id"], line["span.id"] = ids
    line |= _SERVICE
    return _written(line)


def clean(value: Any, depth: int = 0) -> Any:
    """The value without secrets, and of a size that a line has room for."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict | list | tuple) and depth == _MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        names = list(value)[:_MAX_PARTS]
        return {
            text(str(name)): REMOVED if is_secret_name(str(name)) else clean(value[name], depth + 1) for name in names
        }
    if isinstance(value, list | tuple):
        return [clean(inner, depth + 1) for inner in value[:_MAX_PARTS]]
    if value is None or isinstance(value, int | float):
        return value
    return text(str(value))


def text(value: str) -> str:
    """The text on one line, bounded, with what can't be seen written out, and without the secret part of a key."""
    if len(value) > _MAX_TEXT:
        value = value[: _MAX_TEXT - 1] + "…"
    if "octopus_" in value:
        value = masked(value)
    return value if value.isprintable() else _UNSEEN.sub(_written_out, value)


def without_credentials(value: str) -> str:
    """The words of a library or an exception, without what may be a credential among them; of very many both ends."""
    if len(value) > _MAX_READ:
        value = f"{value[: _MAX_READ // 2]}…{value[-_MAX_READ // 2 :]}"
    for pattern, replacement in _CREDENTIALS:
        value = pattern.sub(replacement, value)
    return masked(value)


def trace_of(error: BaseException) -> str:
    """Its trace, without the values of variables; of a very long one the beginning and the end."""
    whole = without_credentials("".join(traceback.format_exception(error)).rstrip())
    if len(whole) > _MAX_TRACE:
        whole = f"{whole[: _MAX_TRACE // 4]}\n…\n{whole[-_MAX_TRACE * 3 // 4 :]}"
    return _UNSEEN_IN_TRACES.sub(_written_out, whole)


def exception_of(exc_info: Any) -> BaseException | None:
    """What the ways of passing `exc_info` mean."""
    found = sys.exc_info() if exc_info is True else exc_info
    error = found[1] if isinstance(found, tuple) else found
    return error if isinstance(error, BaseException) else None


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


@lru_cache(maxsize=1024)
def _field_of(name: str) -> tuple[str, bool]:
    """Its name in the schema, and whether its value is secret."""
    field = _FIELDS.get(name) or (name if "." in name or name[0] == "@" else f"octopus.{name}")
    return field, is_secret_name(name)


def _tell_of_request(line: dict[str, Any], event: dict[str, Any]) -> None:
    """What the schema has in other units, or asks for besides."""
    line["event.dataset"] = "octopus.access"
    line["event.outcome"] = _OUTCOMES.get(event["status"] // 100, "unknown")
    if "ms" in event:
        line["event.duration"] = round(event.pop("ms") * _NANOSECONDS)
    if event["status"] == 0:  # whoever asked was gone before the answer
        del event["status"]
    kind, _, principal_id = event.get("principal", "").partition(":")
    if kind == "user":
        line["user.id"] = principal_id


def _error_of(exc_info: Any) -> dict[str, str]:
    error = exception_of(exc_info)
    if error is None:
        return {}
    return {
        "error.type": type(error).__name__,
        "error.message": text(without_credentials(_words_of(error))),
        "error.stack_trace": trace_of(error),
    }


def _words_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - somebody else's class: a line must not be lost for that
        return "…"


def _written(line: dict[str, Any]) -> str:
    written = _as_json(line)
    return written if len(written) <= MAX_LINE_BYTES // 4 or _fits(written) else _as_json(_cut(line))


def _fits(written: str) -> bool:
    return len(written.encode()) <= MAX_LINE_BYTES


def _as_json(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # what orjson can't write, such as a very large number: a line must not be lost for that
        return json.dumps(line, default=str, skipkeys=True)


def _cut(line: dict[str, Any]) -> dict[str, Any]:
    """What the schema names, shortened: who, what, when and how it ended are there still."""
    kept = {name: value for name, value in line.items() if not name.startswith("octopus.")}
    for name, value in kept.items():
        if isinstance(value, str):
            kept[name] = value[:_MAX_TEXT_WHEN_CUT]
    if "error.stack_trace" in kept:  # what was raised is at its end
        kept["error.stack_trace"] = line["error.stack_trace"][-_MAX_TEXT:]
    return kept | {"octopus.is_cut": True}


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
