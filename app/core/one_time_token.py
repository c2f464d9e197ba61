"""The text of links that work once: an id and a keyed hash of it.

The database holds only the id, so that who reads it can make no link; and a mail that is sent a second time has the
same link as the first.
"""

import base64
import hmac

from bson import ObjectId

from app.core.config import get_settings


def token_text(token_id: ObjectId, purpose: str) -> str:
    """`<id>.<HMAC-SHA-256>`, different for each purpose."""
    return f"{token_id}.{_encoded(get_settings().keyring.mac(_label(purpose), token_id.binary))}"


def read_token(text: str, purpose: str) -> ObjectId | None:
    """The id, when this service wrote the text for that purpose. Whether it was used is the database's to say."""
    token_id, _, mac = text.partition(".")
    if not ObjectId.is_valid(token_id) or not mac.isascii():
        return None
    known = get_settings().keyring.macs(_label(purpose), ObjectId(token_id).binary)
    is_ours = any([hmac.compare_digest(_encoded(each), mac) for each in known])  # noqa: C419 - every one is compared
    return ObjectId(token_id) if is_ours else None


def _label(purpose: str) -> str:
    return f"one-time token {purpose}"


def _encoded(mac: bytes) -> str:
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
