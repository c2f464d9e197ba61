"""What is known of the request under way, for logs and audit events, wherever in the code they are written."""

import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.core.principal import Principal

from bson import ObjectId

from app.core.rate_limit import Budget


@dataclass(slots=True)
class RequestContext:
    request_id: str | None = None
    client_ip: str | None = None
    user_agent: str | None = None
    # What the access log adds to its line, such as the principal.
    log: dict[str, Any] = field(default_factory=dict)
    # The API key that the request was made with, also when it was refused.
    api_key_id: ObjectId | None = None
    has_spent_credentials: bool = False
    # Whoever the credential of the request belongs to, once that is known.
    principal: "Principal | None" = None
    has_recorded_failure: bool = False
    # Called first inside of each transaction of the request.
    in_transaction: Callable[[], Awaitable[None]] | None = None
    # Whether an answer that had begun well has ended with an error.
    has_broken_off: bool = False
    # The narrowest of the budgets that the request has spent; the answer tells of it whatever becomes of the request.
    budget: Budget | None = None


_NO_REQUEST = RequestContext()
_current: ContextVar[RequestContext] = ContextVar("request_context", default=_NO_REQUEST)

set_context = _current.set


def new_request_id() -> str:
    return secrets.token_hex(12)


def current_context() -> RequestContext:
    """The request under way; outside one (in a script, a job) an empty context."""
    return _current.get()


@contextmanager
def provisionally() -> Iterator[None]:
    """What is done meanwhile is undone when nothing comes of the request: it does not count as carried out for that."""
    token = _current.set(replace(_current.get(), in_transaction=None))
    try:
        yield
    finally:
        _current.reset(token)
