from datetime import date, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.base import ResponseBody


class StatisticsQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    days: Annotated[int, Field(ge=1, le=365, description="How many days (UTC), today included")] = 30


class PresentNumbers(ResponseBody):
    """How many there are now, whenever they were made: deleted accounts that can still be restored are left out."""

    users: int
    messages: int
    keys: int
    uploads: int


class StatisticsNumbers(ResponseBody):
    users: Annotated[int, Field(description="Accounts that were made, deleted or not")]
    active_users: Annotated[
        int,
        Field(
            description="Different users who, on one day, signed in, renewed a session, or are the user of a message "
            "in the role `user`, whoever wrote it down: a service key that imports messages of 1,000 users makes all "
            "of them active. In the totals the most on one day, since days can't be added up"
        ),
    ]
    messages: Annotated[
        int,
        Field(
            description="Messages of all roles that were written; those of a conversation that was deleted before "
            "they were first counted are missing"
        ),
    ]
    keys: Annotated[int, Field(description="API keys that were made, by rotation and bootstrap too")]
    uploads: Annotated[int, Field(description="Files that were accepted")]
    failures: Annotated[
        int,
        Field(
            description="Sign-ins, requests and files that were refused (401, 403, 429 and infected or unacceptable "
            "files), as the audit trail has them; errors of the service itself are not among them"
        ),
    ]


class StatisticsDay(StatisticsNumbers):
    day: date


class StatisticsRead(ResponseBody):
    """What happened on each of these days (UTC), by the time at which it was recorded."""

    first_day: date
    last_day: Annotated[date, Field(description="Today, which is not over")]
    refreshed_at: Annotated[datetime | None, Field(description="When the job last counted; null before the first time")]
    uncounted_days: Annotated[int, Field(description="Days that the job has not come to yet, and that show zeros")]
    present: PresentNumbers
    totals: Annotated[StatisticsNumbers, Field(description="All of these days together")]
    series: Annotated[list[StatisticsDay], Field(description="Day by day, the oldest first")]
