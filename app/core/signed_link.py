"""Links to one upload that need no credentials: what they allow and until when is in them, under our signature.

Whoever has one can use it for just that. Nothing is stored, so a link ends with its time or with the upload.
"""

import base64
import hmac
import json
from datetime import datetime
from typing import Final, NamedTuple
from urllib.parse import urlencode

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import LinkRefusedError

_PURPOSE: Final = "upload link"


class Permission(NamedTuple):
    """What a link is for: the upload, the last part of the path, and what the query chooses, as the link says it."""

    upload_id: str
    part: str
    size: str | None = None
    download: str | None = None


def link_to(permission: Permission, *, expires_at: datetime) -> str:
    """The address. It is good to the end of that second."""
    expires = str(int(expires_at.timestamp()))
    signature = _encoded(get_settings().keyring.mac(_PURPOSE, _said(permission, expires)))
    chosen = {"size": permission.size, "download": permission.download, "expires": expires, "signature": signature}
    query = urlencode({name: value for name, value in chosen.items() if value is not None})
    base = get_settings().public_url.rstrip("/")
    return f"{base}/api/v1/uploads/{permission.upload_id}/{permission.part}?{query}"


def require_signed(permission: Permission, *, expires: str, signature: str) -> None:
    """`LinkRefusedError` unless we have signed just this, and it is not over."""
    known = get_settings().keyring.macs(_PURPOSE, _said(permission, expires))
    given = signature.encode()
    is_ours = any([hmac.compare_digest(_encoded(each).encode(), given) for each in known])  # noqa: C419 - compare all
    if not is_ours:
        raise LinkRefusedError
    if int(expires) < int(utc_now().timestamp()):
        raise LinkRefusedError("This link has expired. Ask for another one.")


def _said(permission: Permission, expires: str) -> bytes:
    """No two permissions are written alike."""
    return json.dumps([*permission, expires]).encode()


def _encoded(mac: bytes) -> str:
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
