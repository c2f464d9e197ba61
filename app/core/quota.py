"""How many requests an API key may make in a day or a month (UTC)."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

_LONGEST_MONTH: Final = 31


class QuotaPeriod(StrEnum):
    DAY = "day"
    MONTH = "month"


class Window(NamedTuple):
    """One day or month. Its name tells which: `2026-11-21` or `2026-11`."""

    name: str
    resets_at: datetime


class Quota(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(strict=True, ge=1, le=10**12, description="Requests")]
    period: QuotaPeriod

    def window(self, at: datetime) -> Window:
        """The day or month of that moment, in UTC."""
        day = at.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.period is QuotaPeriod.DAY:
            return Window(f"{day:%Y-%m-%d}", day + timedelta(days=1))
        first = day.replace(day=1)
        return Window(f"{day:%Y-%m}", (first + timedelta(days=_LONGEST_MONTH)).replace(day=1))

    def is_within(self, outer: "Quota") -> bool:
        """Whether it never allows more than the other. A month's may be used up in one day, a day's on every day."""
        if self.period is QuotaPeriod.DAY and outer.period is QuotaPeriod.MONTH:
            return self.limit * _LONGEST_MONTH <= outer.limit
        return self.limit <= outer.limit
