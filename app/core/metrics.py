"""Everything that is counted. docs/observability.md says what it is good for.

No label holds what a caller chose: every value is one of a few that the code knows.
"""

from typing import Final

from app.core.meters import Counter, Histogram, Level

OTHER: Final = "other"

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)
_COMMAND: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.5, 5)
_SLOW: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUESTS: Final = Counter("octopus_http_requests", "Requests, by route template.", "method", "route", "status")
REQUEST_SECONDS: Final = Histogram(
    "octopus_http_request_duration_seconds",
    "Time until the answer began, by route template and class of status.",
    "method",
    "route",
    "status",
    bounds=_REQUEST,
)
COMMAND_SECONDS: Final = Histogram(
    "octopus_database_command_duration_seconds",
    "Database commands, as the driver sees them. A getMore may wait for news.",
    "command",
    bounds=_COMMAND,
)
COMMAND_ERRORS: Final = Counter("octopus_database_command_errors", "Database commands that failed.", "command")
REJECTED_CREDENTIALS: Final = Counter(
    "octopus_rejected_credentials", "Credentials that were not good, by code of the error.", "kind"
)
RATE_LIMITED: Final = Counter("octopus_rate_limited_requests", "Requests that met the end of a rate limit.", "limit")
CUT: Final = Counter("octopus_connections_cut", "Connections that were refused or given up, by reason.", "reason")
JOB_SECONDS: Final = Histogram(
    "octopus_job_duration_seconds", "Runs of jobs, by how they went.", "task", "outcome", bounds=_SLOW
)
UPLOAD_BYTES: Final = Counter("octopus_upload_bytes", "Bytes of files that came in.")
SCANS: Final = Counter("octopus_scans", "Files given to the virus scanner, by result.", "result")
REPLIES: Final = Counter("octopus_assistant_replies", "Replies asked of the assistant, by outcome.", "outcome")
FIRST_WORD_SECONDS: Final = Histogram(
    "octopus_assistant_first_word_seconds", "Time until the first word of a reply.", bounds=_SLOW
)
REPLY_SECONDS: Final = Histogram(
    "octopus_assistant_reply_duration_seconds", "Time until a reply was whole.", bounds=_SLOW
)

IN_FLIGHT: Final = Level("octopus_http_requests_in_flight", "Requests whose answer is not at its end.")
EVENT_STREAMS: Final = Level("octopus_event_streams", "Open streams of events.")
PASSWORD_HASHES: Final = Level("octopus_password_hashes_pending", "Passwords that are hashed now, or wait for it.")
FILE_WORK: Final = Level("octopus_file_work_waiting", "Files that wait for a process to work on them.")
KEY_USAGE: Final = Level("octopus_key_usage_pending", "Hours of API keys that are counted and not written.")
REFUSALS: Final = Level("octopus_refusals_pending", "Refusals that are counted and not in the audit trail.")
BACKGROUND: Final = Level("octopus_background_tasks", "Work that goes on after its answer.")
POOL_IN_USE: Final = Level("octopus_database_connections_in_use", "Connections on which a command is under way.")
POOL_IDLE: Final = Level("octopus_database_connections_idle", "Open connections that nobody uses.")
POOL_AWAITED: Final = Level("octopus_database_connections_awaited", "Commands that wait for a connection.")
OPEN_CIRCUITS: Final = Level("octopus_assistant_circuits_open", "Workers that spare the assistant, as it failed.")

METERS: Final = (
    *(REQUESTS, REQUEST_SECONDS, COMMAND_SECONDS, COMMAND_ERRORS, REJECTED_CREDENTIALS, RATE_LIMITED, CUT),
    *(JOB_SECONDS, UPLOAD_BYTES, SCANS, REPLIES, FIRST_WORD_SECONDS, REPLY_SECONDS),
    *(IN_FLIGHT, EVENT_STREAMS, PASSWORD_HASHES, FILE_WORK, KEY_USAGE, REFUSALS, BACKGROUND),
    *(POOL_IN_USE, POOL_IDLE, POOL_AWAITED, OPEN_CIRCUITS),
)

# What these begin with has no first moment for a rate to miss.
UPLOAD_BYTES.add(amount=0)


def count_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one that is over. `route` is a template; `status` is 0 when nothing was answered."""
    if method not in METHODS:
        method = OTHER
    REQUESTS.add(method, route, str(status))
    REQUEST_SECONDS.observe(seconds, method, route, f"{status // 100}xx" if status else "none")
