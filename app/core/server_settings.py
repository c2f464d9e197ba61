"""The settings of how the server treats connections, and how it stops."""

from pydantic import BaseModel, Field


class ServerSettings(BaseModel):
    max_connections: int = Field(
        10_000, ge=1, description="Connections of each worker; more are answered with 503 and hung up on"
    )
    header_timeout_seconds: float = Field(
        15, gt=0, le=600, description="How long a request line and headers may take to come"
    )
    min_body_rate: int = Field(
        1024,
        ge=0,
        description="Bytes a second, over each 30 s, that a body comes at or is given up; 0: as slow as it is",
    )
    shutdown_delay_seconds: float = Field(
        0,
        ge=0,
        le=300,
        description="How long a server that was told to stop goes on serving, while /health/ready says 503",
    )
