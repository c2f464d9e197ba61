from typing import Annotated, Literal, Self

from beanie import PydanticObjectId
from pydantic import ConfigDict, Field, StringConstraints, model_validator

from app.core.principal import PrincipalKind
from app.core.scopes import Role
from app.schemas.base import Line, RequestBody, ResponseBody

_Text = Annotated[str, StringConstraints(max_length=4096)]

Otp = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Login(RequestBody):
    """One of `email` and `username`."""

    email: Line | None = None
    username: Line | None = None
    password: _Text
    otp: Annotated[Otp | None, Field(description="A code of the authenticator, or a recovery code")] = None
    refresh_in_cookie: Annotated[bool, Field(description="For browsers: the refresh token in a cookie")] = False

    @model_validator(mode="after")
    def _names_one_account(self) -> Self:
        if (self.email is None) == (self.username is None):
            raise ValueError("give either `email` or `username`")
        return self


class RefreshRequest(RequestBody):
    refresh_token: Annotated[_Text | None, Field(description="Left out, the cookie is taken")] = None


class TokenForm(RequestBody):
    """The form of an OAuth 2 token request. `username` may hold an e-mail address.

    Client, scope and what this service does not know are ignored (RFC 6749, section 3.2).
    """

    model_config = ConfigDict(extra="ignore")

    grant_type: Literal["password", "refresh_token"]
    username: Line | None = None
    password: _Text | None = None
    refresh_token: _Text | None = None
    otp: Otp | None = None
    scope: _Text | None = None
    client_id: _Text | None = None
    client_secret: _Text | None = None

    @model_validator(mode="after")
    def _holds_what_the_grant_needs(self) -> Self:
        needed = ("refresh_token",) if self.grant_type == "refresh_token" else ("username", "password")
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"this grant needs {' and '.join(missing)}")
        return self


class TokenPair(ResponseBody):
    access_token: str
    token_type: Literal["bearer"]
    expires_in: Annotated[int, Field(description="Seconds")]
    refresh_token: Annotated[str | None, Field(description="null when it is in the cookie")]
    refresh_expires_in: Annotated[int, Field(description="Seconds")]
    scope: str


class PrincipalRead(ResponseBody):
    """Who is calling. `session_id` for a bearer token, `key_id` for an API key."""

    kind: PrincipalKind
    id: PydanticObjectId | None
    name: str | None
    user_id: PydanticObjectId | None
    role: Role | None
    scopes: list[str]
    session_id: PydanticObjectId | None
    key_id: PydanticObjectId | None
