from http import HTTPStatus

from fastapi import APIRouter

from app.api.deps import Administrator
from app.core.exceptions import NotFoundError
from app.crud import crud_job
from app.crud.crud_job import JobState
from app.schemas.job import JobRead
from app.services import job_service
from app.services.job_service import JobType
from app.services.jobs import JOB_NAMES, JOBS

router = APIRouter(prefix="/api/v1/admin/jobs", tags=["jobs"])
_TYPES = {kind.name: kind for kind in JOBS}


@router.get("")
async def list_jobs(_: Administrator) -> list[JobRead]:
    """What the service does by itself: when, where at the moment, and how the last run went."""
    known = await crud_job.by_name(JOB_NAMES)
    return [_shown(kind, known.get(kind.name)) for kind in JOBS]


@router.post("/{name}/run", status_code=HTTPStatus.ACCEPTED)
async def run_job(name: str, administrator: Administrator) -> JobRead:
    """Have a job run now, in whichever process is free for it; once more when it is running."""
    if name not in _TYPES:
        raise NotFoundError("There is no such job.")
    await job_service.run_now(name, by=administrator)
    return _shown(_TYPES[name], (await crud_job.by_name([name])).get(name))


def _shown(kind: JobType, state: JobState | None) -> JobRead:
    job, is_running = (state.job, state.is_held) if state else (None, False)
    return JobRead(
        name=kind.name,
        description=kind.description,
        schedule=kind.schedule,
        is_running=is_running,
        holder=job.holder if job and is_running else None,
        due_at=job.due_at if job else None,
        started_at=job.started_at if job else None,
        finished_at=job.finished_at if job else None,
        outcome=job.outcome if job else None,
        duration_ms=job.duration_ms if job else None,
        result=job.result if job else {},
        error=job.error if job else None,
    )
