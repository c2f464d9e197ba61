from datetime import datetime
from typing import Annotated

from pydantic import Field

from app.schemas.base import ResourceRead


class SessionRead(ResourceRead):
    """Where a user is signed in. `device` is what the browser says of itself."""

    device: str | None
    user_agent: str | None
    ip: str | None
    has_mfa: Annotated[bool, Field(description="Whether a second factor was shown")]
    is_current: Annotated[bool, Field(description="Whether it is the one that asks")]
    created_at: datetime
    last_used_at: Annotated[datetime, Field(description="When it was begun or last refreshed")]
    expires_at: datetime
