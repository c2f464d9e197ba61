"""What another service may know of a credential that it was shown. A bad one is an answer here, not a refusal."""

from app.core import key_format
from app.core.exceptions import RejectedCredentialError
from app.core.tokens import read_access_token
from app.crud import crud_api_key
from app.schemas.introspection import Introspection
from app.services import auth_service

_INACTIVE = Introspection(active=False)


async def introspect(text: str) -> Introspection:
    """What an access token or an API key may do at present, by the same look-up that lets it in here."""
    parsed = key_format.parse(text)
    try:
        return await (_of_token(text) if parsed is None else _of_key(text, key_id=parsed.key_id))
    except RejectedCredentialError:
        return _INACTIVE


async def _of_token(text: str) -> Introspection:
    claims = read_access_token(text).claims
    principal = await auth_service.authenticate_token(text)
    return Introspection(
        active=True,
        scope=principal.scope,  # by the role of today, not by that of when the token was made
        username=principal.name,
        token_type="bearer",  # noqa: S106 - not a password
        role=principal.role,
        **{name: claims[name] for name in ("exp", "iat", "nbf", "sub", "aud", "iss", "jti", "sid")},
    )


async def _of_key(text: str, *, key_id: str) -> Introspection:
    principal = await auth_service.identify_api_key(text)
    key = await crud_api_key.find_by_key_id(key_id)
    if key is None:
        return _INACTIVE
    return Introspection(
        active=True,
        scope=principal.scope,
        client_id=key.id,
        token_type="api_key",  # noqa: S106 - not a password
        sub=principal.user_id or key.id,
        exp=int(key.expires_at.timestamp()) if key.expires_at else None,
    )
