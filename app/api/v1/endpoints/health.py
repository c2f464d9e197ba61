from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from app.api.deps import ANONYMOUS_RATE
from app.api.responses import JsonResponse
from app.core import stopping
from app.core.version import VERSION
from app.schemas.health import Health, Live, Welcome

if TYPE_CHECKING:
    from app.services.health_service import Checks

router = APIRouter(tags=["health"])


@router.get("/", dependencies=[ANONYMOUS_RATE], response_model=Welcome)
async def welcome() -> Response:
    """What this is, and where to read on."""
    links = {"docs": "/docs", "openapi": "/openapi.json", "health": "/health"}
    return JsonResponse({"name": "Octopus", "version": VERSION, **links})


@router.get("/health/live", response_model=Live)
async def live() -> Response:
    """200 while the process runs. Touches nothing."""
    return JsonResponse({"status": "alive"})


@router.get("/health", response_model=Health, responses={503: {"model": Health}})
@router.get("/health/ready", response_model=Health, responses={503: {"model": Health}}, name="ready")
async def health(request: Request) -> Response:
    """200 when everything that a request needs answers, else 503 naming what does not.

    A server that was told to stop is not ready for more requests: then `checks` has `server: stopping`.
    """
    answering: Checks = await request.app.state.health.get()
    checks = {name: "ok" if answers else "unavailable" for name, answers in answering._asdict().items()}
    if stopping.is_stopping():
        checks["server"] = "stopping"
    is_healthy = set(checks.values()) == {"ok"}
    content = {"status": "healthy" if is_healthy else "unhealthy", "version": VERSION, "checks": checks}
    return JsonResponse(content, HTTPStatus.OK if is_healthy else HTTPStatus.SERVICE_UNAVAILABLE)
