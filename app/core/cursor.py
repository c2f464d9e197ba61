"""Opaque cursors: where a page ended, signed so that a cursor is either ours or refused."""

import base64
import binascii
import hmac
from typing import Any, Final

from bson import BSON
from bson.codec_options import CodecOptions
from bson.errors import BSONError

from app.core.config import get_settings
from app.core.exceptions import InvalidCursorError

_MAC_BYTES: Final = 16
_CODEC: Final = CodecOptions[dict[str, Any]](tz_aware=True)


def encode_cursor(listing: str, position: list[Any]) -> str:
    """A cursor for one listing (its name and filters) at a position (the sort key of the last row)."""
    payload = bytes(BSON.encode({"p": position}))
    return base64.urlsafe_b64encode(_mac(listing, payload) + payload).rstrip(b"=").decode()


def decode_cursor(listing: str, cursor: str) -> list[Any]:
    """The position; `InvalidCursorError` when it was changed or made by another listing."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidCursorError from error
    mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    expected = [
        found[:_MAC_BYTES] for found in get_settings().keyring.macs("cursor", listing.encode() + b"\0" + payload)
    ]
    if not any(hmac.compare_digest(mac, known) for known in expected):
        raise InvalidCursorError
    try:
        return list(BSON(payload).decode(_CODEC)["p"])
    except (BSONError, KeyError) as error:  # pragma: no cover - signed by us, so well formed
        raise InvalidCursorError from error


def _mac(listing: str, payload: bytes) -> bytes:
    return get_settings().keyring.mac("cursor", listing.encode() + b"\0" + payload)[:_MAC_BYTES]
