"""Uploads with bytes: in the storage of the application that runs, as receiving them leaves them."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

from app.core.stored_object import key_of
from app.models.upload import Upload
from app.services.storage import get_storage
from tests.factories import StoredUser, make_upload


async def store_upload(
    owner: StoredUser | None, content: bytes = b"Hello, tea!", *, content_type: str = "text/plain", **more: Any
) -> Upload:
    """A clean one."""
    digest = hashlib.sha256(content).hexdigest()
    upload = await make_upload(owner, content_type=content_type, size=len(content), sha256=digest, **more)
    await get_storage().write(key_of(upload.stem), chunks(content))
    return upload


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
