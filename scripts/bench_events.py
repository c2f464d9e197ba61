"""What open streams of events cost: memory of one worker, and the time until a message has reached all of them.

    python3 scripts/bench_events.py [--streams 2000] [--messages 20]

Needs Linux and two cores. The server under test has one core; the readers and the database have the other.
"""

import argparse
import asyncio
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple, cast

import environment

SERVER_CORE, LOAD_CORE = 0, 1
USERS = 40
READY, MESSAGE = b"event: ready", b"event: message.created"
PATIENCE_SECONDS = 60


class Crowd(NamedTuple):
    """One conversation, and who follows it."""

    path: str
    tokens: list[str]


def main() -> None:
    environment.enter("requirements-dev.txt")
    options = _options()
    from bench_login import start_server  # noqa: PLC0415 - importable only inside the environment

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the server inherits it
    with tempfile.TemporaryDirectory(prefix="octopus-bench-") as name, ExitStack() as stack:
        os.sched_setaffinity(0, {LOAD_CORE})
        url, crowd = stack.enter_context(_stored(Path(name)))
        os.sched_setaffinity(0, {SERVER_CORE})
        port, process = stack.enter_context(start_server(Path(name), url))
        os.sched_setaffinity(0, {LOAD_CORE})
        asyncio.run(_measure(port, process.pid, crowd, options))


@contextmanager
def _stored(folder: Path) -> Iterator[tuple[str, Crowd]]:
    """A database of its own with a conversation."""
    import service  # noqa: F401, PLC0415 - makes `app` importable
    from bench_login import SECRET  # noqa: PLC0415

    from app.core.config import Settings, use_settings  # noqa: PLC0415
    from app.db.embedded import embedded_server  # noqa: PLC0415

    use_settings(Settings(_env_file=None, environment="test", secret_key=SECRET))
    with embedded_server(folder) as url:
        yield url, asyncio.run(_fill(url))


async def _fill(url: str) -> Crowd:
    from app.db.mongo import connected  # noqa: PLC0415
    from tests.factories import make_conversation, make_signed_in  # noqa: PLC0415

    async with connected(url):
        users = [await make_signed_in(limits={"daily_messages": None}) for _ in range(USERS)]
        conversation = await make_conversation(*users)
        return Crowd(f"/api/v1/conversations/{conversation.id}", [user.access_token for user in users])


class Arrivals:
    """Counts what has reached all readers together."""

    def __init__(self) -> None:
        self.missing, self.last_at, self.have_come = 0, 0.0, asyncio.Event()

    def await_more(self, count: int) -> None:
        self.missing = count
        self.have_come.clear()

    def note(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.last_at = time.perf_counter()
            self.have_come.set()


class Reader(asyncio.Protocol):
    """One client, as cheap as can be: it counts the messages that reach it."""

    def __init__(self, request: bytes, arrived: Arrivals) -> None:
        self.request, self.arrived, self.is_open, self.tail = request, arrived, asyncio.Event(), b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self.request)

    def data_received(self, data: bytes) -> None:
        seen = self.tail + data
        if not self.is_open.is_set() and READY in seen:
            self.is_open.set()
        for _ in range(seen.count(MESSAGE) - self.tail.count(MESSAGE)):
            self.arrived.note()
        self.tail = seen[-len(MESSAGE) :]


async def _measure(port: int, pid: int, crowd: Crowd, options: argparse.Namespace) -> None:
    before, arrived, started = _rss(pid), Arrivals(), time.perf_counter()
    transports = [await _open(port, crowd, number, arrived) for number in range(options.streams)]
    opened_in, opened, cpu = time.perf_counter() - started, _rss(pid), _cpu_ms(pid)
    times = [await _say(port, crowd, arrived, options.streams) for _ in range(options.messages)]
    cpu = (_cpu_ms(pid) - cpu) / options.messages
    print(f"{options.streams} streams are open after {opened_in:.1f} s")
    print(f"worker: {before:.0f} MB before, {opened:.0f} MB with them open, {_rss(pid):.0f} MB at the end")
    print(f"a message has reached all after {statistics.median(times):.0f} ms (median), {max(times):.0f} ms (slowest)")
    print(f"telling all of one costs {cpu:.0f} ms of the worker's core")
    for transport in transports:
        transport.close()


async def _open(port: int, crowd: Crowd, number: int, arrived: Arrivals) -> asyncio.BaseTransport:
    """One more stream, once it is open."""
    token = crowd.tokens[number % len(crowd.tokens)]
    request = f"GET {crowd.path}/events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    transport, reader = await asyncio.get_running_loop().create_connection(
        lambda: Reader(request, arrived), "127.0.0.1", port
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        await reader.is_open.wait()
    return transport


async def _say(port: int, crowd: Crowd, arrived: Arrivals, streams: int) -> float:
    """Milliseconds from sending a message to the last reader's having it."""
    arrived.await_more(streams)
    started = time.perf_counter()
    await asyncio.to_thread(_post, port, crowd)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await arrived.have_come.wait()
    return (arrived.last_at - started) * 1000


def _post(port: int, crowd: Crowd) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    headers = {"Authorization": f"Bearer {crowd.tokens[0]}", "Content-Type": "application/json"}
    connection.request("POST", f"{crowd.path}/messages", '{"content":"Is the kettle on?"}', headers)
    answer = connection.getresponse()
    if answer.status != HTTPStatus.CREATED:
        sys.exit(f"A message was refused: {answer.read().decode()}")
    connection.close()


def _rss(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def _cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--messages", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
