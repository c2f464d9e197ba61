import asyncio
from http import HTTPStatus

from fastapi import APIRouter, Response

from app.api.deps import ANONYMOUS_RATE
from app.api.responses import JsonResponse
from app.core import stopping
from app.core.exceptions import StorageUnavailableError
from app.core.version import VERSION
from app.db.mongo import is_answering
from app.schemas.health import Health, Live, Welcome
from app.services.storage import get_storage

router = APIRouter(tags=["health"])
_PING_SECONDS = 2.0


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
async def health() -> Response:
    """200 when everything that a request needs answers, else 503 naming what does not.

    A server that was told to stop is not ready for more requests: then `checks` has `server: stopping`.
    """
    database, storage = await asyncio.gather(_database_answers(), _storage_answers())
    checks = {"database": "ok" if database else "unavailable", "storage": "ok" if storage else "unavailable"}
    if stopping.is_stopping():
        checks["server"] = "stopping"
    is_healthy = set(checks.values()) == {"ok"}
    content = {"status": "healthy" if is_healthy else "unhealthy", "version": VERSION, "checks": checks}
    return JsonResponse(content, HTTPStatus.OK if is_healthy else HTTPStatus.SERVICE_UNAVAILABLE)


async def _database_answers() -> bool:
    try:
        async with asyncio.timeout(_PING_SECONDS):
            return await is_answering()
    except TimeoutError:
        return False


async def _storage_answers() -> bool:
    try:
        async with asyncio.timeout(_PING_SECONDS):
            await get_storage().check()
    except (TimeoutError, StorageUnavailableError):
        return False
    return True
