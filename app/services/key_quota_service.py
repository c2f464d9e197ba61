"""The quota of an API key: how many requests it may make in a day or a month, however many processes answer them."""

import math
from collections.abc import Sequence
from datetime import datetime

from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import KeyQuotaExceededError
from app.core.principal import Principal
from app.crud import crud_key_quota
from app.models.api_key import ApiKey
from app.schemas.api_key import ApiKeyProperties, ApiKeyRead, QuotaRead


async def draw(principal: Principal) -> int | None:
    """Draw one request on the quota of the key in use: how many are left. None when there is no quota.

    `KeyQuotaExceededError` when it is used up. Not to be called inside of a transaction.
    """
    quota = principal.quota
    if quota is None or principal.lineage_id is None:
        return None
    now = utc_now()
    window = quota.window(now)
    remaining = await crud_key_quota.draw(principal.lineage_id, window, quota.limit)
    if remaining is None:
        raise KeyQuotaExceededError(
            f"The {quota.limit} requests that this key has for the {quota.period} are used up. "
            f"It goes on at {window.resets_at:%Y-%m-%dT%H:%M:%SZ}.",
            retry_after=max(1, math.ceil((window.resets_at - now).total_seconds())),
        )
    return remaining


async def shown(keys: Sequence[ApiKey]) -> list[ApiKeyRead]:
    """The keys as they are answered with, what is left of their quotas included."""
    now = utc_now()
    limited = [(key.lineage, key.quota.window(now).name) for key in keys if key.quota]
    used: dict[tuple[ObjectId, str], int] = {}
    if limited:
        lineages, windows = zip(*limited, strict=True)
        used = await crud_key_quota.used(lineages, windows)
    return [_shown(key, used, now) for key in keys]


async def shown_one(key: ApiKey) -> ApiKeyRead:
    [read] = await shown([key])
    return read


def _shown(key: ApiKey, used: dict[tuple[ObjectId, str], int], now: datetime) -> ApiKeyRead:
    properties = ApiKeyProperties.model_validate(key).model_dump()
    if key.quota is None:
        return ApiKeyRead(**properties, quota=None)
    window = key.quota.window(now)
    left = key.quota.limit - used.get((key.lineage, window.name), 0)
    quota = QuotaRead(**key.quota.model_dump(), remaining=max(0, left), resets_at=window.resets_at)
    return ApiKeyRead(**properties, quota=quota)
