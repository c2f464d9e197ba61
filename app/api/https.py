"""Nothing but HTTPS, where a proxy that is trusted says how the request came to it."""

import re
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.cookies import refresh_cookie_of
from app.api.errors import refuse
from app.api.request_log import PROBED
from app.core.exceptions import InvalidRequestError
from app.core.network import is_in

_CREDENTIALS: Final = ("authorization", "octopus-api-key")
_SIGNATURE: Final = "signature"  # of a link that lets in whoever has it
_SAFE: Final = frozenset({"GET", "HEAD"})
_HOST: Final = re.compile(r"([A-Za-z0-9.-]+)(?::\d+)?\Z")  # `evil.example/.example.com` ends as it should
_REFUSAL: Final = (
    "This request came without TLS: send it to the https:// address. What it carried could be read on its way; "
    "replace any credential in it."
)


def came_in_clear(scope: Scope, trusted_proxies: tuple[str, ...]) -> bool:
    """Whether the nearest trusted proxy says so. Without its word, or in anybody else's, it is not known to be."""
    peer = scope["client"][0] if scope.get("client") else None
    told = Headers(scope=scope).getlist("x-forwarded-proto")
    return bool(told) and told[-1].rpartition(",")[2].strip().lower() == "http" and is_in(peer, trusted_proxies)


def _carries_credential(request: Request) -> bool:
    has_header = any(name in request.headers for name in _CREDENTIALS)
    return has_header or _SIGNATURE in request.query_params or refresh_cookie_of(request) is not None


class HttpsMiddleware:
    """Sends who only looks to the https:// address, by 308, and refuses everything else that came in clear.

    A body or a credential is never sent on by a redirect that its sender does not see: it was readable on its way, and
    would be the next time. The address is that of PUBLIC_URL, or the host asked for where TRUSTED_HOSTS names those.
    """

    def __init__(self, app: ASGIApp, *, trusted_proxies: tuple[str, ...], public_url: str, keeps_host: bool) -> None:
        self.app = app
        self.trusted_proxies = trusted_proxies
        self.host = urlsplit(public_url).netloc
        self.keeps_host = keeps_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_asked = scope["type"] == "http" and scope["path"] not in PROBED
        if is_asked and came_in_clear(scope, self.trusted_proxies):
            request = Request(scope)
            if scope["method"] in _SAFE and not _carries_credential(request):
                await self._elsewhere(request)(scope, receive, send)
            else:
                await (await refuse(request, InvalidRequestError(_REFUSAL)))(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _elsewhere(self, request: Request) -> Response:
        named = _HOST.match(request.headers.get("host", "")) if self.keeps_host else None
        host = named[1] if named else self.host
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        if not path.startswith("/"):  # `*@evil.example` is a path too, and would be part of the host
            path = "/"
        query = request.scope["query_string"].decode("latin-1")
        location = f"https://{host}{path}{'?' if query else ''}{query}"
        return Response(status_code=308, headers={"Location": location})
