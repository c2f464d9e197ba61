"""A span for each request. This is there only while traces are sent somewhere."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.request_log import route_of
from app.core.network import is_in
from app.core.tracing import active


class TracingMiddleware:
    """The outermost, so that all of a request is inside of its span, the line of the log too.

    Only a trusted proxy is believed of which trace a request is: strangers would choose which requests are traced, and
    write into the traces of others.
    """

    def __init__(self, app: ASGIApp, trusted_proxies: tuple[str, ...]) -> None:
        self.app = app
        self.trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or active.tracer is None:
            await self.app(scope, receive, send)
            return
        status, error = 0, None
        peer = scope["client"][0] if scope.get("client") else None
        headers = Headers(scope=scope) if is_in(peer, self.trusted_proxies) else {}

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with active.tracer.request(scope["method"], scope["path"], scope["scheme"], headers) as span:
            try:
                await self.app(scope, receive, send_noting)
            except Exception as raised:
                error = type(raised).__name__
                raise
            finally:
                span.tell(route=route_of(scope), status=status, error=error)
