"""What clients of OAuth 2 read in an error of the token endpoint (RFC 6749, section 5.2), beside the problem."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

_TOKEN_PATH: Final = "/api/v1/auth/token"  # noqa: S105 - not a password
_ERROR_OF_STATUS: Final = {
    HTTPStatus.UNAUTHORIZED: "invalid_grant",
    HTTPStatus.FORBIDDEN: "invalid_grant",
    # The RFC has these two for redirects only; a client that finds no `error` may take the problem for a token.
    HTTPStatus.TOO_MANY_REQUESTS: "temporarily_unavailable",
    HTTPStatus.SERVICE_UNAVAILABLE: "temporarily_unavailable",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
}
_NOT_DESCRIPTIVE: Final = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")  # what the RFC keeps out of a description


def error_members(path: str, status: int, *, detail: str, errors: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
    """`error` and `error_description` at the token endpoint, nothing elsewhere."""
    if path.rstrip("/") != _TOKEN_PATH:
        return {}
    if any(issue["loc"][-1] == "grant_type" and issue["type"] == "literal_error" for issue in errors or ()):
        error = "unsupported_grant_type"
    else:
        error = _ERROR_OF_STATUS.get(HTTPStatus(status), "invalid_request")
    description = "; ".join(f"{issue['loc'][-1]}: {issue['msg']}" for issue in errors or ()) or detail
    return {"error": error, "error_description": _NOT_DESCRIPTIVE.sub("'", description)}
