from dataclasses import replace

from fastapi import APIRouter, Request

from app.api import rate_limit
from app.api.deps import TokenInspector
from app.core.context import current_context
from app.core.principal import Principal
from app.schemas.key_verification import KeyToVerify, KeyVerification
from app.services import key_verification_service

router = APIRouter(prefix="/api/v1/api-keys", tags=["api keys"])


@router.post("/verify")
async def verify_api_key(request: Request, body: KeyToVerify, _: TokenInspector) -> KeyVerification:
    """Whether a key that was shown to you is good, and what for. One that is not is an answer too: see `code`.

    A key that is good draws one request on its quota and on its own rate, and each of its verifications counts in
    its usage. What your own credentials may ask is limited as always.
    """
    return await key_verification_service.verify(body, spend_rate=lambda principal: _spend_own(request, principal))


async def _spend_own(request: Request, principal: Principal) -> None:
    """One request of the key's own rate, when it has one: what all are limited to here is no limit elsewhere.

    The headers of the answer go on telling of the budget of who asks.
    """
    if principal.rate_limit is None:
        return
    budget = current_context().budget
    try:
        await rate_limit.spend_authenticated(request, replace(principal, user_id=None))
    finally:
        current_context().budget = budget
