from typing import Annotated

from fastapi import APIRouter, Depends

from app.api.deps import Administrator, QueryOf
from app.schemas.statistics import StatisticsQuery, StatisticsRead
from app.schemas.system import SystemRead
from app.services import statistics_service, system_service
from app.services.jobs import JOB_NAMES

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


@router.get("/system")
async def get_system(_: Administrator) -> SystemRead:
    """How every part of the system is, asked at this moment: what is away says so, within two seconds.

    Of processes only the one that answers is looked at. No address, name or secret of another system is shown.
    """
    return await system_service.inspect(JOB_NAMES)
