from datetime import datetime
from typing import Annotated, ClassVar

from beanie import PydanticObjectId
from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, Field, StringConstraints

from app.core.plans import Plan
from app.core.scopes import Role
from app.schemas.auth import Otp
from app.schemas.base import Name, PatchBody, RequestBody, ResourceRead, ResponseBody


def _normalised_email(text: str) -> str:
    """NFC, with the domain in lower case."""
    try:
        return validate_email(text, check_deliverability=False).normalized
    except EmailNotValidError as error:
        raise ValueError("is not an e-mail address") from error


Email = Annotated[str, StringConstraints(max_length=320), AfterValidator(_normalised_email)]
Username = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{3,32}$")]
# The policy of passwords is `core/passwords.py`; here is only what keeps a body from being absurd.
Password = Annotated[str, StringConstraints(max_length=4096)]
OwnOtp = Annotated[Otp, Field(description="With `current_password`, where two-factor authentication is on")]


class UserCreate(RequestBody):
    email: Email
    password: Password
    username: Username | None = None
    full_name: Name | None = None


class UserUpdate(PatchBody):
    """`current_password` is needed to change one's own e-mail address or password, with two-factor also `otp`."""

    clearable: ClassVar = frozenset({"username", "full_name"})

    email: Email | None = None
    username: Username | None = None
    full_name: Name | None = None
    password: Password | None = None
    current_password: Password | None = None
    otp: OwnOtp | None = None
    is_active: bool | None = None
    role: Role | None = None


class OwnUserUpdate(PatchBody):
    clearable: ClassVar = frozenset({"username", "full_name"})

    email: Email | None = None
    username: Username | None = None
    full_name: Name | None = None
    password: Password | None = None
    current_password: Password | None = None
    otp: OwnOtp | None = None


class UserDelete(RequestBody):
    """`current_password` is needed to delete oneself, with two-factor authentication also `otp`."""

    current_password: Password | None = None
    otp: OwnOtp | None = None
    reason: Annotated[Name | None, Field(description="Kept with the archived account")] = None


class UserRead(ResourceRead):
    email: str
    username: str | None
    full_name: str | None
    role: Role
    staff_level: int | None
    is_active: bool
    is_superuser: bool
    is_verified: bool
    mfa_enabled: bool
    plan: Plan
    created_at: datetime
    updated_at: datetime
    last_login_at: datetime | None


class UserCard(ResponseBody):
    """What anyone may know of a user."""

    id: PydanticObjectId
    username: str | None
    full_name: str | None
    created_at: datetime
