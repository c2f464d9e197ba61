"""Walk through Octopus against a running server: `python3 scripts/demo.py [--url http://127.0.0.1:8000]`.

It shows every request and what came back, and needs nothing but Python. On a fresh database it creates the master key
and prints it; later runs use the one in the variable OCTOPUS_API_KEY, and without it skip what only services do.
"""

import argparse
import base64
import hmac
import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple

WIDTH = 100
TOO_MANY = 429
HIDDEN = {"password", "current_password", "refresh_token", "otp"}


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]


class Api:
    """One caller: where the server is, and the credential it shows."""

    def __init__(self, url: str, **headers: str) -> None:
        self.url = url
        self.headers = headers

    def showing(self, **headers: str) -> "Api":
        return Api(self.url, **headers)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send one request and print it with its answer."""
        request = urllib.request.Request(self.url + path, method=method)  # noqa: S310 - the address of the operator
        for name, value in {**self.headers, **headers}.items():
            request.add_header(name.replace("_", "-"), value)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        answer = _send(request)
        print(f"  {method:6} {path}")
        if body is not None:
            print(f"         sent  {_short(_hide_password(body))}")
        print(f"     {answer.status}  {_short(answer.body)}\n")
        return answer

    def expect(self, status: int, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """The same, and end the walk when the answer is not the one that belongs here."""
        answer = self.call(method, path, body, **headers)
        if answer.status == TOO_MANY and status != TOO_MANY:
            seconds = int(answer.headers["retry-after"])
            print(f"     That was one too many for this minute. Going on in {seconds} s ...\n")
            time.sleep(seconds)
            answer = self.call(method, path, body, **headers)
        if answer.status != status:
            sys.exit(f"Expected {status}, got {answer.status}. The walk ends here.")
        return answer


def main() -> None:
    api = Api(_options().url.rstrip("/"))
    _title("Is it there?")
    api.expect(200, "GET", "/health")
    master = _bootstrap(api)
    ada, grace = _register(api, "ada"), _register(api, "grace")
    signed_in = _sign_in(api, ada)
    _protect(api, ada, signed_in)
    _note_down(signed_in)
    conversation = _converse(signed_in, grace)
    _reconsider(signed_in, conversation)
    _count(signed_in)
    _refuse(api, signed_in, conversation)
    if master:
        _serve(api, master, grace, conversation)
        _look_back(api, master, ada)
    _leave(signed_in)
    print("That was Octopus. The whole contract is at /docs of the server.")


def _bootstrap(api: Api) -> str | None:
    _title("The master key, created once in the life of a database")
    token = os.environ.get("BOOTSTRAP_TOKEN")
    answer = api.call("POST", "/bootstrap", **({"X_Bootstrap_Token": token} if token else {}))
    created = answer.body.get("api_key")
    if created:
        print(f"     Keep it, it is never shown again:\n\n     {created}\n")
        return str(created)
    known = os.environ.get("OCTOPUS_API_KEY")
    if not known:
        print("     Set OCTOPUS_API_KEY to the master key to see what services do with it.\n")
    return known


def _register(api: Api, name: str) -> dict[str, Any]:
    _title(f"An account for {name.capitalize()}")
    username = f"{name}-{secrets.token_hex(3)}"
    account = {"email": f"{username}@example.com", "username": username, "password": secrets.token_urlsafe(16)}
    created = api.expect(201, "POST", "/api/v1/users", account)
    return {**account, "id": created.body["id"]}


def _sign_in(api: Api, account: dict[str, Any]) -> Api:
    _title("Sign in; exchange the refresh token; ask who one is")
    credentials = {"email": account["email"], "password": account["password"]}
    tokens = api.expect(200, "POST", "/api/v1/auth/login", credentials).body
    refresh = {"refresh_token": tokens["refresh_token"]}
    tokens = api.expect(200, "POST", "/api/v1/auth/refresh", refresh).body
    signed_in = api.showing(Authorization=f"Bearer {tokens['access_token']}")
    signed_in.expect(200, "GET", "/api/v1/auth/me")
    return signed_in


def _protect(api: Api, account: dict[str, Any], signed_in: Api) -> None:
    _title("A second factor: the password alone no longer opens a session")
    set_up = signed_in.expect(200, "POST", "/api/v1/auth/mfa/totp", {"current_password": account["password"]}).body
    confirmation = {"otp": _code(set_up["secret"])}
    signed_in.expect(200, "POST", "/api/v1/auth/mfa/totp/confirm", confirmation)
    credentials = {"username": account["username"], "password": account["password"]}
    api.expect(401, "POST", "/api/v1/auth/login", credentials)
    api.expect(200, "POST", "/api/v1/auth/login", {**credentials, "otp": _code(set_up["secret"], steps=1)})
    _title("Where the account is signed in, and all that is held about it")
    signed_in.expect(200, "GET", "/api/v1/auth/sessions")
    signed_in.expect(200, "GET", "/api/v1/users/me/export")


def _code(secret: str, *, steps: int = 0) -> str:
    """What an authenticator shows now, or some steps of 30 s ahead (RFC 6238): a code is good once."""
    step = int(time.time()) // 30 + steps
    mac = hmac.digest(base64.b32decode(secret), step.to_bytes(8, "big"), "sha1")
    at = mac[-1] & 0x0F
    return f"{(int.from_bytes(mac[at : at + 4], 'big') & 0x7FFFFFFF) % 10**6:06}"


def _note_down(signed_in: Api) -> None:
    _title("Items, the smallest thing that a user owns: note one down, complete it, look, and delete it")
    made = signed_in.expect(201, "POST", "/api/v1/items", {"title": "Buy tea", "description": "Green, loose"})
    path = f"/api/v1/items/{made.body['id']}"
    signed_in.expect(200, "PATCH", path, {"is_completed": True}, If_Match=made.headers["etag"])
    signed_in.expect(200, "GET", "/api/v1/items?is_completed=true")
    signed_in.expect(204, "DELETE", path)


def _converse(signed_in: Api, grace: dict[str, Any]) -> str:
    _title("A conversation of two, with messages, read page by page")
    opened = signed_in.expect(
        201, "POST", "/api/v1/conversations", {"title": "Tea at four", "participant_ids": [grace["id"]]}
    )
    path = f"/api/v1/conversations/{opened.body['id']}"
    for line in ("Shall we?", "I bring the cake.", "You bring the tea."):
        signed_in.expect(201, "POST", f"{path}/messages", {"role": "user", "content": line})
    page = signed_in.expect(200, "GET", f"{path}/messages?limit=2")
    following = page.headers["link"].partition(">")[0].lstrip("<")
    signed_in.expect(200, "GET", following)
    _title("Rename it, unless somebody else did meanwhile")
    shown = signed_in.expect(200, "GET", path)
    signed_in.expect(200, "PATCH", path, {"title": "Tea at five"}, If_Match=shown.headers["etag"])
    signed_in.expect(412, "PATCH", path, {"title": "Tea at six"}, If_Match=shown.headers["etag"])
    return str(opened.body["id"])


def _reconsider(signed_in: Api, conversation: str) -> None:
    _title("Several messages at once, second thoughts, and how far one has read")
    path = f"/api/v1/conversations/{conversation}"
    lines = {"messages": [{"content": "The cake is for Grace."}, {"content": "Or for both of us."}]}
    first, second = signed_in.expect(201, "POST", f"{path}/messages/batch", lines).body
    signed_in.expect(200, "PATCH", f"{path}/messages/{first['id']}", {"content": "The cake is for everybody."})
    signed_in.expect(204, "DELETE", f"{path}/messages/{second['id']}")
    signed_in.expect(200, "POST", f"{path}/read", {"message_id": second["id"]})


def _count(signed_in: Api) -> None:
    _title("What the plan allows, and what is left of it today")
    usage = signed_in.expect(200, "GET", "/api/v1/usage/me").body
    used, left = usage["used"]["messages_today"], usage["remaining"]["messages_today"]
    print(f"     {used} messages today, {left} are left until {usage['resets_at']}.\n")


def _refuse(api: Api, signed_in: Api, conversation: str) -> None:
    _title("What is refused, and how it is said")
    stranger = _sign_in_quietly(api)
    stranger.expect(404, "GET", f"/api/v1/conversations/{conversation}")
    signed_in.expect(403, "GET", "/api/v1/users")
    signed_in.expect(422, "POST", "/api/v1/conversations", {"titel": "a typing error"})


def _sign_in_quietly(api: Api) -> Api:
    account = _register(api, "mallory")
    tokens = api.expect(
        200, "POST", "/api/v1/auth/login", {"username": account["username"], "password": account["password"]}
    ).body
    return api.showing(Authorization=f"Bearer {tokens['access_token']}")


def _serve(api: Api, master: str, grace: dict[str, Any], conversation: str) -> None:
    _title("A key for one service, with just the scopes it needs")
    owner = api.showing(Octopus_API_Key=master)
    wanted = {"name": "assistant", "scopes": ["conversations:read", "conversations:write"], "rate_limit": "600/minute"}
    key = owner.expect(201, "POST", "/api/v1/api-keys", wanted).body
    service = api.showing(Octopus_API_Key=key["key"])
    path = f"/api/v1/conversations/{conversation}/messages"
    service.expect(201, "POST", path, {"role": "assistant", "content": "Shall I remind you?", "model": "demo"})
    service.expect(201, "POST", path, {"role": "user", "content": "Yes, please.", "user_id": grace["id"]})
    service.expect(403, "GET", "/api/v1/users")
    _title("Withdraw the key: it is dead at once")
    owner.expect(200, "POST", f"/api/v1/api-keys/{key['id']}/deactivate")
    service.expect(401, "GET", "/api/v1/auth/me")


def _look_back(api: Api, master: str, ada: dict[str, Any]) -> None:
    _title("The audit trail: what Ada has done, what she was refused, and whether anybody has changed a word of it")
    owner = api.showing(Octopus_API_Key=master)
    events = "/api/v1/admin/audit-events"
    owner.expect(200, "GET", f"{events}?actor={ada['id']}&limit=3")
    owner.expect(200, "GET", f"{events}?actor={ada['id']}&outcome=failure")
    owner.expect(200, "GET", f"{events}/verify")


def _leave(signed_in: Api) -> None:
    _title("Sign out: the token is dead at once")
    signed_in.expect(204, "POST", "/api/v1/auth/logout")
    signed_in.expect(401, "GET", "/api/v1/auth/me")


def _send(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=15) as response:  # noqa: S310 # nosec B310
            return _answer(response.status, response.read(), response.headers)
    except urllib.error.HTTPError as error:
        return _answer(error.code, error.read(), error.headers)
    except OSError as error:
        sys.exit(f"No server at {request.host}: {error}. Start one with: python3 scripts/run.py")


def _answer(status: int, body: bytes, headers: Any) -> Answer:
    return Answer(status, json.loads(body) if body else None, {name.lower(): value for name, value in headers.items()})


def _hide_password(body: dict[str, Any]) -> dict[str, Any]:
    return {name: "..." if name in HIDDEN else value for name, value in body.items()}


def _short(body: Any) -> str:
    text = json.dumps(body, ensure_ascii=False) if body is not None else "(no body)"
    return text if len(text) <= WIDTH else f"{text[:WIDTH]} ..."


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    return parser.parse_args()


if __name__ == "__main__":
    main()
