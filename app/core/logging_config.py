"""Structured logs: one event a line, JSON unless a person is watching, the request id on every line."""

import json
import logging
import re
import sys
from functools import lru_cache
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.core.context import current_context
from app.core.log_stream import LogStream

# Values under such names never reach a log, whoever logs them.
_SECRET_NAME: Final = re.compile(
    r"password|secret|token|authorization|cookie|digest|hash|api_?key$|^key$", re.IGNORECASE
)


def configure_logging(level: str) -> None:
    """Route structlog and the standard library's logging to standard error, in one form."""
    is_watched = sys.stderr.isatty()
    stream: Any = LogStream(sys.stderr)
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        _add_request_id,
        _drop_secrets,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor = structlog.dev.ConsoleRenderer() if is_watched else _render_json
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    quiet = ("pymongo", "asyncio", "passlib", "apscheduler", "httpx", "httpcore", "sse_starlette", "azure", "msal")
    for noisy in quiet:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True  # the middleware writes that line, with the request id


def _add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    request_id = current_context().request_id
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


def _drop_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: _without_secrets(name, value) for name, value in event.items()}


def _without_secrets(name: str, value: Any) -> Any:
    if _is_secret_name(name):
        return "[removed]"
    if isinstance(value, dict):
        return {key: _without_secrets(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets("", inner) for inner in value]
    return value


@lru_cache(maxsize=1024)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    if "event.kind" in event:  # an audit event: in its schema `event` is an object, and a line has a `message`
        event["message"] = event.pop("event")
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # what orjson can't write, such as half a surrogate pair: a line must not be lost for that
        return json.dumps(event, default=str, skipkeys=True)


def get_logger(name: str) -> Any:
    """A logger whose lines say which module wrote them."""
    return structlog.get_logger(module=name)
