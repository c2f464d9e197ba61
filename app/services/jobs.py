"""Which jobs there are."""

from typing import Final

from apscheduler.triggers.interval import IntervalTrigger

from app.services import (
    audit_chain_service,
    credit_service,
    key_expiry_service,
    message_log_service,
    purge_service,
    statistics_service,
    system_check_service,
    upload_orphan_service,
    upload_removal_service,
)
from app.services.job_service import JobType

JOBS: Final = (
    JobType(
        purge_service.JOB,
        "Remove for good what deleted users owned, once their accounts can't be restored any more.",
        "every 10 minutes",
        IntervalTrigger(minutes=10),
        purge_service.purge_due,
    ),
    JobType(
        "expire_keys",
        "Deactivate API keys that have expired.",
        "every 10 minutes",
        IntervalTrigger(minutes=10),
        key_expiry_service.deactivate_expired,
    ),
    JobType(
        "warn_of_expiring_keys",
        "Mail owners or administrators of API keys 14, 7 and 1 days before they expire.",
        "every hour",
        IntervalTrigger(hours=1),
        key_expiry_service.warn,
    ),
    JobType(
        "seal_audit",
        "Give audit events their place in the chain.",
        "every 5 seconds",
        IntervalTrigger(seconds=5),
        audit_chain_service.seal,
    ),
    JobType(
        "prune_audit",
        "Remove audit events that are older than AUDIT_RETENTION_DAYS, if it is set.",
        "every hour",
        IntervalTrigger(hours=1),
        audit_chain_service.prune,
    ),
    JobType(
        "prune_logs",
        "Remove message logs that are older than MESSAGE_LOG_RETENTION_DAYS, unless that is 0.",
        "every hour",
        IntervalTrigger(hours=1),
        message_log_service.prune,
    ),
    JobType(
        "return_credits",
        "Give back credits that replies held when their process died.",
        "every minute",
        IntervalTrigger(minutes=1),
        credit_service.give_back_expired,
    ),
    JobType(
        upload_removal_service.JOB,
        "Remove uploads that never came to an end, and the bytes of those that were deleted.",
        "every minute",
        IntervalTrigger(minutes=1),
        upload_removal_service.clean_up,
    ),
    JobType(
        "find_orphans",
        "Look for bytes that no upload has, and for uploads without their bytes, and tell of them.",
        "every day",
        IntervalTrigger(days=1),
        upload_orphan_service.find_orphans,
    ),
    JobType(
        "refresh_statistics",
        "Count what happened today, and on days of which that is not final yet.",
        "every 5 minutes",
        IntervalTrigger(minutes=5),
        statistics_service.refresh,
    ),
    JobType(
        system_check_service.JOB,
        "Look for parts of the system that are away or nearly full, and for what waits too long, and warn of them.",
        "every 5 minutes",
        IntervalTrigger(minutes=5),
        lambda: system_check_service.check(JOB_NAMES),
    ),
)
JOB_NAMES: Final[frozenset[str]] = frozenset(kind.name for kind in JOBS)
