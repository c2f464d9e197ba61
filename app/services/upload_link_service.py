"""Links to files that work without credentials: into the storage where it has such links, else to this service."""

from datetime import datetime, timedelta
from typing import Final

from bson import ObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.principal import Principal
from app.core.signed_link import Permission, link_to
from app.core.stored_file import StoredFile
from app.db.mongo import transactional
from app.models.enums import AuditAction
from app.schemas.upload_link import SignedUrl, SignedUrlCreate
from app.services import audit_service, upload_content_service, upload_variant_service
from app.services.storage import get_storage

_REDIRECTED: Final = timedelta(minutes=5)
_OCTETS: Final = "application/octet-stream"


async def make(upload_id: ObjectId, body: SignedUrlCreate, *, by: Principal) -> SignedUrl:
    """A link for whoever gets it. It ends with its time, or with the upload."""
    expires_at = (utc_now() + timedelta(seconds=body.expires_in)).replace(microsecond=0)
    if body.thumbnail is None:
        part, file = "content", await upload_content_service.original(upload_id, download=body.download, by=by)
    else:
        size, part = int(body.thumbnail), "thumbnail"
        file = await upload_variant_service.thumbnail(upload_id, size, download=body.download, by=by)
    url = await _storage_link(file, expires_at)
    if url is None:
        size_chosen = None if body.thumbnail is None else str(int(body.thumbnail))
        permission = Permission(str(upload_id), part, size_chosen, "1" if body.download else None)
        url = link_to(permission, expires_at=expires_at)
    await _record(upload_id, part, expires_at, by=by)
    return SignedUrl(url=url, expires_at=expires_at)


async def redirect_to(file: StoredFile) -> str | None:
    """Where the storage itself gives out the file, when that is wished and possible."""
    return await _storage_link(file, utc_now() + _REDIRECTED) if get_settings().upload_redirect else None


async def _storage_link(file: StoredFile, expires_at: datetime) -> str | None:
    """What is not harmless goes out without its type, since no headers of ours go with it."""
    content_type = file.content_type if file.is_harmless else _OCTETS
    return await get_storage().signed_url(
        file.key, expires_at=expires_at, content_type=content_type, disposition=file.disposition
    )


@transactional
async def _record(upload_id: ObjectId, part: str, expires_at: datetime, *, by: Principal) -> None:
    await audit_service.record(
        AuditAction.UPLOAD_LINKED, by=by, target=("upload", upload_id), part=part, expires_at=f"{expires_at:%FT%TZ}"
    )
