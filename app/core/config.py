"""Settings: environment over `.env` over defaults. The only place that reads the environment."""

import json
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from cryptography.fernet import MultiFernet
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.core import encryption, signing
from app.core.assistant_settings import AssistantSettings
from app.core.backup_settings import BackupSettings
from app.core.development_secret import development_secret
from app.core.file_type import DEFAULT_ALLOWED_TYPES
from app.core.keyring import Keyring
from app.core.migration_settings import MigrationSettings
from app.core.observability_settings import ObservabilitySettings
from app.core.production import faults_in_production
from app.core.scopes import Role
from app.core.secret_checks import faults_of_secrets
from app.core.server_settings import ServerSettings
from app.core.setting_types import DatabaseUrl, Networks, Rate
from app.core.shared_rate_limit import StoreUrl
from app.core.smtp_server import SmtpServer
from app.core.storage_checks import faults_of_storage


class Environment(StrEnum):
    DEVELOPMENT = "development"
    TEST = "test"
    STAGING = "staging"
    PRODUCTION = "production"


class Settings(
    BackupSettings, ObservabilitySettings, AssistantSettings, MigrationSettings, ServerSettings, BaseSettings
):
    """Every setting, with its default. The variable is the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # an input may be a secret
        populate_by_name=True,
    )

    environment: Environment = Field(
        Environment.DEVELOPMENT,
        description="development, test, staging or production; production refuses what is unsafe",
    )
    debug: bool = Field(False, description="Verbose logs; refused in production")
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$", description="DEBUG, INFO, WARNING, ERROR or CRITICAL"
    )
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on")
    workers: int = Field(1, ge=1, le=256, description="Worker processes")

    data_dir: Path = Field(Path("data"), description="Embedded database, uploads and generated development secret")
    database_url: DatabaseUrl = Field(SecretStr("embedded"), description="embedded, or mongodb://host/name")
    mongod_path: Path | None = Field(
        None, description="The mongod for DATABASE_URL=embedded, when it is not found by itself"
    )

    secret_key: SecretStr | None = Field(
        None, description="Signs tokens and derives keys; at least 32 bytes; generated in development"
    )
    previous_secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Comma-separated; what they signed is still accepted"
    )
    master_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("master_api_key", "api_key"),
        description="The key that POST /bootstrap installs; API_KEY is an alias",
    )
    bootstrap_token: SecretStr | None = Field(None, description="POST /bootstrap must show it in X-Bootstrap-Token")
    encryption_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Fernet keys, comma-separated; the first encrypts, all decrypt; derived in development"
    )
    jwt_algorithm: str = Field(
        "HS256",
        pattern="^(HS256|RS256|ES256|EdDSA)$",
        description="HS256 under SECRET_KEY, or RS256, ES256, EdDSA with JWT_PRIVATE_KEY_FILE",
    )
    jwt_private_key_file: Path | None = Field(
        None, description="PEM file: the first private key signs, all keys in it verify and are published"
    )
    jwt_issuer: str = Field("octopus", description="`iss` of access tokens")
    jwt_audience: str = Field("octopus", description="`aud` of access tokens")
    access_token_expire_minutes: int = Field(
        30, ge=1, le=525_600, description="Life of an access token; production: <= 1440"
    )
    refresh_token_expire_days: int = Field(
        30, ge=1, le=3650, description="Life of a refresh token, from each refresh on"
    )
    session_max_days: int = Field(90, ge=1, le=3650, description="Life of a session, however often it is refreshed")
    password_scheme: str = Field(
        "bcrypt", pattern="^(bcrypt|argon2id)$", description="bcrypt or argon2id; other hashes are renewed at login"
    )
    bcrypt_rounds: int = Field(
        12, ge=4, le=20, description="Cost of a password hash, as a power of two; production: 10 or more"
    )
    registration: str = Field(
        "open", pattern="^(open|closed)$", description="open, or closed: only administrators make accounts"
    )
    require_verified_email: bool = Field(False, description="Only accounts with a verified address sign in")
    require_mfa_for: Annotated[tuple[Role, ...], NoDecode] = Field(
        (), description="Roles that need a second factor, comma-separated; production warns without admin,superuser"
    )
    lockout_attempts: int = Field(
        5, ge=1, le=100, description="Wrong passwords, or codes, that lock; production: 20 or less"
    )
    lockout_window_minutes: int = Field(15, ge=1, le=1440, description="After how long a failed sign-in is forgotten")
    deleted_retention_days: int = Field(30, ge=0, le=3650, description="How long a deleted account can be restored")
    audit_retention_days: int = Field(0, ge=0, le=36_500, description="How long audit events are kept; 0: for good")
    message_log_retention_days: int = Field(
        90, ge=0, le=36_500, description="How long message logs are kept; 0: for good"
    )

    smtp_url: SecretStr | None = Field(
        None,
        description="smtp://user:password@host:587?starttls=1 or smtps://; without it mails go to DATA_DIR/outbox; "
        "needed in production, with TLS unless the host is this one",
    )
    mail_from: str = Field("octopus@localhost", description="Sender of mails")
    public_url: str = Field(
        "http://localhost:8000", description="Where the service is reached; links in mails; production: https://"
    )
    password_reset_url: str | None = Field(
        None, description="Page of your own that the link of a reset mail opens; `?token=` is added"
    )
    email_verify_url: str | None = Field(
        None, description="Page of your own that the link of a verification mail opens; `?token=` is added"
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="JSON list of origins whose pages may call"
    )
    trusted_proxies: Annotated[Networks, NoDecode] = Field(
        (), description="JSON list of addresses or CIDR blocks whose X-Forwarded-For and traceparent count"
    )
    trusted_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*",), description="JSON list of Host names that are answered"
    )

    rate_limit_anonymous: Rate = Field("100/minute", description="Requests without credentials, by address (IPv6: /64)")
    rate_limit_auth: Rate = Field("10/minute", description="Presented and rejected credentials, by address (IPv6: /64)")
    rate_limit_key_create: Rate = Field("5/minute", description="Created API keys, by principal")
    rate_limit_authenticated: Rate = Field("1000/minute", description="Requests with credentials, by principal")
    rate_limit_storage_url: StoreUrl = Field(
        SecretStr("memory://"),
        description="Where limits are counted: memory:// (each process alone), or redis:// or rediss:// (all together)",
    )
    auth_cache_seconds: float = Field(
        5, ge=0, le=60, description="Life of a looked-up principal in memory; 0 turns the cache off"
    )
    max_body_bytes: int = Field(1024 * 1024, ge=1024, description="Largest request body")

    max_upload_bytes: int = Field(5 * 1024**3, ge=1, description="Largest uploaded file")
    azure_storage_connection_string: SecretStr | None = Field(
        None, description="Storage account of uploads, with its AccountKey; without it they are in DATA_DIR/uploads"
    )
    azure_storage_account_url: str | None = Field(
        None, description="The same by managed identity: https://account.blob.core.windows.net"
    )
    azure_storage_container: str = Field(
        "uploads",
        max_length=63,
        pattern="^[a-z0-9](-?[a-z0-9]){2,62}$",
        description="Container of uploads, made when it is missing; private",
    )
    upload_redirect: bool = Field(False, description="Downloads are redirected to the storage account")
    upload_allowed_types: Annotated[tuple[str, ...], NoDecode] = Field(
        DEFAULT_ALLOWED_TYPES,
        description="Content types of files that are taken, comma-separated; by default pictures, PDF, office "
        "documents, plain text, Markdown, CSV, JSON, ZIP, sound and film; nothing that a browser would run",
    )
    clamav_host: str | None = Field(None, description="Host of the clamd that scans every file; without it none is")
    clamav_port: int = Field(3310, ge=1, le=65535, description="Port of the clamd")
    scanner_fail_open: bool = Field(False, description="Take files unscanned while the clamd does not answer")

    @field_validator(
        "previous_secret_keys",
        "encryption_keys",
        "require_mfa_for",
        "cors_origins",
        "trusted_proxies",
        "trusted_hosts",
        "upload_allowed_types",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        """A list as JSON, or its parts with commas between, as `CORS_ORIGINS=*`."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("smtp_url")
    @classmethod
    def _is_mail_server(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            SmtpServer.parse(value.get_secret_value())
        return value

    @field_validator("public_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        urlsplit(value)  # a `ValueError` when it is none
        return value

    @model_validator(mode="after")
    def _refuse_what_is_unsafe(self) -> Self:
        faults = faults_of_secrets(self) + faults_of_storage(self)
        if self.environment is Environment.PRODUCTION:
            faults += faults_in_production(self)
        if faults:
            raise ValueError(f"refusing to start in {self.environment}: " + "; ".join(faults))
        return self

    @property
    def may_generate_secret(self) -> bool:
        return self.environment in {Environment.DEVELOPMENT, Environment.TEST}

    @property
    def has_metrics(self) -> bool:
        """Whether there is a `/metrics`: in staging and production for who has the token."""
        return self.metrics_token is not None or self.may_generate_secret

    @property
    def is_watched(self) -> bool:
        return self.has_metrics or self.otel_exporter_otlp_endpoint is not None

    @property
    def is_embedded(self) -> bool:
        return self.database_url.get_secret_value() == "embedded"

    @property
    def has_shared_rate_limits(self) -> bool:
        return self.rate_limit_storage_url.get_secret_value() != "memory://"

    @cached_property
    def keyring(self) -> Keyring:
        """The secrets that sign and derive; in development the current one is made on first use and kept."""
        current = self.secret_key.get_secret_value().encode() if self.secret_key else development_secret(self.data_dir)
        return Keyring((current, *(key.get_secret_value().encode() for key in self.previous_secret_keys)))

    @cached_property
    def token_keys(self) -> signing.TokenKeys:
        """What signs access tokens and verifies them."""
        if self.jwt_algorithm == signing.SECRETS_ALGORITHM:
            return signing.Secrets(self.keyring)
        return signing.read_key_file(self.jwt_private_key_file, self.jwt_algorithm)

    @cached_property
    def cipher(self) -> MultiFernet:
        """Encrypts what is secret at rest and must be read again; in development under keys derived from the secret."""
        keys = [key.get_secret_value().encode() for key in self.encryption_keys]
        return encryption.cipher_of(keys or [encryption.key_from(derived) for derived in self.keyring.derive("cipher")])


_active: Settings | None = None


def faults_of(refused: ValidationError) -> str:
    """What is wrong with which setting, a line for each."""
    return "\n".join(f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}" for each in refused.errors())


def use_settings(settings: Settings) -> None:
    """Make these the settings of the process. Called once, where the application or a script starts."""
    global _active  # noqa: PLW0603 - one process serves one database, so it has one set of settings
    _active = settings


def get_settings() -> Settings:
    """The settings of the process. Reading them before `use_settings` is a `RuntimeError`."""
    if _active is None:
        raise RuntimeError("The settings are not loaded.")
    return _active
