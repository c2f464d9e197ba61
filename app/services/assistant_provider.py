"""The assistant: whatever speaks the chat-completions protocol of OpenAI at `ASSISTANT_BASE_URL`."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from app.core.chat_completions import (
    ProtocolError,
    ReplyReader,
    Turn,
    estimated_prompt_tokens,
    estimated_tokens,
    request_body,
)
from app.core.config import get_settings
from app.core.exceptions import ProviderUnavailableError
from app.core.logging_config import get_logger
from app.core.metrics import FIRST_WORD_SECONDS, REPLIES, REPLY_SECONDS
from app.core.server_sent_events import EventReader
from app.models.message import TokenCounts
from app.services import external_api
from app.services.external_api import Answer, Call, ExternalApiError

_MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
_MAX_EVENT_BYTES: Final = 256 * 1024
_MAX_CHARACTERS: Final = 200_000
_EVENT_STREAM: Final = "text/event-stream"
_DRAIN_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = 5

_log = get_logger(__name__)


class Whole(NamedTuple):
    """The whole of a reply: the last that comes of it."""

    content: str
    model: str
    tokens: TokenCounts


def require_configured() -> None:
    settings = get_settings()
    if settings.assistant_base_url is None or settings.assistant_model is None:
        raise ProviderUnavailableError(
            "This service has no assistant: its operator has not set ASSISTANT_BASE_URL and ASSISTANT_MODEL."
        )


async def reply_to(turns: Sequence[Turn]) -> AsyncGenerator[str | Whole, None]:
    """The words of a reply as they come, then the whole of it. `ProviderUnavailableError` when it does not come whole.

    Nothing is read ahead: who is slow to take the words slows the assistant down.
    """
    call, asked_at, has_begun = _call(turns), time.monotonic(), False
    try:
        async with external_api.get_api().stream(call) as answer, aclosing(_read(answer, turns)) as parts:
            async for part in parts:
                if not has_begun:
                    has_begun = True
                    FIRST_WORD_SECONDS.observe(time.monotonic() - asked_at)
                if isinstance(part, Whole):
                    REPLIES.add("whole")
                    REPLY_SECONDS.observe(time.monotonic() - asked_at)
                yield part
    except ExternalApiError as error:
        REPLIES.add("failed")
        _log.warning("assistant_failed", host=urlsplit(call.url).hostname, reason=str(error))
        raise ProviderUnavailableError(retry_after=error.retry_after or _RETRY_SECONDS, reason=str(error)) from error


async def _read(answer: Answer, turns: Sequence[Turn]) -> AsyncGenerator[str | Whole, None]:
    if answer.media_type != _EVENT_STREAM:
        raise ExternalApiError("the answer is no stream of events")
    events, reply, content = EventReader(_MAX_EVENT_BYTES), ReplyReader(), ""
    async with aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            if added := _added(events, reply, chunk):
                content += added
                yield added
            if len(content) > _MAX_CHARACTERS:
                raise ExternalApiError("the reply is too long", is_failure=False)
            if reply.is_done:
                break
        if not reply.is_whole:
            raise ExternalApiError("the answer ends before the reply does")
        if not content:
            raise ExternalApiError("the reply is empty", is_failure=False)
        await _drain(chunks)
    yield Whole(content, reply.model or get_settings().assistant_model or "", _tokens(reply, turns, content))


def _added(events: EventReader, reply: ReplyReader, chunk: bytes) -> str:
    """The text in a piece of the answer."""
    try:
        return "".join([reply.read(event.data) for event in events.feed(chunk) if not reply.is_done])
    except ProtocolError as error:
        raise ExternalApiError(str(error)) from error
    except ValueError as error:  # of which a wrong byte is one
        raise ExternalApiError("the answer is no stream of events") from error


async def _drain(chunks: AsyncGenerator[bytes, None]) -> None:
    """Take what is left of a finished answer, which is nothing, so that its connection can be used again."""
    with suppress(ExternalApiError, TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in chunks:
                pass


def _tokens(reply: ReplyReader, turns: Sequence[Turn], content: str) -> TokenCounts:
    """As the provider has counted, and where it has not, about as it would have."""
    if reply.usage is not None:
        return TokenCounts(prompt=reply.usage.prompt_tokens, completion=reply.usage.completion_tokens)
    return TokenCounts(prompt=estimated_prompt_tokens(turns), completion=estimated_tokens(content))


def _call(turns: Sequence[Turn]) -> Call:
    settings = get_settings()
    headers = {"accept": _EVENT_STREAM, "content-type": "application/json"}
    if settings.assistant_api_key is not None:
        headers["authorization"] = f"Bearer {settings.assistant_api_key.get_secret_value()}"
    limit = {settings.assistant_max_tokens_field: settings.assistant_max_tokens}
    return Call(
        method="POST",
        url=f"{(settings.assistant_base_url or '').rstrip('/')}/chat/completions",
        headers=headers,
        content=request_body(settings.assistant_model or "", turns, limit),
        idle_seconds=settings.assistant_idle_seconds,
        total_seconds=settings.assistant_timeout_seconds,
        max_bytes=_MAX_ANSWER_BYTES,
        redirects=settings.assistant_redirects,
        may_redirect_to_private=settings.assistant_private_redirects,
    )
