"""Secrets that nobody must rely on: missing, short, or placeholders, in whatever environment."""

import re
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from app.core import encryption, key_format, signing

if TYPE_CHECKING:
    from app.core.config import Settings

_MIN_BYTES: Final = 32
_MIN_DISTINCT_CHARACTERS: Final = 8  # no random secret of that length has fewer
_PLACEHOLDER: Final = re.compile(
    r"change.?(me|this|it)|example|your.?secret|secret.?key|password|default", re.IGNORECASE
)


def faults_of_secrets(settings: "Settings") -> list[str]:
    """Every reason not to start, in the words of the variables. None of them holds a secret."""
    faults = []
    if settings.secret_key is None and not settings.may_generate_secret:
        faults.append("SECRET_KEY is missing")
    faults += _faults_of("SECRET_KEY", settings.secret_key)
    for previous in settings.previous_secret_keys:
        faults += _faults_of("a key of PREVIOUS_SECRET_KEYS", previous)
    if not settings.encryption_keys and not settings.may_generate_secret:
        faults.append("ENCRYPTION_KEYS is missing")
    if not all(encryption.is_key(key.get_secret_value()) for key in settings.encryption_keys):
        faults.append("a key of ENCRYPTION_KEYS is not a Fernet key; scripts/generate_secrets.py prints one")
    if settings.master_api_key and key_format.parse(settings.master_api_key.get_secret_value()) is None:
        faults.append("MASTER_API_KEY is not an API key; scripts/generate_secrets.py prints one")
    return faults + _faults_of_signing(settings)


def _faults_of_signing(settings: "Settings") -> list[str]:
    if settings.jwt_algorithm == signing.SECRETS_ALGORITHM:
        is_ignored = settings.jwt_private_key_file is not None
        return ["JWT_PRIVATE_KEY_FILE is set, but HS256 does not use it; set JWT_ALGORITHM"] if is_ignored else []
    try:
        _ = settings.token_keys  # read here, once
    except signing.SigningKeyError as error:
        return [str(error)]
    return []


def _faults_of(name: str, secret: SecretStr | None) -> list[str]:
    if secret is None:
        return []
    text = secret.get_secret_value()
    if len(text.encode()) < _MIN_BYTES:
        return [f"{name} is shorter than {_MIN_BYTES} bytes"]
    if _PLACEHOLDER.search(text) or len(set(text)) < _MIN_DISTINCT_CHARACTERS:
        return [f"{name} is a placeholder, not a random value"]
    return []
