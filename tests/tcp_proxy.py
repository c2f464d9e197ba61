"""The network between the service and its database, in the hands of a test."""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

_RESET: Final = struct.pack("ii", 1, 0)  # closing sends a reset, and drops what was not read


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Fault(NamedTuple):
    """What is to happen to the next request that holds the word."""

    word: bytes
    is_let_through: bool = False
    is_swallowed: bool = False
    refuses: bool = False  # everything from then on


class TcpProxy:
    """Forwards a port of its own to another, as long as nothing is wrong."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.lost = 0  # answers that were thrown away
        self._is_black_hole = False
        self._delay = 0.0
        self._fault: _Fault | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._thread.start()
        self._do(self._listen())

    def refuse(self) -> None:
        """Nothing listens any more, and what was open is reset."""
        self._do(self._refuse())

    def swallow(self) -> None:
        """Connections are accepted and stay open, and nothing comes of what is sent."""
        self._is_black_hole = True

    def slow_down(self, seconds: float) -> None:
        """Every answer is late."""
        self._delay = seconds

    def lose_answer_to(self, word: bytes, *, and_refuse: bool = False) -> None:
        """Let the next request that holds the word through, and break the connection where its answer should come.

        `and_refuse`: everything from then on.
        """
        self._fault = _Fault(word, is_let_through=True, refuses=and_refuse)

    def refuse_from(self, word: bytes) -> None:
        """Refuse everything from the next request on that holds the word, which does not get there."""
        self._fault = _Fault(word, refuses=True)

    def swallow_from(self, word: bytes) -> None:
        """The same, and connections stay open."""
        self._fault = _Fault(word, is_swallowed=True)

    def heal(self) -> None:
        self._is_black_hole, self._delay, self._fault = False, 0.0, None
        self._do(self._heal())

    def close(self) -> None:
        self._do(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _heal(self) -> None:
        """What was open in a black hole has lost some of what went through it, and is of no use."""
        self._reset()
        await self._listen()

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _reset(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, asyncio.CancelledError):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
                await self._forward((reader, writer), (far_reader, far_writer))
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _forward(self, near: _Stream, far: _Stream) -> None:
        connection = _Connection(near, far)
        self._connections.add(connection)
        try:
            ways = [asyncio.ensure_future(way) for way in (self._requests(connection), self._answers(connection))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._connections.discard(connection)
            far[1].close()

    async def _requests(self, connection: "_Connection") -> None:
        while data := await connection.near[0].read(65536):
            if self._fault is not None and self._fault.word in data:
                connection.fault, self._fault = self._fault, None
                if connection.fault.is_swallowed:
                    self._is_black_hole = True
                elif not connection.fault.is_let_through:
                    self._loop.create_task(self._refuse())
                    return
            if not self._is_black_hole:
                connection.far[1].write(data)

    async def _answers(self, connection: "_Connection") -> None:
        while data := await connection.far[0].read(65536):
            if connection.fault is not None:
                self.lost += 1
                connection.reset()
                if connection.fault.refuses:
                    self._loop.create_task(self._refuse())
                return
            if self._delay:
                await asyncio.sleep(self._delay)
            if not self._is_black_hole:
                connection.near[1].write(data)


class _Connection:
    """Both halves of what goes through."""

    def __init__(self, near: _Stream, far: _Stream) -> None:
        self.near, self.far = near, far
        self.fault: _Fault | None = None

    def reset(self) -> None:
        with suppress(OSError):
            self.near[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.near[1].transport.abort()
        self.far[1].transport.abort()


@contextmanager
def proxied(target: int) -> Iterator[TcpProxy]:
    proxy = TcpProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
