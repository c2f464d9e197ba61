"""What the tests of signing in do again and again, and the phone that shows codes."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyotp
from httpx import AsyncClient, Response

from app.core import live_cache
from app.models.audit_event import AuditEvent
from app.models.login_throttle import LoginThrottle
from tests.factories import SignedInUser, StoredUser, sign_in

AUTH = "/api/v1/auth"
WRONG = "a wrong password"


async def log_in(client: AsyncClient, user: StoredUser, password: str | None = None, **more: Any) -> Response:
    body = {"email": user.document.email, "password": password or user.password, **more}
    return await client.post(f"{AUTH}/login", json=body)


async def refresh(client: AsyncClient, token: str) -> Response:
    return await client.post(f"{AUTH}/refresh", json={"refresh_token": token})


async def who_am_i(client: AsyncClient, access_token: str) -> Response:
    return await client.get(f"{AUTH}/me", headers=bearer(access_token))


def bearer(access_token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {access_token}"}


def outcome(response: Response) -> tuple[int, str | None]:
    """Status and code of the error; no code when it is none."""
    return response.status_code, response.json()["code"] if response.is_error else None


async def events(action: str) -> list[AuditEvent]:
    return await AuditEvent.find({"action": action}).to_list()


async def warmed(client: AsyncClient) -> AsyncClient:
    """The application once it believes what it remembers of credentials, so that forgetting counts."""
    async with asyncio.timeout(5):
        while live_cache._State.heard_until < time.monotonic():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    return client


async def let_pass(**span: float) -> None:
    """Let this time have passed for all failed sign-ins."""
    milliseconds = int(timedelta(**span).total_seconds() * 1000)
    earlier = {
        name: {"$cond": [{"$eq": [f"${name}", None]}, None, {"$subtract": [f"${name}", milliseconds]}]}
        for name in ("tried_at", "locked_until", "forgotten_at")
    }
    await LoginThrottle.get_pymongo_collection().update_many({}, [{"$set": earlier}])


@dataclass
class Phone:
    """An authenticator, some seconds fast or slow, that shows what it would at a moment."""

    secret: str
    recovery_codes: list[str] = field(default_factory=list)

    def code(self, at: datetime | None = None) -> str:
        return pyotp.TOTP(self.secret).at(at or datetime.now(UTC))


async def prepare(client: AsyncClient, user: SignedInUser) -> Phone:
    """An authenticator that was set up and has not been confirmed."""
    body = {"current_password": user.password}
    response = await client.post(f"{AUTH}/mfa/totp", json=body, headers=user.headers)
    assert response.status_code == 200
    return Phone(response.json()["secret"])


async def enrol(client: AsyncClient, user: StoredUser, at: datetime | None = None) -> Phone:
    """Turn the second factor on for a user, in a session of its own. The code of that moment is used up."""
    signed_in = user if isinstance(user, SignedInUser) else await sign_in(user)
    phone = await prepare(client, signed_in)
    response = await client.post(f"{AUTH}/mfa/totp/confirm", json={"otp": phone.code(at)}, headers=signed_in.headers)
    assert response.status_code == 200
    phone.recovery_codes = response.json()["recovery_codes"]
    return phone
