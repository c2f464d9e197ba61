"""Passwords, verified addresses and second factors."""

from http import HTTPStatus
from typing import Final

from fastapi import APIRouter

from app.api.deps import CREDENTIALS_RATE, Caller, OptionalCaller
from app.api.responses import NO_CONTENT
from app.core.normalise import name_key
from app.models.enums import MailKind
from app.schemas.credentials import (
    FullReauthentication,
    MailRequested,
    OtpConfirmation,
    PasswordChange,
    PasswordForgotten,
    PasswordReset,
    Reauthentication,
    RecoveryCodes,
    TotpSetUp,
    Verification,
    VerificationRequest,
)
from app.schemas.user import OwnUserUpdate
from app.services import mail_service, mfa_service, password_service, user_service, verification_service
from app.services.mfa_service import SetUp

router = APIRouter(prefix="/api/v1/auth", tags=["credentials"], dependencies=[CREDENTIALS_RATE])
_ON_ITS_WAY: Final = MailRequested(message="If there is such an account, a mail is on its way.")


@router.post("/password/change", **NO_CONTENT)
async def change_password(body: PasswordChange, caller: Caller) -> None:
    """Change your password. With two-factor authentication it needs a code too. All other sessions end."""
    changes = OwnUserUpdate.model_validate(body.model_dump(exclude_none=True))
    await user_service.update(caller.signed_in_id, changes, versions=None, by=caller)


@router.post("/password/forgot", status_code=HTTPStatus.ACCEPTED)
async def request_password_reset(body: PasswordForgotten) -> MailRequested:
    """Have a link for a new password mailed. The answer is the same whether there is such an account or not."""
    await mail_service.enqueue(MailKind.PASSWORD_RESET, account={"email_key": name_key(body.email)})
    return _ON_ITS_WAY


@router.post("/password/reset", **NO_CONTENT)
async def reset_password(body: PasswordReset) -> None:
    """Set a new password by the link of a mail. It works once; all sessions end."""
    await password_service.reset(body.token, body.password)


@router.post("/email/verify/request", status_code=HTTPStatus.ACCEPTED)
async def request_verification(body: VerificationRequest, caller: OptionalCaller) -> MailRequested:
    """Have a link to verify your address mailed again; without a session, to the address in the body."""
    if body.email is not None:
        await mail_service.enqueue(MailKind.EMAIL_VERIFICATION, account={"email_key": name_key(body.email)})
    else:
        await mail_service.enqueue(MailKind.EMAIL_VERIFICATION, user_id=caller.signed_in_id)
    return _ON_ITS_WAY


@router.post("/email/verify", **NO_CONTENT)
async def verify_email(body: Verification) -> None:
    """Verify your address by the link of a mail. It works once."""
    await verification_service.verify(body.token)


@router.post("/mfa/totp", response_model=TotpSetUp)
async def prepare_totp(body: Reauthentication, caller: Caller) -> SetUp:
    """Begin to set up an authenticator. It counts once a first code of it is confirmed."""
    return await mfa_service.prepare(body.current_password, by=caller)


@router.post("/mfa/totp/confirm")
async def confirm_totp(body: OtpConfirmation, caller: Caller) -> RecoveryCodes:
    """Turn two-factor authentication on with a first code. All other sessions end."""
    return RecoveryCodes(recovery_codes=await mfa_service.confirm(body.otp, by=caller))


@router.delete("/mfa/totp", **NO_CONTENT)
async def turn_totp_off(body: FullReauthentication, caller: Caller) -> None:
    """Turn two-factor authentication off. It needs the password and a code."""
    await mfa_service.turn_off(body.current_password, body.otp, by=caller)


@router.post("/mfa/recovery-codes")
async def renew_recovery_codes(body: FullReauthentication, caller: Caller) -> RecoveryCodes:
    """Make new recovery codes. The old ones stop working."""
    codes = await mfa_service.renew_recovery_codes(body.current_password, body.otp, by=caller)
    return RecoveryCodes(recovery_codes=codes)
