"""Streams of Server-Sent Events, read as they come: httpx gives an answer of an application only once it is whole."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from bson import ObjectId
from httpx import AsyncClient

PATIENCE_SECONDS = 5.0


class Event(NamedTuple):
    id: str | None
    type: str
    data: dict[str, Any]


class Stream:
    """An answer under way. Reading waits for what is to come."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_over = False
        self.comments = 0
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._has_begun = asyncio.Event()
        self._text = ""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            self._has_begun.set()
        else:
            await self._chunks.put(message["body"])
            if not message.get("more_body", False):
                await self._chunks.put(None)

    async def begin(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._has_begun.wait()

    async def block(self) -> str | None:
        """What stands before the next empty line; none at the end."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "\n\n" not in self._text:
                chunk = await self._chunks.get()
                if chunk is None:
                    self.is_over = True
                    return None
                self._text += chunk.decode()
        block, _, self._text = self._text.partition("\n\n")
        return block

    async def next(self) -> Event | None:
        """The next event; none at the end."""
        while (block := await self.block()) is not None:
            if (event := event_of(block.split("\n"))) is not None:
                return event
            self.comments += 1
        return None

    async def take(self, count: int) -> list[Event]:
        taken = [await self.next() for _ in range(count)]
        return [event for event in taken if event is not None]

    async def rest(self) -> list[Event]:
        """All events until the end."""
        events = []
        while (event := await self.next()) is not None:
            events.append(event)
        return events


def event_of(lines: Iterable[str]) -> Event | None:
    """As a browser reads it; none when it is only a comment."""
    fields = {name: value.removeprefix(" ") for name, _, value in (line.partition(":") for line in lines) if name}
    if "data" not in fields:
        return None
    return Event(fields.get("id"), fields["event"], json.loads(fields["data"]))


@asynccontextmanager
async def opened(
    client: AsyncClient, conversation_id: ObjectId, headers: dict[str, str], *, last_event_id: str | None = None
) -> AsyncIterator[Stream]:
    """The events of a conversation, until the client hangs up at the end of the block."""
    resume = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    url = f"/api/v1/conversations/{conversation_id}/events"
    async with answer_of(client, url, headers | resume) as stream:
        yield stream


@asynccontextmanager
async def answer_of(client: AsyncClient, url: str, headers: dict[str, str]) -> AsyncIterator[Stream]:
    """The answer to a GET, once it has begun."""
    request, stream, hung_up = client.build_request("GET", url, headers=headers), Stream(), asyncio.Event()
    is_read = False
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn
        "http_version": "1.1",
        "method": "GET",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": "http",
        "path": request.url.path,
        "raw_path": request.url.raw_path.partition(b"?")[0],
        "query_string": request.url.query,
        "server": ("test", 80),
        "client": ("127.0.0.1", 50000),
        "root_path": "",
    }

    async def receive() -> dict[str, Any]:
        nonlocal is_read
        if not is_read:
            is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await hung_up.wait()
        return {"type": "http.disconnect"}

    app: Any = client._transport.app  # type: ignore[attr-defined]
    answer = asyncio.create_task(app(scope, receive, stream.send))
    try:
        await stream.begin()
        yield stream
    finally:
        hung_up.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await answer
