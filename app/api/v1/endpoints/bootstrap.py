from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Request

from app.api.deps import ANONYMOUS_RATE
from app.api.rate_limit import spend_if_presented
from app.schemas.bootstrap import Bootstrapped
from app.services import bootstrap_service

router = APIRouter(tags=["bootstrap"])


@router.post("/bootstrap", status_code=HTTPStatus.CREATED, dependencies=[ANONYMOUS_RATE])
async def bootstrap(
    request: Request, x_bootstrap_token: Annotated[str | None, Header(max_length=1024)] = None
) -> Bootstrapped:
    """Create the master key, once. Where `BOOTSTRAP_TOKEN` is set, the header must show it."""
    await spend_if_presented(request, x_bootstrap_token)
    bootstrap_service.require_token(x_bootstrap_token)
    return await bootstrap_service.bootstrap()
