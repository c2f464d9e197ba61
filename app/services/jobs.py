"""Which jobs there are."""

from typing import Final

from apscheduler.triggers.interval import IntervalTrigger

from app.services import purge_service
from app.services.job_service import JobType

JOBS: Final = (
    JobType(
        purge_service.JOB,
        "Remove for good what deleted users owned, once their accounts can't be restored any more.",
        "every 10 minutes",
        IntervalTrigger(minutes=10),
        purge_service.purge_due,
    ),
)
