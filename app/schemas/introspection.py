from typing import Annotated

from beanie import PydanticObjectId
from pydantic import ConfigDict, Field

from app.core.scopes import Role
from app.schemas.base import RequestBody, ResponseBody
from app.schemas.key_verification import ShownFrom


class IntrospectionForm(RequestBody):
    """A token to be judged. What else clients send, such as `client_id`, is ignored: the caller is known already."""

    model_config = ConfigDict(extra="ignore")

    token: str
    token_type_hint: Annotated[str | None, Field(description="Not needed: a key is told from a token by its form")] = (
        None
    )
    ip: ShownFrom = None


class Introspection(ResponseBody):
    """What is known of a token (RFC 7662, section 2.2). Of one that is not active nothing but that."""

    active: bool
    scope: Annotated[str | None, Field(description="Names separated by spaces: what it may ask for at present")] = None
    client_id: Annotated[PydanticObjectId | None, Field(description="The key, for an API key")] = None
    username: str | None = None
    token_type: Annotated[str | None, Field(description="`bearer` or `api_key`")] = None
    exp: int | None = None
    iat: int | None = None
    nbf: int | None = None
    sub: Annotated[PydanticObjectId | None, Field(description="The user, or the key that belongs to none")] = None
    aud: str | None = None
    iss: str | None = None
    jti: str | None = None
    sid: Annotated[PydanticObjectId | None, Field(description="The session")] = None
    role: Role | None = None
