"""Signed links to single blobs, under the account's key or one that Azure lends to our identity."""

from datetime import datetime, timedelta
from typing import Any, Final

from azure.storage.blob import BlobSasPermissions, UserDelegationKey, generate_blob_sas
from azure.storage.blob.aio import BlobClient, BlobServiceClient

from app.core.clock import utc_now

_LONGEST: Final = timedelta(days=7)  # for which Azure lends a key, and so the life of a link


class AzureLinks:
    def __init__(self, service: BlobServiceClient) -> None:
        self._service = service
        self._account_key: str | None = getattr(service.credential, "account_key", None)
        self._lent: UserDelegationKey | None = None
        self._lent_until = utc_now()

    async def to_read(self, blob: BlobClient, *, expires_at: datetime, content_type: str, disposition: str) -> str:
        headers = {"content_type": content_type, "content_disposition": disposition}
        return await self._signed(blob, BlobSasPermissions(read=True), expires_at, **headers)

    async def to_create(self, blob: BlobClient, *, expires_at: datetime) -> str:
        """To create, not to write: Azure refuses to put anything over what is there."""
        return await self._signed(blob, BlobSasPermissions(create=True), expires_at)

    async def _signed(
        self, blob: BlobClient, permission: BlobSasPermissions, expires_at: datetime, **headers: Any
    ) -> str:
        key: dict[str, Any] = {"account_key": self._account_key}
        if self._account_key is None:
            key = {"user_delegation_key": await self._borrow(expires_at)}
        signature = generate_blob_sas(
            self._service.account_name or "",
            blob.container_name,
            blob.blob_name,
            permission=permission,
            expiry=expires_at,
            protocol="https" if blob.url.startswith("https:") else None,
            **key,
            **headers,
        )
        return f"{blob.url}?{signature}"

    async def _borrow(self, until: datetime) -> UserDelegationKey:
        """A link does not outlive its key, so a key is borrowed for as long as may be and kept while it is enough."""
        if self._lent is None or until > self._lent_until:
            now = utc_now()
            lent_until = now + _LONGEST
            lent = await self._service.get_user_delegation_key(key_start_time=now, key_expiry_time=lent_until)
            # Both at once, and only now: until then, and if Azure does not answer, the key is still the old one.
            self._lent, self._lent_until = lent, lent_until
        return self._lent
