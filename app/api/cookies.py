"""The refresh token in a cookie, for browsers: scripts can't read it, and other sites can't use it."""

from http import HTTPStatus
from typing import Final

from fastapi import Request, Response

from app.core.config import Environment, get_settings
from app.core.exceptions import ForbiddenError

_PATH: Final = "/api/v1/auth"
_NO_CONTENT: Final = HTTPStatus.NO_CONTENT


def refresh_cookie_of(request: Request) -> str | None:
    return request.cookies.get(_name())


def set_refresh_cookie(response: Response, token: str, *, max_age: int) -> None:
    """Where there is TLS, the cookie goes over nothing else; the name says so, and browsers hold it to that."""
    response.set_cookie(
        _name(), token, max_age=max_age, path=_PATH, secure=_is_over_tls(), httponly=True, samesite="strict"
    )


def without_refresh_cookie(request: Request) -> Response:
    """An empty answer that makes the browser forget the cookie, when it has one."""
    response = Response(status_code=_NO_CONTENT)
    if refresh_cookie_of(request) is not None:
        response.delete_cookie(_name(), path=_PATH, secure=_is_over_tls(), httponly=True, samesite="strict")
    return response


def refuse_cross_site(request: Request) -> None:
    """Refuse what a page of another site makes a browser send; what is no browser carries no foreign cookies.

    Fetch metadata where the browser sends it, else the Origin header against Host (OWASP CSRF Prevention Cheat Sheet).
    Both are set by the browser and out of reach for scripts. Origins of `CORS_ORIGINS` are welcome; `*` is none.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin is not None and origin in set(get_settings().cors_origins) - {"*"}:
        return
    if site is not None:
        is_own = site in {"same-origin", "none"}
    else:
        is_own = origin is None or origin.partition("://")[2] == request.headers.get("host")
    if not is_own:
        raise ForbiddenError("Pages of another site may not use the refresh cookie.")


def _name() -> str:
    return "__Secure-octopus_refresh" if _is_over_tls() else "octopus_refresh"


def _is_over_tls() -> bool:
    return get_settings().environment in {Environment.PRODUCTION, Environment.STAGING}
