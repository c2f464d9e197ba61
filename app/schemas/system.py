from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from app.core.circuit_breaker import CircuitState
from app.schemas.base import ResponseBody

Bytes = Annotated[int | None, Field(ge=0)]


class Section(ResponseBody):
    """One part of the system. Of one that is away nothing is known: its other fields are null."""

    status: Annotated[
        Literal["ok", "unavailable", "off"],
        Field(description="`off` is not configured, `unavailable` did not answer well within two seconds"),
    ]
    error: Annotated[str | None, Field(description="The kind of error, when it is unavailable")]
    latency_ms: Annotated[float | None, Field(description="How long it took to ask")]


class DatabaseSection(Section):
    version: str | None
    replica_set: str | None
    state: Literal["primary", "secondary", "other"] | None
    members: int | None
    data_bytes: Bytes
    index_bytes: Bytes
    disk_bytes: Annotated[Bytes, Field(description="What data and indexes take on the disk, compressed")]
    connections: Annotated[int | None, Field(description="Open ones; null where this account may not ask")]
    connections_left: int | None


class StorageSection(Section):
    kind: Literal["folder", "azure"] | None
    total_bytes: Annotated[Bytes, Field(description="Of the disk that a folder is on; null for Azure")]
    free_bytes: Bytes


class ScannerSection(Section):
    version: str | None
    signatures: Annotated[str | None, Field(description="Version of the signatures")]
    signatures_of: Annotated[str | None, Field(description="When those were made, in the scanner's words")]


class MailSection(Section):
    kind: Literal["smtp", "folder"] | None


class OutboxSection(Section):
    waiting: Annotated[int | None, Field(description="Mails that are to be sent still; counted up to 10000")]
    oldest_waiting_at: datetime | None
    failed: Annotated[int | None, Field(description="Mails given up in the last 30 days; counted up to 10000")]


class RateLimitSection(Section):
    kind: Literal["memory", "redis"] | None


class AssistantSection(Section):
    model: str | None
    circuit: Annotated[CircuitState | None, Field(description="`open`: it failed often lately, and is being spared")]


class ProcessSection(Section):
    """The process that answers; others are not asked."""

    pid: int | None
    workers: Annotated[int | None, Field(description="How many processes like this one there are on its host")]
    started_at: datetime | None
    uptime_seconds: int | None
    cpu_seconds: float | None
    threads: int | None
    memory_bytes: Bytes
    memory_used_bytes: Annotated[
        Bytes, Field(description="By all processes of the container, or of the host, without what is only cache")
    ]
    memory_limit_bytes: Annotated[Bytes, Field(description="Of the container, or what the host has")]
    memory_free_bytes: Annotated[Bytes, Field(description="Of the host")]


class DiskSection(Section):
    """The disk of `DATA_DIR`."""

    total_bytes: Bytes
    used_bytes: Bytes
    free_bytes: Bytes


class JobsSection(Section):
    running: list[str] | None
    failed: Annotated[list[str] | None, Field(description="Those whose last run failed")]
    overdue: Annotated[list[str] | None, Field(description="Those that nobody has begun for two minutes")]


class AuditSection(Section):
    unsealed_since: Annotated[datetime | None, Field(description="The oldest event that has no place in the chain")]


class SystemVersions(ResponseBody):
    octopus: str
    python: str
    mongodb: str | None
    libraries: dict[str, str]


class SystemRead(ResponseBody):
    """Everything that the service needs, asked at the same time. No part that is away keeps the others from showing."""

    environment: str
    time: datetime
    versions: SystemVersions
    process: ProcessSection
    database: DatabaseSection
    storage: StorageSection
    scanner: ScannerSection
    mail: MailSection
    outbox: OutboxSection
    rate_limits: RateLimitSection
    assistant: AssistantSection
    disk: DiskSection
    jobs: JobsSection
    audit: AuditSection
