from fastapi import APIRouter, Request, Response

from app.api.deps import Administrator, MessageLogList, UsageWriter
from app.api.responses import listed
from app.crud import crud_message_log
from app.schemas.message_log import MessageLogRead, MessageLogReport, MessageLogsCreate, logs_of
from app.services import message_log_service

router = APIRouter(prefix="/api/v1/message-logs", tags=["usage"])


@router.post("")
async def store_message_logs(body: MessageLogsCreate, writer: UsageWriter) -> MessageLogReport:
    """Tell of messages that users exchanged with models elsewhere, up to 1,000 entries at once.

    What is accepted is stored for good, and its tokens draw on the credits of the user. A bad entry is rejected alone.
    """
    return await message_log_service.store(body.entries, by=writer)


@router.get("", response_model=list[MessageLogRead])
async def list_message_logs(request: Request, _: Administrator, query: MessageLogList) -> Response:
    """Message logs, latest first: every filter that is given must match. For administrators."""
    rows, next_cursor = await crud_message_log.page(**dict(query))
    return listed(request, logs_of(rows), next_cursor)
