"""The settings of metrics and traces."""

from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, Field, SecretStr, field_validator

from app.core.setting_types import BaseUrl

_MIN_TOKEN_LENGTH = 16
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"


class ObservabilitySettings(BaseModel):
    metrics_token: SecretStr | None = Field(
        None,
        description="Bearer token that GET /metrics asks for; at least 16 characters. "
        "Without it there is no /metrics in staging and production, and an open one elsewhere",
    )
    metrics_dir: Path | None = Field(
        None, description="Folder in which the workers of one container add up what they count; made where WORKERS > 1"
    )
    otel_exporter_otlp_endpoint: BaseUrl | None = Field(
        None, description="Where traces go, by OTLP over HTTP, such as http://localhost:4318; needs octopus[telemetry]"
    )

    @field_validator("metrics_token")
    @classmethod
    def _is_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_good(value.get_secret_value()):
            raise ValueError(f"must be {_MIN_TOKEN_LENGTH} or more visible ASCII characters")
        return value

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _is_sendable(cls, value: str | None) -> str | None:
        if value is not None and not _can_export():
            raise ValueError("needs packages that are not here: pip install 'octopus[telemetry]'")
        return value


def _is_good(token: str) -> bool:
    return len(token) >= _MIN_TOKEN_LENGTH and token.isascii() and token.isprintable() and " " not in token


def _can_export() -> bool:
    try:
        return find_spec(_EXPORTER) is not None and find_spec("opentelemetry.sdk") is not None
    except ImportError:
        return False
