"""What is known of the request under way, for logs and audit events, wherever in the code they are written."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
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
    # Called inside of each transaction of the request, at its end.
    before_commit: Callable[[], Awaitable[None]] | None = None
    # The narrowest of the budgets that the request has spent; the answer tells of it whatever becomes of the request.
    budget: Budget | None = None


_NO_REQUEST = RequestContext()
_current: ContextVar[RequestContext] = ContextVar("request_context", default=_NO_REQUEST)

set_context = _current.set


@contextmanager
def on_the_side() -> Iterator[None]:
    """What is changed inside is not yet what the request asks for: nobody is called before it is committed."""
    context = current_context()
    before_commit, context.before_commit = context.before_commit, None
    try:
        yield
    finally:
        context.before_commit = before_commit


def current_context() -> RequestContext:
    """The request under way; outside one (in a script, a job) an empty context."""
    return _current.get()
