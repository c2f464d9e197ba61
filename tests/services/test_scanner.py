"""The virus scanner: a real clamd, and programs that only pretend to be one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from app.api.errors import render_error
from app.core.config import Settings
from app.core.exceptions import FileInfectedError, FileRejectedError, ScannerUnavailableError
from app.services.scanner import Finding, Scanner, Verdict, scanner_of
from tests import hostile_files
from tests.clamd_server import ClamdServer, clamd, running_clamd

__all__ = ["clamd", "running_clamd"]

NOBODY_LISTENS = 9
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def verdict_on(content: bytes, scanner: Scanner, *, chunk: int = 65_536) -> Verdict:
    async with scanner.scan() as scan:
        for start in range(0, len(content), chunk):
            await scan.feed(content[start : start + chunk])
        return await scan.verdict()


def scanner_at(port: int, *, fails_open: bool = False, seconds: float = 20) -> Scanner:
    return Scanner("127.0.0.1", port, fails_open=fails_open, stall_seconds=seconds, verdict_seconds=seconds)


@asynccontextmanager
async def pretender(talk: Talk) -> AsyncIterator[int]:
    """A server that takes connections and talks so; the port it listens at."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def saying(reply: bytes) -> Talk:
    """Hears the whole file and says that."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(10) == b"zINSTREAM\0"
        while length := int.from_bytes(await reader.readexactly(4), "big"):
            await reader.readexactly(length)
        writer.write(reply)
        await writer.drain()

    return talk


async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(65_536):
        pass


async def hear_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await writer.wait_closed()


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


class TestVerdict:
    async def test_is_clean(self, clamd: ClamdServer) -> None:
        assert await verdict_on(b"harmless" * 100_000, scanner_at(clamd.port)) == Verdict(Finding.CLEAN)

    async def test_is_clean_for_nothing(self, clamd: ClamdServer) -> None:
        assert await verdict_on(b"", scanner_at(clamd.port)) == Verdict(Finding.CLEAN)

    @pytest.mark.parametrize("chunk", [1, 7, 65_536])
    async def test_names_the_virus_however_the_file_is_cut(self, clamd: ClamdServer, chunk: int) -> None:
        verdict = await verdict_on(hostile_files.EICAR, scanner_at(clamd.port), chunk=chunk)

        assert verdict.finding is Finding.INFECTED
        assert (verdict.signature or "").startswith("Eicar-Test-Signature")

    async def test_finds_it_in_an_archive(self, clamd: ClamdServer) -> None:
        packed = hostile_files.archive({"folder/eicar.com": hostile_files.EICAR})

        assert (await verdict_on(packed, scanner_at(clamd.port))).finding is Finding.INFECTED

    async def test_does_not_mind_chunks_of_nothing_and_large_ones(self, clamd: ClamdServer) -> None:
        async with scanner_at(clamd.port).scan() as scan:
            await scan.feed(b"")
            await scan.feed(bytes(3_000_000))
            await scan.feed(b"")
            await scan.feed(hostile_files.EICAR)
            verdict = await scan.verdict()

        assert verdict.finding is Finding.INFECTED

    async def test_of_many_at_once_is_each_of_its_own(self, clamd: ClamdServer) -> None:
        scanner = scanner_at(clamd.port)

        verdicts = await asyncio.gather(
            *(verdict_on(hostile_files.EICAR if number % 3 == 0 else b"harmless", scanner) for number in range(9))
        )

        assert [verdict.finding == "infected" for verdict in verdicts] == [True, False, False] * 3

    @pytest.mark.parametrize("fails_open", [False, True])
    async def test_is_refused_to_what_is_too_large_for_the_scanner(
        self, clamd: ClamdServer, *, fails_open: bool
    ) -> None:
        with pytest.raises(FileRejectedError) as refused:
            await verdict_on(bytes(20_000_000), scanner_at(clamd.port, fails_open=fails_open))

        assert str(refused.value) == "The file is larger than the virus scanner takes."

    async def test_is_refused_to_what_is_only_a_little_too_large(self, clamd: ClamdServer) -> None:
        with pytest.raises(FileRejectedError):
            await verdict_on(bytes(4 * 1024 * 1024 + 1), scanner_at(clamd.port))

    async def test_is_that_nothing_was_scanned_where_there_is_no_scanner(self) -> None:
        assert await verdict_on(hostile_files.EICAR, Scanner(None, 3310)) == Verdict(Finding.NOT_SCANNED)


class TestUnavailable:
    async def test_when_nobody_listens(self) -> None:
        with pytest.raises(ScannerUnavailableError) as refused:
            await verdict_on(b"content", scanner_at(NOBODY_LISTENS))

        answer = render_error("/uploads", refused.value)
        assert answer.status_code == 503
        assert b'"code":"scanner_unavailable"' in bytes(answer.body)
        assert answer.headers["Retry-After"] == "2"

    async def test_when_the_host_has_no_address(self) -> None:
        with pytest.raises(ScannerUnavailableError):
            await verdict_on(b"content", Scanner("nowhere.invalid", 3310))

    async def test_when_it_is_killed_in_the_middle(self, clamd: ClamdServer) -> None:
        async with scanner_at(clamd.port).scan() as scan:
            await scan.feed(b"content")
            clamd.kill()

            with pytest.raises(ScannerUnavailableError):
                await feed_to_the_end(scan.feed, scan.verdict)

        clamd.start()
        assert await verdict_on(b"content", scanner_at(clamd.port)) == Verdict(Finding.CLEAN)

    async def test_when_it_stands_still_before_the_verdict(self, clamd: ClamdServer) -> None:
        async with scanner_at(clamd.port, seconds=0.3).scan() as scan:
            await scan.feed(b"content")
            clamd.freeze()

            with pytest.raises(ScannerUnavailableError):
                await scan.verdict()

    @pytest.mark.parametrize("talk", [say_nothing, hear_nothing, hang_up])
    async def test_when_it_stalls(self, talk: Talk) -> None:
        async with pretender(talk) as port:
            with pytest.raises(ScannerUnavailableError):
                await verdict_on(bytes(50_000_000), scanner_at(port, seconds=0.5), chunk=1_000_000)

    @pytest.mark.parametrize(
        "reply",
        [
            b"",
            b"stream: OK",
            b"stream: OK\0stream: OK\0",
            b"stream: Eicar FOUND\0stream: OK\0",
            b"other: OK\0",
            b"stream: FOUND\0",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"stream: Can't allocate memory ERROR\0",
            b"\xff" * 10_000,
        ],
    )
    async def test_when_it_answers_nonsense(self, reply: bytes) -> None:
        async with pretender(saying(reply)) as port:
            with pytest.raises(ScannerUnavailableError):
                await verdict_on(b"content", scanner_at(port))

    async def test_lets_files_pass_unscanned_where_that_is_wanted(self, clamd: ClamdServer) -> None:
        unknown = Verdict(Finding.UNKNOWN)

        assert await verdict_on(b"content", scanner_at(NOBODY_LISTENS, fails_open=True)) == unknown
        for talk in (say_nothing, hear_nothing, hang_up, saying(b"nonsense\0")):
            async with pretender(talk) as port:
                assert await verdict_on(bytes(20_000_000), scanner_at(port, fails_open=True, seconds=0.5)) == unknown
        assert await verdict_on(b"content", scanner_at(clamd.port, fails_open=True)) == Verdict(Finding.CLEAN)

    async def test_is_noted_when_files_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        await verdict_on(b"content", scanner_at(NOBODY_LISTENS, fails_open=True))

        assert "file_not_scanned" in capsys.readouterr().out


class TestScan:
    async def test_called_off_leaves_the_scanner_well(self, clamd: ClamdServer) -> None:
        for _ in range(20):
            async with scanner_at(clamd.port).scan() as scan:
                await scan.feed(b"content")

        assert await verdict_on(b"content", scanner_at(clamd.port)) == Verdict(Finding.CLEAN)

    async def test_can_be_given_up_while_the_scanner_is_silent(self) -> None:
        has_all = asyncio.Event()

        async def hear_all(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.readexactly(len(b"zINSTREAM\0") + 4 + len(b"content") + 4)
            has_all.set()
            await reader.read()

        async with pretender(hear_all) as port:
            waiting = asyncio.create_task(verdict_on(b"content", scanner_at(port)))
            await has_all.wait()
            waiting.cancel()
            await asyncio.wait([waiting])

        assert waiting.cancelled()


class TestScannerOf:
    def test_is_off_without_a_host(self, make_settings: Callable[..., Settings]) -> None:
        assert scanner_of(make_settings()).host is None

    def test_takes_host_and_port_of_the_settings(self, make_settings: Callable[..., Settings]) -> None:
        scanner = scanner_of(make_settings(clamav_host="clamav", clamav_port=3311, scanner_fail_open=True))

        assert (scanner.host, scanner.port, scanner.fails_open) == ("clamav", 3311, True)


class TestFileInfectedError:
    def test_is_the_clients_fault(self) -> None:
        answer = render_error("/uploads", FileInfectedError())

        assert answer.status_code == 422
        assert b'"code":"file_infected"' in bytes(answer.body)


async def feed_to_the_end(feed: Callable[[bytes], Awaitable[None]], verdict: Callable[[], Awaitable[Verdict]]) -> None:
    for _ in range(10):
        await feed(bytes(65_536))
    await verdict()
