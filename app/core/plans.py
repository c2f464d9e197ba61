"""Plans and what each allows, as data."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class Plan(StrEnum):
    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"


class Limits(NamedTuple):
    """What an account may use; None is without limit.

    `requests_per_minute` None leaves it to the setting `RATE_LIMIT_AUTHENTICATED`.
    """

    daily_messages: int | None
    max_conversations: int | None
    storage_bytes: int | None
    requests_per_minute: int | None

    @property
    def rate(self) -> str | None:
        return None if self.requests_per_minute is None else f"{self.requests_per_minute}/minute"


_GIB: Final = 1024**3

LIMITS_OF_PLAN: Final[dict[Plan, Limits]] = {
    Plan.FREE: Limits(daily_messages=500, max_conversations=200, storage_bytes=1 * _GIB, requests_per_minute=None),
    Plan.PRO: Limits(
        daily_messages=10_000, max_conversations=10_000, storage_bytes=100 * _GIB, requests_per_minute=3_000
    ),
    Plan.ENTERPRISE: Limits(
        daily_messages=None, max_conversations=None, storage_bytes=None, requests_per_minute=10_000
    ),
}


def limits_of(plan: Plan, overrides: Mapping[str, int | None]) -> Limits:
    """The limits of the plan, with those that were set for one account in their place."""
    return LIMITS_OF_PLAN[plan]._replace(**overrides)
