"""Links under keys that Azure lends, also when it does not answer for a moment."""

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from azure.core.exceptions import ServiceRequestError
from azure.storage.blob import UserDelegationKey
from azure.storage.blob.aio import BlobClient

from app.core.clock import utc_now
from app.core.stored_object import key_of, new_stem
from app.services.azure_links import AzureLinks


class Lender:
    """Azure, of which only the lending of keys is asked."""

    account_name = "tea"
    credential = SimpleNamespace()

    def __init__(self) -> None:
        self.is_away = False

    async def get_user_delegation_key(self, key_start_time: datetime, key_expiry_time: datetime) -> UserDelegationKey:
        if self.is_away:
            raise ServiceRequestError("away")
        lent: UserDelegationKey = cast("Any", UserDelegationKey)()
        lent.signed_oid, lent.signed_tid, lent.signed_service, lent.signed_version = "o", "t", "b", "2023-11-03"
        lent.signed_start, lent.signed_expiry = f"{key_start_time:%FT%TZ}", f"{key_expiry_time:%FT%TZ}"
        lent.value = "a2V5"
        return lent


class TestLink:
    async def test_does_not_outlive_its_key_when_no_other_was_to_be_had(self) -> None:
        lender = Lender()
        links = AzureLinks(cast("Any", lender))
        async with BlobClient("https://tea.blob.core.windows.net", "uploads", key_of(new_stem())) as blob:
            await links.to_create(blob, expires_at=utc_now())
            links._lent_until = utc_now() + timedelta(hours=1)  # six days and 23 hours later
            until = utc_now() + timedelta(hours=2)

            lender.is_away = True
            with pytest.raises(ServiceRequestError):
                await links.to_create(blob, expires_at=until)
            with pytest.raises(ServiceRequestError):
                await links.to_create(blob, expires_at=until)
            lender.is_away = False
            assert "sig=" in await links.to_create(blob, expires_at=until)
