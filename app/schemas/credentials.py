"""Passwords, links of mails and second factors on the wire."""

from typing import Annotated

from pydantic import Field, StringConstraints

from app.schemas.auth import Otp
from app.schemas.base import RequestBody, ResponseBody
from app.schemas.user import Email, OwnOtp, Password

_Token = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class PasswordChange(RequestBody):
    current_password: Password
    otp: OwnOtp | None = None
    password: Annotated[Password, Field(description="The new one")]


class PasswordForgotten(RequestBody):
    email: Email


class PasswordReset(RequestBody):
    token: Annotated[_Token, Field(description="From the link of the mail")]
    password: Annotated[Password, Field(description="The new one")]


class VerificationRequest(RequestBody):
    email: Annotated[Email | None, Field(description="Left out by who is signed in")] = None


class MailRequested(ResponseBody):
    message: str


class Verification(RequestBody):
    token: Annotated[_Token, Field(description="From the link of the mail")]


class Reauthentication(RequestBody):
    current_password: Password


class FullReauthentication(Reauthentication):
    otp: Annotated[Otp | None, Field(description="A code of the authenticator, or a recovery code")] = None


class OtpConfirmation(RequestBody):
    otp: Annotated[Otp, Field(description="The first code that the authenticator shows")]


class TotpSetUp(ResponseBody):
    """For an authenticator: the same secret as text, as a link and as a picture (SVG)."""

    secret: str
    otpauth_uri: str
    qr_svg: str


class RecoveryCodes(ResponseBody):
    recovery_codes: Annotated[list[str], Field(description="Each works once. They are shown this once")]
