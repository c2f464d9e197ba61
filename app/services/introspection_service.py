"""What another service may know of a credential that it was shown. A bad one is an answer here, not a refusal."""

from app.core import key_format
from app.core.exceptions import RejectedCredentialError
from app.core.network import is_in
from app.core.tokens import read_access_token
from app.schemas.introspection import Introspection
from app.services import auth_service

_INACTIVE = Introspection(active=False)


async def introspect(text: str, *, ip: str | None) -> Introspection:
    """What an access token or an API key may do at present, by the same look-up that lets it in here.

    `ip` is where it was shown from. A key that is limited to addresses may do nothing when that is not told.
    """
    is_key = key_format.parse(text) is not None
    try:
        return await (_of_key(text, ip=ip) if is_key else _of_token(text))
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


async def _of_key(text: str, *, ip: str | None) -> Introspection:
    principal = await auth_service.identify_api_key(text)
    if principal.allowed_ips and not is_in(ip, principal.allowed_ips):
        return _INACTIVE
    return Introspection(
        active=True,
        scope=principal.scope,
        client_id=principal.credential_id,
        token_type="api_key",  # noqa: S106 - not a password
        sub=principal.user_id or principal.credential_id,
        exp=int(principal.expires_at.timestamp()) if principal.expires_at else None,
    )
