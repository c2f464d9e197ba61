"""An assistant of the tests: a real server on this machine that speaks chat completions, and that can misbehave."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

MODEL = "parrot-1"
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}


@dataclass
class Exchange:
    """One request, and the wire on which it is answered."""

    method: str
    path: str
    headers: dict[str, str]
    content: bytes
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    async def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        """A whole answer."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        await self.begin(status, content_length=str(len(content)), **named)
        await self.raw(content)

    async def begin(self, status: int = 200, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def begin_events(self, media_type: str = "text/event-stream; charset=utf-8") -> None:
        await self.begin(content_type=media_type, transfer_encoding="chunked")

    async def chunk(self, content: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(content), content))

    async def event(self, content: Any) -> None:
        await self.chunk(f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode())

    async def say(self, *words: str) -> None:
        for word in words:
            await self.event(chunk_of({"content": word}))

    async def finish(self, usage: dict[str, int] | None = USAGE) -> None:
        await self.event(chunk_of({}, finish_reason="stop"))
        if usage is not None:
            await self.event({**chunk_of({}), "choices": [], "usage": usage})
        await self.chunk(b"data: [DONE]\n\n")
        await self.raw(b"0\r\n\r\n")

    async def raw(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()
        self.sent += len(content)

    def cut(self) -> None:
        self.writer.transport.abort()


Behaviour = Callable[[Exchange], Awaitable[None]]


def chunk_of(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def says(*words: str, usage: dict[str, int] | None = USAGE) -> Behaviour:
    """A good answer of these words."""

    async def behave(exchange: Exchange) -> None:
        await exchange.begin_events()
        await exchange.event(chunk_of({"role": "assistant", "content": ""}))
        await exchange.say(*words)
        await exchange.finish(usage)

    return behave


def answers(status: int, content: bytes = b"{}", **headers: str) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.answer(status, content, **headers)

    return behave


class Says:
    """Says some words, and the rest when it is let go."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.let_go = asyncio.Event()
        self.asked: asyncio.Queue[Exchange] = asyncio.Queue()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.begin_events()
        await exchange.say(*self.words)
        self.asked.put_nowait(exchange)
        await self.let_go.wait()
        await exchange.say(" the rest")
        await exchange.finish()


class Assistant:
    """The server. Each request gets the next of `script`, and when that is empty a good answer."""

    def __init__(self) -> None:
        self.script: deque[Behaviour] = deque()
        self.usually: Behaviour = says("Hello", " Ada")
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of an application that asks it."""
        return {"assistant_base_url": self.url, "assistant_model": "parrot", "assistant_api_key": "sk-test-4711"}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun = await reader.read(1)
        while begun:
            exchange = await _read(begun, reader, writer)
            self.exchanges.append(exchange)
            more = asyncio.ensure_future(_watched(reader, exchange))
            behaviour = self.script.popleft() if self.script else self.usually
            try:
                await behaviour(exchange)
                begun = await more
            finally:
                more.cancel()


async def _watched(reader: asyncio.StreamReader, exchange: Exchange) -> bytes:
    """The first byte of the next request; none when the other side has hung up."""
    try:
        begun = await reader.read(1)
    except ConnectionError:
        begun = b""
    if not begun:
        exchange.gone.set()
    return begun


async def _read(begun: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
    first, *lines = (begun + await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Exchange(method, path, headers, content, writer)


@asynccontextmanager
async def open_assistant() -> AsyncIterator[Assistant]:
    """An assistant on a free port, in the loop of the test."""
    assistant = Assistant()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(assistant.serve(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    assistant.port = server.sockets[0].getsockname()[1]
    try:
        yield assistant
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
