"""Structured logs: one event a line, JSON unless a person is watching, the request id on every line."""

import logging
import sys
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.core import log_line, tracing
from app.core.context import current_context
from app.core.log_stream import LogStream

_CHATTY: Final = (
    *("pymongo", "asyncio", "passlib", "apscheduler", "httpx", "httpcore", "sse_starlette", "azure", "msal"),
    *("opentelemetry", "urllib3"),
)


def configure_logging(level: str) -> None:
    """Route structlog and the standard library's logging to standard error, in one form."""
    is_watched = sys.stderr.isatty()
    stream: Any = LogStream(sys.stderr)
    processors, formatter = _for_people() if is_watched else _for_machines()
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for noisy in _CHATTY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True  # the middleware writes that line, with the request id


def get_logger(name: str) -> Any:
    """A logger whose lines say which module wrote them."""
    return structlog.get_logger(module=name)


def _for_machines() -> tuple[list[Processor], logging.Formatter]:
    return [_render], _LineFormatter()


def _render(_: WrappedLogger, level: str, event: EventDict) -> str:
    return log_line.render(level, dict(event))


class _LineFormatter(logging.Formatter):
    """The lines of the standard library's loggers, in the form of ours."""

    def format(self, record: logging.LogRecord) -> str:
        words = log_line.without_credentials(record.getMessage())
        event = {"event": words, "log.logger": record.name, "exc_info": record.exc_info}
        return log_line.render(record.levelname.lower(), event)


def _for_people() -> tuple[list[Processor], logging.Formatter]:
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        _add_request_id,
        _add_trace,
        _clean,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # The other formatters print the values of variables beside a trace, once a certain package is installed.
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_clean_words, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    return [*shared, renderer], formatter


def _add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    request_id = current_context().request_id
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


def _add_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The trace that the line belongs to, in the names of the Elastic Common Schema."""
    if (ids := tracing.ids()) is not None:
        event["trace.id"], event["span.id"] = ids
    return event


def _clean_words(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["event"] = log_line.without_credentials(str(event["event"]))
    return event


def _clean(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """As a line for machines: no secrets, and nothing that steers the terminal."""
    error = log_line.exception_of(event.pop("exc_info", None))
    cleaned = {
        name: log_line.REMOVED if log_line.is_secret_name(name) else _shown(name, value)
        for name, value in event.items()
    }
    return cleaned | ({"exception": log_line.trace_of(error)} if error else {})


def _shown(name: str, value: Any) -> Any:
    return value if name.startswith("_") else log_line.clean(value)  # what is between the library's own parts
