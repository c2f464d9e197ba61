from typing import Annotated

from fastapi import APIRouter, Depends

from app.api.deps import Administrator, QueryOf
from app.schemas.statistics import StatisticsQuery, StatisticsRead
from app.services import statistics_service

router = APIRouter(prefix="/api/v1/admin", tags=["system"])


@router.get("/stats")
async def get_statistics(
    _: Administrator, query: Annotated[StatisticsQuery, Depends(QueryOf(StatisticsQuery))]
) -> StatisticsRead:
    """What happened on each of the last days: accounts, who was active, messages, keys, uploads, failures.

    Counted every five minutes (`refreshed_at`). A day that is over is counted for the last time a day later; nothing
    that is deleted afterwards changes it.
    """
    return await statistics_service.latest(query.days)
