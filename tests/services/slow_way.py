"""A way to a server on which little gets through in a second."""

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_BUFFER = 32 * 1024


@asynccontextmanager
async def slow_way_to(port: int, *, bytes_per_second: int) -> AsyncIterator[int]:
    """The port of its near end. What is sent there waits in no large buffer: whoever sends is held up."""
    ways: list[asyncio.Task[None]] = []

    def accept(reader: StreamReader, writer: StreamWriter) -> None:
        ways.append(asyncio.create_task(carry(reader, writer)))

    async def carry(reader: StreamReader, writer: StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_copy(reader, there_writer, _BUFFER / bytes_per_second), _copy(there_reader, writer, 0))

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    # As on a real network. The segments within a machine are so long that the sender's buffer holds megabytes.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    listening.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(accept, sock=listening, limit=_BUFFER)
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.close()
        for task in ways:
            task.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _copy(reader: StreamReader, writer: StreamWriter, pause: float) -> None:
    try:
        while content := await reader.read(_BUFFER):
            await asyncio.sleep(pause * len(content) / _BUFFER)
            writer.write(content)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
