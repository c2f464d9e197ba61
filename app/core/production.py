"""What production refuses to start with, and what it only warns of."""

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from app.core.network import is_loopback
from app.core.rate_limit import is_at_most
from app.core.scopes import Role
from app.core.smtp_server import SmtpServer
from app.core.storage_checks import faults_of_storage_in_production

if TYPE_CHECKING:
    from app.core.config import Settings

_MIN_TOKEN_LENGTH: Final = 16
_MIN_ROUNDS: Final = 10
_MAX_ATTEMPTS: Final = 20
_MOST_GUESSES: Final = "120/minute"
_MAX_ACCESS_MINUTES: Final = 24 * 60
_POWERFUL: Final = (Role.ADMIN, Role.SUPERUSER)


def faults_in_production(settings: "Settings") -> list[str]:
    """Every reason not to start, in the words of the variables."""
    checks = {
        "DATABASE_URL=embedded is for development": settings.is_embedded,
        "DEBUG is on": settings.debug,
        f"BOOTSTRAP_TOKEN is shorter than {_MIN_TOKEN_LENGTH} characters": (
            settings.bootstrap_token is not None
            and len(settings.bootstrap_token.get_secret_value()) < _MIN_TOKEN_LENGTH
        ),
        "CORS_ORIGINS allows every origin": "*" in settings.cors_origins,
        "CORS_ORIGINS lends the refresh cookie to pages without TLS": any(
            origin.startswith("http://") for origin in settings.cors_origins
        ),
        "TRUSTED_PROXIES trusts everybody, so that any address can be feigned": any(
            network.endswith("/0") for network in settings.trusted_proxies
        ),
        f"RATE_LIMIT_AUTH allows more than {_MOST_GUESSES}, so that credentials can be guessed": not is_at_most(
            settings.rate_limit_auth, _MOST_GUESSES
        ),
        "neither BOOTSTRAP_TOKEN nor MASTER_API_KEY is set, so a stranger could bootstrap": (
            settings.bootstrap_token is None and settings.master_api_key is None
        ),
        "ASSISTANT_API_KEY would go to ASSISTANT_BASE_URL without TLS": _sends_key_in_clear(settings),
        f"BCRYPT_ROUNDS is less than {_MIN_ROUNDS}": settings.bcrypt_rounds < _MIN_ROUNDS,
        f"LOCKOUT_ATTEMPTS is more than {_MAX_ATTEMPTS}": settings.lockout_attempts > _MAX_ATTEMPTS,
        f"ACCESS_TOKEN_EXPIRE_MINUTES is more than {_MAX_ACCESS_MINUTES}": (
            settings.access_token_expire_minutes > _MAX_ACCESS_MINUTES
        ),
    }
    faults = [fault for fault, is_true in checks.items() if is_true]
    return faults + _faults_of_mail(settings) + _faults_of_links(settings) + faults_of_storage_in_production(settings)


def roles_without_second_factor(settings: "Settings") -> list[Role]:
    """The powerful roles that REQUIRE_MFA_FOR leaves out."""
    return [role for role in _POWERFUL if role not in settings.require_mfa_for]


def _sends_key_in_clear(settings: "Settings") -> bool:
    url = urlsplit(settings.assistant_base_url or "")
    return settings.assistant_api_key is not None and url.scheme == "http" and not is_loopback(url.hostname or "")


def _faults_of_mail(settings: "Settings") -> list[str]:
    if settings.smtp_url is None:
        return ["SMTP_URL is missing, so nobody would get a mail"]
    server = SmtpServer.parse(settings.smtp_url.get_secret_value())
    if server.sends_password_in_clear:
        return ["SMTP_URL sends its password in clear"]
    if not server.is_tls and not server.starttls and not is_loopback(server.host):
        return ["SMTP_URL sends mails, and the links in them, in clear; use smtps:// or ?starttls=1"]
    return []


def _faults_of_links(settings: "Settings") -> list[str]:
    """Where links of mails lead: they carry what sets a password."""
    urls = {
        "PUBLIC_URL": settings.public_url,
        "PASSWORD_RESET_URL": settings.password_reset_url,
        "EMAIL_VERIFY_URL": settings.email_verify_url,
    }
    return [f"{name} {fault}" for name, url in urls.items() if url is not None and (fault := _fault_of_link(url))]


def _fault_of_link(url: str) -> str | None:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        return "is not https://"
    return "leads to the machine of whoever opens it" if is_loopback(parts.hostname) else None
