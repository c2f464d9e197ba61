"""The one-time creation of the master key."""

import hmac
from typing import Final

from app.core import key_format
from app.core.config import get_settings
from app.core.exceptions import AlreadyBootstrappedError, InvalidCredentialsError
from app.core.principal import ANONYMOUS
from app.crud import crud_installation
from app.db.mongo import transactional
from app.models.enums import AuditAction
from app.schemas.bootstrap import Bootstrapped
from app.services import api_key_service, audit_service

_NAME: Final = "master"
_SCOPES: Final = ["admin"]


def require_token(presented: str | None) -> None:
    """Where `BOOTSTRAP_TOKEN` is set, only who knows it may bootstrap."""
    expected = get_settings().bootstrap_token
    if expected is None:
        return
    if not hmac.compare_digest((presented or "").encode(), expected.get_secret_value().encode()):
        raise InvalidCredentialsError("Give the bootstrap token in the header X-Bootstrap-Token.")


@transactional
async def bootstrap() -> Bootstrapped:
    """Create the master key, or install `MASTER_API_KEY` as it. Of several at once, one wins."""
    configured = get_settings().master_api_key
    parsed = key_format.parse(configured.get_secret_value()) if configured else key_format.new_key()
    assert parsed is not None  # noqa: S101 - the settings refuse any other shape
    if not await crud_installation.mark_once("bootstrap"):
        raise AlreadyBootstrappedError
    key = api_key_service.new_document(parsed, name=_NAME, scopes=_SCOPES, description="Made by POST /bootstrap")
    await key.insert()
    await audit_service.record(AuditAction.SERVICE_BOOTSTRAPPED, by=ANONYMOUS, target=("api_key", key.id))
    return Bootstrapped(
        message="The master key is installed.",
        api_key=None if configured else parsed.text,
        name=_NAME,
        scopes=_SCOPES,
        instructions=(
            "Send it as the header Octopus-API-Key. It is shown this once and can do everything: keep it safe, "
            "and make narrower keys for daily use with POST /api/v1/api-keys."
        ),
    )
