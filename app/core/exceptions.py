"""What can go wrong, in the words of the domain. No HTTP here.

`code` is part of the public contract: clients switch on it, so it never changes. `message` is one human
sentence. `context` is for the log and never for the client.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar


class AppError(Exception):
    """Base of every error this application raises on purpose."""

    code: ClassVar[str] = "internal_error"
    message: ClassVar[str] = "The request could not be completed."

    def __init__(self, message: str | None = None, **context: object) -> None:
        super().__init__(message or self.message)
        self.context = context


class InvalidRequestError(AppError):
    code = "invalid_request"
    message = "The request could not be understood."


class InvalidCursorError(InvalidRequestError):
    code = "invalid_cursor"
    message = "This cursor was not made by this list. Start again without one."


class RangeNotSatisfiableError(InvalidRequestError):
    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"The file ends before that range: it has {size} bytes.")
        self.size = size


class AmbiguousCredentialsError(InvalidRequestError):
    code = "ambiguous_credentials"
    message = "Send one bearer token or one API key, not both, and neither twice."


class UnauthenticatedError(AppError):
    code = "not_authenticated"
    message = "This needs a bearer token or an API key."


class RejectedCredentialError(UnauthenticatedError):
    """A credential was presented and is not good. Counted against the client's address."""


class InvalidCredentialsError(RejectedCredentialError):
    code = "invalid_credentials"
    message = "The account or the password is wrong."


class InvalidTokenError(RejectedCredentialError):
    code = "invalid_token"
    message = "The token is not valid."


class TokenExpiredError(RejectedCredentialError):
    code = "token_expired"
    message = "The token has expired."


class TokenRevokedError(RejectedCredentialError):
    code = "token_revoked"
    message = "The session of this token has ended."


class InvalidOtpError(RejectedCredentialError):
    code = "invalid_otp"
    message = "The code is wrong, or was used before."


class MfaRequiredError(UnauthenticatedError):
    code = "mfa_required"
    message = "Give the code of your authenticator, or a recovery code, in `otp`."


class InvalidApiKeyError(RejectedCredentialError):
    code = "invalid_api_key"
    message = "The API key is not valid."


class ApiKeyExpiredError(RejectedCredentialError):
    code = "api_key_expired"
    message = "The API key has expired."


class ForbiddenError(AppError):
    code = "forbidden"
    message = "These credentials do not allow that."


class InsufficientScopeError(ForbiddenError):
    code = "insufficient_scope"
    message = "These credentials lack the scope that this needs."


class IpNotAllowedError(ForbiddenError):
    code = "ip_not_allowed"
    message = "This API key may not be used from this address."


class AccountDisabledError(ForbiddenError):
    code = "account_disabled"
    message = "This account is deactivated."


class EmailNotVerifiedError(ForbiddenError):
    code = "email_not_verified"
    message = "Verify your e-mail address first: follow the link in the mail, or ask for another one."


class LinkRefusedError(ForbiddenError):
    message = "This link is not valid: it was made for something else, or changed."


class RegistrationClosedError(ForbiddenError):
    code = "registration_closed"
    message = "Accounts are made by an administrator here."


class NotFoundError(AppError):
    code = "not_found"
    message = "There is no such resource."


class ObjectNotFoundError(NotFoundError):
    """The storage has no such object."""


class ConflictError(AppError):
    code = "conflict"
    message = "The resource is not in a state that allows that."


class ObjectExistsError(ConflictError):
    """The storage has an object of this key, and none is ever overwritten."""


class EmailTakenError(ConflictError):
    code = "email_taken"
    message = "An account with this e-mail address exists."


class UsernameTakenError(ConflictError):
    code = "username_taken"
    message = "An account with this username exists."


class IdempotencyInProgressError(ConflictError):
    code = "idempotency_in_progress"
    message = "The first request with this Idempotency-Key is still under way. Try again shortly."


class AlreadyBootstrappedError(ConflictError):
    code = "already_bootstrapped"
    message = "The master key was created before. Use it, or make a superuser with scripts/create_superuser.py."


class PreconditionFailedError(AppError):
    code = "precondition_failed"
    message = "The resource has changed since the version named in If-Match."


class PayloadTooLargeError(AppError):
    code = "payload_too_large"
    message = "The request body is larger than this server accepts."


class UnsupportedMediaTypeError(AppError):
    code = "unsupported_media_type"
    message = "The body must be JSON, with Content-Type: application/json."


class InvalidContentError(AppError):
    """Something in a well-formed body can't be accepted: `errors` has `loc`, `msg`, `type` for each fault."""

    code = "validation_error"
    message = "The request does not match what this endpoint accepts."

    def __init__(self, message: str | None = None, *, errors: Sequence[Mapping[str, object]] = ()) -> None:
        super().__init__(message)
        self.errors = list(errors)


class IdempotencyKeyReusedError(InvalidContentError):
    code = "idempotency_key_reused"
    message = "This Idempotency-Key was used for another request. Take a new one for each."


class WeakPasswordError(InvalidContentError):
    code = "weak_password"


class FileRejectedError(InvalidContentError):
    code = "file_rejected"
    message = "This file is not accepted."


class FileInfectedError(InvalidContentError):
    code = "file_infected"
    message = "The virus scanner found something harmful in this file. Nothing of it was kept."


class LimitReachedError(AppError):
    """A limit is used up. `retry_after` is in whole seconds; none when waiting does not help."""

    def __init__(self, message: str | None = None, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitedError(LimitReachedError):
    code = "rate_limited"

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Too many requests. Try again in {retry_after} s.", retry_after=retry_after)


class TooManyStreamsError(LimitReachedError):
    code = "rate_limited"
    message = "There are too many open streams of these credentials. Close some."


class AccountLockedError(LimitReachedError):
    code = "account_locked"

    def __init__(self, retry_after: int, *, excess: str) -> None:
        super().__init__(f"{excess} Try again in {retry_after} s.", retry_after=retry_after)


class DailyLimitReachedError(LimitReachedError):
    code = "daily_limit_reached"
    message = "The messages of today are used up. The count starts anew at midnight UTC."


class CreditsExhaustedError(LimitReachedError):
    code = "credits_exhausted"
    message = "There are not enough credits left."


class RepliesUnderWayError(LimitReachedError):
    code = "rate_limited"
    message = "As many replies as you may have at once are under way. Ask again when one of them has come."


class QuotaExceededError(LimitReachedError):
    code = "quota_exceeded"
    message = "The plan, or the quota of the key, allows no more."


class KeyQuotaExceededError(QuotaExceededError):
    message = "The quota of the key is used up."


class MailUndeliveredError(AppError):
    message = "The mail could not be handed over. It is tried again."


class MailRefusedError(AppError):
    message = "The mail server will not take this mail."


class DatabaseUnavailableError(AppError):
    code = "database_unavailable"
    message = "The database does not answer. Try again shortly."


class ProviderUnavailableError(AppError):
    # `retry_after` is in whole seconds; none when waiting does not help.
    code = "provider_unavailable"
    message = "The assistant does not answer. Try again shortly."

    def __init__(self, message: str | None = None, *, retry_after: int | None = None, **context: object) -> None:
        super().__init__(message, **context)
        self.retry_after = retry_after


class BusyError(AppError):
    code = "busy"
    message = "There is too much to do. Try again shortly."


class StorageUnavailableError(AppError):
    code = "storage_unavailable"
    message = "The storage of files does not answer. Try again shortly."


class ScannerUnavailableError(AppError):
    code = "scanner_unavailable"
    message = "The virus scanner does not answer, so files are not taken at the moment. Try again shortly."
