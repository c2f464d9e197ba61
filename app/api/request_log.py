"""The line of each request, once it is over. Of probes, which come every few seconds, only what tells something."""

import time
from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

from app.core.context import RequestContext
from app.core.key_format import masked
from app.core.logging_config import get_logger

PROBED: Final = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
_PROBE_SECONDS: Final = 60.0
_FIRST_FAILURE: Final = 400
NO_ROUTE: Final = "unmatched"

_log = get_logger(__name__)


def route_of(scope: Scope) -> str | None:
    """The template of the route that a request has met, such as `/api/v1/items/{item_id}`; none where it met none."""
    return getattr(scope.get("route"), "path", None)


@dataclass
class _Probe:
    """What was told last of a path: there are as many of these as paths."""

    status: int
    told_at: float
    untold: int = 0


class RequestLog:
    """The log of one application's requests."""

    def __init__(self) -> None:
        self._probes: dict[str, _Probe] = {}

    def write(self, scope: Scope, context: RequestContext, status: int, started: float) -> None:
        now = time.perf_counter()
        more = {} if scope["path"] not in PROBED else self._sampled(scope["path"], status, now)
        if more is None:
            return
        _log.info(
            "request",
            method=scope["method"],
            path=masked(scope["path"]),
            route=route_of(scope) or NO_ROUTE,
            status=status,
            ms=round((now - started) * 1000, 2),
            ip=context.client_ip,
            user_agent=context.user_agent,
            **context.log,
            **more,
        )

    def _sampled(self, path: str, status: int, now: float) -> dict[str, int] | None:
        """What to add to the line of a probe; none when there is to be no line.

        There is one of the first, of each failure, when the status is another than before, and once a minute.
        """
        last = self._probes.get(path)
        is_news = last is None or status != last.status or status >= _FIRST_FAILURE or status == 0
        if last is not None and not is_news and now - last.told_at < _PROBE_SECONDS:
            last.untold += 1
            return None
        self._probes[path] = _Probe(status, now)
        return {"probes_untold": last.untold} if last is not None and last.untold else {}
