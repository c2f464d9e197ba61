import hmac
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS

from app.api import rate_limit
from app.core.config import get_settings
from app.core.exceptions import InvalidTokenError, NotFoundError, UnauthenticatedError

if TYPE_CHECKING:
    from app.services.metrics_service import Scraper

router = APIRouter(include_in_schema=False)
_WANTED: Final = "application/openmetrics-text"


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus. What it costs is spent by nobody: who has the token scrapes as often as it likes."""
    await _admit(request)
    scraper: Scraper = request.app.state.scraper
    is_openmetrics = _WANTED in request.headers.get("accept", "").lower()
    content = await scraper.scrape(is_openmetrics=is_openmetrics)
    return Response(content, headers={"Content-Type": OPENMETRICS if is_openmetrics else CONTENT_TYPE_LATEST})


async def _admit(request: Request) -> None:
    settings = get_settings()
    if not settings.has_metrics:
        raise NotFoundError("There is nothing at this path.")
    if settings.metrics_token is None:
        await rate_limit.spend_anonymous(request)
        return
    given = request.headers.get("authorization")
    if given is None:
        raise UnauthenticatedError("This needs the METRICS_TOKEN of the service, as a bearer token.")
    scheme, _, token = given.partition(" ")
    is_right = hmac.compare_digest(token.encode(), settings.metrics_token.get_secret_value().encode())
    if scheme.lower() != "bearer" or not is_right:
        raise InvalidTokenError
