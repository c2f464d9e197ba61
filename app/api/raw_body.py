"""A body that is nothing but the bytes of a file, as it arrives."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.core.exceptions import InvalidRequestError

IDLE_SECONDS: Final = 30.0


async def raw_body(request: Request) -> AsyncIterator[bytes]:
    """Nothing for that long is a fault, so that nobody holds a place by sending nothing."""
    body = request.stream()
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                chunk = await anext(body, None)
        except TimeoutError as error:
            raise InvalidRequestError(f"Nothing of the body came for {IDLE_SECONDS:g} s.") from error
        except ClientDisconnect as error:
            raise InvalidRequestError("The connection was closed before the end of the body.") from error
        if chunk is None:
            return
        yield chunk
