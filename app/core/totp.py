"""Time-based one-time passwords (RFC 6238) and the recovery codes beside them."""

import hmac
import io
import secrets
from typing import Final

import pyotp
import segno
from bson import ObjectId

from app.core.clock import utc_now
from app.core.config import get_settings

STEP_SECONDS: Final = 30
RECOVERY_CODES: Final = 10
_DRIFT_STEPS: Final = 1  # a clock may be half a minute off, as RFC 6238, 5.2 recommends
_ALPHABET: Final = "23456789abcdefghjkmnpqrstuvwxyz"  # nothing that is mistaken for something else on paper
_HALF: Final = 6  # twice six of 31 letters are 59 bits


def new_secret() -> str:
    """160 random bits in base32, as RFC 4226 recommends."""
    return pyotp.random_base32()


def otpauth_uri(secret: str, account: str) -> str:
    """What authenticators read, named so that the owner of several accounts finds this one."""
    return pyotp.TOTP(secret).provisioning_uri(name=account, issuer_name=get_settings().jwt_issuer)


def qr_svg(uri: str) -> str:
    """The QR code as an SVG of its own, to be put into a page."""
    drawn = io.BytesIO()
    segno.make(uri, error="m").save(drawn, kind="svg", scale=5, xmldecl=False, title="QR code of the authenticator")
    return drawn.getvalue().decode()


def matching_step(secret: str, code: str) -> int | None:
    """The time step whose code this is, among now and its neighbours; every one is compared, in constant time."""
    now = int(utc_now().timestamp()) // STEP_SECONDS
    totp = pyotp.TOTP(secret)
    found = None
    for step in range(now - _DRIFT_STEPS, now + _DRIFT_STEPS + 1):
        if hmac.compare_digest(totp.generate_otp(step).encode(), code.encode()):
            found = step
    return found


def new_recovery_codes() -> list[str]:
    """Ten codes to write down, each 59 random bits."""
    return ["-".join(_half() for _ in range(2)) for _ in range(RECOVERY_CODES)]


def recovery_digests(user_id: ObjectId, code: str) -> list[bytes]:
    """What is stored of a code, under the present key and under each previous one. Case and dashes do not count."""
    plain = "".join(character for character in code.lower() if character.isalnum())
    return get_settings().keyring.macs("recovery code", user_id.binary + plain.encode())


def _half() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_HALF))
