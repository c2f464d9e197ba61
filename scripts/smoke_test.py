"""Try a service that runs somewhere, with nothing but Python: `python3 scripts/smoke_test.py https://octopus.example`.

Waits until it is ready, and until it is the version asked for. Then it must answer as it should, and refuse whoever
shows no credentials. `--walk` also makes an account, talks, and deletes the account again: not for where people are.
The first fault is named, and the exit code is 1 then.
"""

import argparse
import http.client
import json
import secrets
import sys
import time
import urllib.error
import urllib.request
from typing import Any, Final, NamedTuple

EACH_SECONDS: Final = 15
PAUSE_SECONDS: Final = 1
# What is no answer: none that comes, a part of one, something else than HTTP.
NO_ANSWER: Final = (OSError, ValueError, http.client.HTTPException)
JSON: Final = {"Content-Type": "application/json", "Accept": "application/json"}


class FaultError(Exception):
    """Something is not as it should be."""


class Answer(NamedTuple):
    status: int
    content_type: str
    body: Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing: an answer from elsewhere says nothing about this service."""


class Service:
    """The service at a URL."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._opener = urllib.request.build_opener(_NoRedirect())
        self.token: str | None = None

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        headers = JSON | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, headers, method=method)  # noqa: S310 # nosec B310
        try:
            with self._opener.open(request, timeout=EACH_SECONDS) as response:
                return _answer(response.status, response.headers.get_content_type(), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.headers.get_content_type(), error.read())

    def expect(self, status: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The body of the answer, which must have this status. What it says is shown only in part: it may be secret."""
        answer = self.ask(method, path, body)
        if answer.status != status:
            code = answer.body.get("code") if isinstance(answer.body, dict) else None
            raise FaultError(f"{method} {path} is answered with {answer.status} {code or ''}, not {status}")
        print(f"{method} {path}: {status}")
        return answer.body


def main() -> None:
    options = _options()
    service = Service(options.url)
    try:
        _wait_until_ready(service, options.version, options.wait)
        _probe(service)
        if options.walk:
            _walk(service)
    except FaultError as fault:
        sys.exit(f"FAULT: {fault}.")
    except NO_ANSWER as error:
        sys.exit(f"FAULT: {options.url} does not answer: {error}.")
    print(f"{options.url} is well.")


def _wait_until_ready(service: Service, version: str | None, seconds: float) -> None:
    give_up_at = time.monotonic() + seconds
    while True:
        fault = _why_not_ready(service, version)
        if fault is None:
            return
        if time.monotonic() > give_up_at:
            raise FaultError(fault)
        time.sleep(PAUSE_SECONDS)


def _why_not_ready(service: Service, version: str | None) -> str | None:
    try:
        answer = service.ask("GET", "/health/ready")
    except NO_ANSWER as error:
        return f"it does not answer: {error}"
    if not isinstance(answer.body, dict) or answer.status not in {200, 503}:
        return f"/health/ready is answered with {answer.status}"
    if answer.status != 200:  # noqa: PLR2004
        return f"it is not ready: {answer.body.get('checks')}"
    if version is not None and answer.body.get("version") != version:
        return f"its version is {answer.body.get('version')}, not {version}"
    return None


def _probe(service: Service) -> None:
    """What anybody may ask, and what nobody may without credentials."""
    service.expect(200, "GET", "/health/live")
    for path in ("/api/v1/auth/me", "/api/v1/users", "/api/v1/conversations", "/api/v1/api-keys"):
        service.expect(401, "GET", path)
    if service.ask("GET", "/api/v1/auth/me").content_type != "application/problem+json":
        raise FaultError("a refusal is no problem document")


def _walk(service: Service) -> None:
    email, password = f"smoke-{secrets.token_hex(8)}@example.com", secrets.token_urlsafe(24)
    service.expect(201, "POST", "/api/v1/users", {"email": email, "password": password})
    signed_in = service.expect(200, "POST", "/api/v1/auth/login", {"email": email, "password": password})
    service.token = signed_in["access_token"]
    conversation = service.expect(201, "POST", "/api/v1/conversations", {"title": "Smoke"})["id"]
    messages = f"/api/v1/conversations/{conversation}/messages"
    sent = service.expect(201, "POST", messages, {"role": "user", "content": "Is anybody there?"})
    if [message["id"] for message in service.expect(200, "GET", messages)] != [sent["id"]]:
        raise FaultError("a message that was sent is not there")
    service.expect(204, "DELETE", "/api/v1/users/me", {"current_password": password})
    service.expect(401, "GET", "/api/v1/auth/me")


def _answer(status: int, content_type: str, body: bytes) -> Answer:
    try:
        return Answer(status, content_type, json.loads(body) if body else None)
    except ValueError:
        return Answer(status, content_type, None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--version", help="the version that it must be")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="for how long it may get ready")
    parser.add_argument("--walk", action="store_true", help="make an account, use it, delete it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
