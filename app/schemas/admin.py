"""Accounts as administrators make, see and change them."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from app.core.plans import Plan
from app.core.scopes import HIGHEST_STAFF_LEVEL, LOWEST_STAFF_LEVEL, Role
from app.schemas.base import PatchBody, RequestBody
from app.schemas.user import UserCreate, UserRead

# Amounts that the database adds up exactly, however often.
LARGEST_AMOUNT = 10**15

StaffLevel = Annotated[int, Field(strict=True, ge=LOWEST_STAFF_LEVEL, le=HIGHEST_STAFF_LEVEL)]
Amount = Annotated[int, Field(strict=True, ge=0, le=LARGEST_AMOUNT)]


class LimitOverrides(RequestBody):
    """What differs from the plan: `null` is without limit, what is left out is as the plan has it.

    `requests_per_minute` without limit is the common limit on the rate of requests.
    """

    daily_messages: Amount | None = None
    max_conversations: Amount | None = None
    storage_bytes: Amount | None = None
    requests_per_minute: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None


class AdminUserCreate(UserCreate):
    """`staff_level` is for the role `support`, which has level 1 without it."""

    role: Role = Role.USER
    staff_level: StaffLevel | None = None
    plan: Plan = Plan.FREE
    is_verified: bool = False

    @model_validator(mode="after")
    def _refuse_level_without_role(self) -> Self:
        if self.staff_level is not None and self.role is not Role.SUPPORT:
            raise ValueError("`staff_level` is only for the role support")
        return self


class AdminUserUpdate(PatchBody):
    """`limits` takes the place of all that was set before; `{}` leaves those of the plan."""

    role: Role | None = None
    staff_level: StaffLevel | None = None
    plan: Plan | None = None
    limits: LimitOverrides | None = None
    credits: Amount | None = None
    is_active: bool | None = None


class AdminUserRead(UserRead):
    """`limits` are those that differ from the plan."""

    limits: dict[str, int | None]
    credits: int
