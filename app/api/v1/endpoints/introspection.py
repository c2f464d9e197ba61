from typing import Annotated

from fastapi import APIRouter, Form

from app.api.deps import TokenInspector
from app.schemas.introspection import Introspection, IntrospectionForm
from app.services import introspection_service

router = APIRouter(prefix="/api/v1/auth", tags=["auth"])


@router.post("/introspect", response_model_exclude_none=True)
async def introspect_token(form: Annotated[IntrospectionForm, Form()], _: TokenInspector) -> Introspection:
    """Whether an access token or an API key is good at present, and what for (RFC 7662).

    Whatever is not good, for whichever reason, is `{"active": false}`. A key that is limited to addresses is good only
    with the `ip` that it was shown from, when that is one of them.
    """
    return await introspection_service.introspect(form.token, ip=form.ip)
