"""What happened, day by day (UTC), for administrators: a job counts, and a request reads one small document a day.

Today is counted at every run, and each day twice more when it is over: soon, and a day later for what came late. Then
its numbers stay, whatever is deleted (docs/decisions/0035).
"""

from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from app.core.clock import utc_now
from app.crud import crud_statistics
from app.db.mongo import Raw
from app.models.daily_statistics import Counts
from app.schemas.statistics import PresentNumbers, StatisticsDay, StatisticsNumbers, StatisticsRead

MOST_DAYS: Final = 365
# After its end: what was under way at midnight is committed by then, and what a database that was away kept back.
_COUNTED_AGAIN_AFTER: Final = (timedelta(minutes=10), timedelta(hours=25))
_STEPS: Final = 100  # days in one run; the next one goes on


class Refreshed(NamedTuple):
    """How many days were counted, and how many are left for the next run."""

    counted: int
    left: int


async def refresh() -> Refreshed:
    """Count the days that are due, the latest first. Each is written down by itself, so it may end anywhere."""
    now = utc_now()
    days = _days(now.date(), MOST_DAYS)
    known = await crud_statistics.since(days[-1])
    due = [day for day in days if _is_due(day, known.get(day), now)]
    first = await crud_statistics.first_day(days[-1])
    empty = {day: Counts() for day in due if first is None or day < first}
    await crud_statistics.keep(empty, counted_at=now)
    to_count = [day for day in due if day not in empty]
    for day in to_count[:_STEPS]:
        at = utc_now()  # before it is counted: what comes meanwhile may be missing
        await crud_statistics.keep({day: await crud_statistics.count(day)}, counted_at=at)
    return Refreshed(min(len(to_count), _STEPS), max(0, len(to_count) - _STEPS))


async def latest(days: int) -> StatisticsRead:
    """The last so many days, today included, the oldest first. A day of which nothing is known has zeros."""
    wanted = _days(utc_now().date(), days)[::-1]
    known = await crud_statistics.since(wanted[0] - timedelta(days=1))  # just after midnight that is the latest
    series = [StatisticsDay(day=day, **Counts.model_validate(known.get(day, {})).model_dump()) for day in wanted]
    totals = {name: sum(getattr(each, name) for each in series) for name in Counts.model_fields}
    totals["active_users"] = max(each.active_users for each in series)
    return StatisticsRead(
        first_day=wanted[0],
        last_day=wanted[-1],
        refreshed_at=max((_counted_at(row) for row in known.values()), default=None),
        uncounted_days=sum(day not in known for day in wanted),
        present=PresentNumbers(**(await crud_statistics.present())._asdict()),
        totals=StatisticsNumbers(**totals),
        series=series,
    )


def _days(last: date, count: int) -> list[date]:
    return [last - timedelta(days=back) for back in range(count)]


def _is_due(day: date, row: Raw | None, now: datetime) -> bool:
    if row is None or day == now.date():
        return True
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    return any(_counted_at(row) < end + wait <= now for wait in _COUNTED_AGAIN_AFTER)


def _counted_at(row: Raw) -> datetime:
    counted_at: datetime = row["counted_at"]
    return counted_at.replace(tzinfo=UTC)
