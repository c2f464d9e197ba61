from typing import Annotated

from pydantic import AfterValidator, Field

from app.core.plans import Plan
from app.schemas.base import Name, RequestBody, ResponseBody

_MOST_CREDITS_AT_ONCE = 10**12


def _not_zero(amount: int) -> int:
    if amount == 0:
        raise ValueError("must not be 0")
    return amount


Reason = Annotated[Name | None, Field(description="Kept with the event in the audit trail")]


class StaffAction(RequestBody):
    reason: Reason = None


class CreditsAdd(RequestBody):
    """A negative amount takes credits away."""

    amount: Annotated[
        int, Field(strict=True, ge=-_MOST_CREDITS_AT_ONCE, le=_MOST_CREDITS_AT_ONCE), AfterValidator(_not_zero)
    ]
    reason: Reason = None


class PlanChange(RequestBody):
    plan: Plan
    reason: Reason = None


class SessionsRevoked(ResponseBody):
    revoked_count: int
