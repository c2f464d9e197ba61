from fastapi import APIRouter, Response

from app.api.deps import ANONYMOUS_RATE
from app.api.responses import JsonResponse
from app.core.config import get_settings
from app.schemas.jwks import JsonWebKeySet

router = APIRouter(tags=["auth"])


@router.get("/.well-known/jwks.json", dependencies=[ANONYMOUS_RATE], response_model=JsonWebKeySet)
async def get_signing_keys() -> Response:
    """The public keys that verify access tokens (RFC 7517), by the `kid` of their header. None under HS256."""
    keys = get_settings().token_keys.published
    return JsonResponse({"keys": keys}, headers={"Cache-Control": "public, max-age=300"})
