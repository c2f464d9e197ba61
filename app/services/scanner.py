"""The virus scanner: a clamd, which is given a file while it comes in (INSTREAM, see clamd(8))."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Final, NamedTuple

from app.core.config import Settings
from app.core.exceptions import FileRejectedError, ScannerUnavailableError
from app.core.logging_config import get_logger
from app.core.metrics import SCANS

_CONNECT_SECONDS: Final = 5.0
_STALL_SECONDS: Final = 30.0  # for which it may take nothing more of the file
_VERDICT_SECONDS: Final = 300.0  # it only scans when it has all of the file
_LAST_WORD_SECONDS: Final = 1.0
_LONGEST_REPLY: Final = 4096
_LENGTH_BYTES: Final = 4
_PART_BYTES: Final = 1024 * 1024
_REPLY: Final = re.compile(rb"stream: (?:OK|([!-~]{1,1000}) FOUND)\0")
_TOO_LARGE: Final = b"INSTREAM size limit exceeded"

_log = get_logger(__name__)


class Finding(StrEnum):
    CLEAN = "clean"
    INFECTED = "infected"
    UNKNOWN = "unknown"  # the scanner does not answer, and files are taken all the same
    NOT_SCANNED = "not_scanned"  # there is no scanner


class Verdict(NamedTuple):
    finding: Finding
    signature: str | None = None  # by which it was found


class Scanner:
    """`async with scanner.scan() as scan:` for each file. Without a host nothing is scanned."""

    def __init__(
        self,
        host: str | None,
        port: int,
        *,
        fails_open: bool = False,
        stall_seconds: float = _STALL_SECONDS,
        verdict_seconds: float = _VERDICT_SECONDS,
    ) -> None:
        self.host = host
        self.port = port
        self.fails_open = fails_open
        self.stall_seconds = stall_seconds
        self.verdict_seconds = verdict_seconds

    @asynccontextmanager
    async def scan(self) -> AsyncIterator["Scan"]:
        """Begin a scan. It is called off when it is left without a verdict."""
        scan = Scan(self)
        try:
            await scan.begin()
            yield scan
        finally:
            scan.end()

    async def version(self) -> str | None:
        """What it says of itself and its signatures; none without a host. `OSError` when it does not answer."""
        if self.host is None:
            return None
        connection = await _connect(self.host, self.port)
        with connection:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, b"zVERSION\0")
            reply = b""
            while not reply.endswith(b"\0") and len(reply) < _LONGEST_REPLY:
                part = await loop.sock_recv(connection, _LONGEST_REPLY)
                if not part:
                    raise ConnectionResetError
                reply += part
        return reply.rstrip(b"\0\n").decode(errors="replace")


class Scan:
    """The scan of one file: all of it is fed, and then there is a verdict.

    Each step raises `ScannerUnavailableError`, unless the scanner fails open, and `FileRejectedError` for a file that
    is larger than it takes.
    """

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._connection: socket.socket | None = None
        self._finding = Finding.NOT_SCANNED  # while there is no connection

    async def begin(self) -> None:
        if self._scanner.host is None:
            return
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                self._connection = await _connect(self._scanner.host, self._scanner.port)
            await self._send(b"zINSTREAM\0")
        except OSError as error:
            self._do_without(type(error).__name__)

    async def feed(self, chunk: bytes) -> None:
        for start in range(0, len(chunk), _PART_BYTES):
            part = chunk[start : start + _PART_BYTES]
            await self._send_or_hear(len(part).to_bytes(_LENGTH_BYTES, "big") + part)

    async def verdict(self) -> Verdict:
        """What the scanner says, when it was fed everything."""
        await self._send_or_hear(bytes(_LENGTH_BYTES))
        try:
            reply = await self._reply(self._scanner.verdict_seconds)
        except OSError as error:
            self._do_without(type(error).__name__)
            reply = b""
        verdict = self._judge(reply)
        SCANS.add(verdict.finding)
        return verdict

    def end(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _judge(self, reply: bytes) -> Verdict:
        if self._connection is None:
            return Verdict(self._finding)
        _refuse_too_large(reply)
        said = _REPLY.fullmatch(reply)
        if said is None:
            self._do_without("nonsense")
            return Verdict(self._finding)
        return Verdict(Finding.INFECTED, said[1].decode()) if said[1] else Verdict(Finding.CLEAN)

    async def _send_or_hear(self, content: bytes) -> None:
        """Send; where that fails, hear why: it says so before it hangs up."""
        try:
            await self._send(content)
        except OSError as error:
            with suppress(OSError):
                _refuse_too_large(await self._reply(_LAST_WORD_SECONDS))
            self._do_without(type(error).__name__)

    async def _send(self, content: bytes) -> None:
        if self._connection is not None:
            async with asyncio.timeout(self._scanner.stall_seconds):
                await asyncio.get_running_loop().sock_sendall(self._connection, content)

    async def _reply(self, seconds: float) -> bytes:
        """What it says until the NUL that ends a reply, or until it hangs up."""
        reply = b""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            while self._connection is not None and not reply.endswith(b"\0") and len(reply) < _LONGEST_REPLY:
                part = await loop.sock_recv(self._connection, _LONGEST_REPLY)
                if not part:
                    break
                reply += part
        return reply

    def _do_without(self, reason: str) -> None:
        self.end()
        if not self._scanner.fails_open:
            SCANS.add("unavailable")
            raise ScannerUnavailableError(reason=reason)
        self._finding = Finding.UNKNOWN
        _log.warning("file_not_scanned", reason=reason, hint="SCANNER_FAIL_OPEN=true takes it all the same")


def scanner_of(settings: Settings) -> Scanner:
    return Scanner(settings.clamav_host, settings.clamav_port, fails_open=settings.scanner_fail_open)


def _refuse_too_large(reply: bytes) -> None:
    if reply.startswith(_TOO_LARGE):
        _log.warning("file_too_large_for_scanner", hint="StreamMaxLength of clamd is less than MAX_UPLOAD_BYTES")
        raise FileRejectedError("The file is larger than the virus scanner takes.")


async def _connect(host: str, port: int) -> socket.socket:
    """To the first of its addresses that answers. `OSError` when none does."""
    loop = asyncio.get_running_loop()
    failure = OSError("no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(0)
        try:
            await loop.sock_connect(connection, address)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return connection
    raise failure
