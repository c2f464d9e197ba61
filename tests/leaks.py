"""No log of the whole run holds a password, key or token of it: every worker gathers both, the run ends with a look.

What the application and its libraries log goes to a file of the worker, and so do the logs of servers and the standard
error of scripts. Secrets are what requests and answers call so, what settings call so, and what factories make. What
is looked for is a piece of each that is in nothing else by chance: words of letters and digits, from the end of the
secret, since its beginning may be meant to be seen.
"""

import functools
import os
import re
import subprocess
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import httpx
import pytest
import structlog.testing
from pydantic import SecretStr

from app.core import log_line, logging_config
from tests.forking import ForkedService

_NAMES: Final = rb"[a-z_]*(?:password|token|secret)|api_key|key|otpauth_uri|signature|sig|recovery_codes?|url"
_IN_JSON: Final = re.compile(rb'"(' + _NAMES + rb')"\s*:\s*(?:"([^"\\]{8,2000})"|\[([^\]]{8,2000})\])')
_IN_QUERY: Final = re.compile(rb"(?:^|[?&])(" + _NAMES + rb")=([^&\s]{8,2000})")
_HEADERS: Final = ("authorization", "octopus-api-key", "x-api-key", "x-bootstrap-token", "cookie", "set-cookie")
_VARIABLE: Final = re.compile("SECRET|PASSWORD|TOKEN|KEY")
_PLAIN: Final = frozenset({"token_type", "bearer", "refresh_token", "access_token"})
_WORD: Final = re.compile(rb"[A-Za-z0-9]{10,}")
_ID: Final = re.compile(rb"[0-9a-f]{24}")  # of a document: many tokens begin with one, and logs name them
_PIECE: Final = 10
_MIN_DIFFERENT: Final = 6  # characters of what is looked for: `aaaaaaaaaaaa` is no secret
_MARK: Final = b"\n#test "


class Leak(NamedTuple):
    piece: str
    test: str
    line: str


class Watch:
    """What one process of the run logs and which secrets it makes."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._logs: IO[bytes] = (folder / f"{name}.log").open("ab")
        self._secrets: IO[bytes] = (folder / f"{name}.secrets").open("ab")
        self._tests: IO[bytes] = (folder / f"{name}.tests").open("ab")
        self._known: set[bytes] = set()
        self._files: list[tuple[bytes, IO[bytes]]] = []
        self._test = b"0"
        self._begun = 0

    def begin(self, test: str) -> None:
        """From here on the log is that of the test. Its name may hold a secret, so it is elsewhere."""
        self._begun += 1
        self._test = str(self._begun).encode()
        self._tests.write(f"{self._begun} {test!r}\n".encode())
        self._logs.write(_MARK + self._test + b"\n")

    def logged(self, text: str | bytes) -> None:
        self._logs.write(text.encode(errors="replace") if isinstance(text, str) else text)

    def follow(self, file: IO[bytes]) -> None:
        """Take in what will be in the file at the end of the run, even if it is gone by then."""
        self._files.append((self._test, file))

    def made(self, *secrets: str | bytes) -> None:
        for secret in secrets:
            content = secret.encode(errors="replace") if isinstance(secret, str) else secret
            if (piece := piece_of(content)) and piece not in self._known:
                self._known.add(piece)
                self._secrets.write(piece + b"\n")

    def close(self) -> None:
        for test, file in self._files:
            with file:
                self._logs.write(_MARK + test + b"\n" + file.read())
        self._logs.close()
        self._tests.close()
        self._secrets.close()


def piece_of(secret: bytes) -> bytes | None:
    """What to look for: from the last long word, or all of it when it has none. None when it is too plain for that."""
    words = [word for word in _WORD.findall(secret) if not _ID.fullmatch(word)]
    piece: bytes = words[-1][:_PIECE] if words else secret[:100]
    is_plain = len(secret) < _PIECE or len(set(piece)) < _MIN_DIFFERENT or b"\n" in piece
    return None if is_plain or secret.decode(errors="replace").lower() in _PLAIN else piece


def find_leaks(folder: Path, most: int = 10) -> list[Leak]:
    """The first pieces of secrets that are in a log, in which test, and on which line."""
    sought = folder / "sought"
    pieces = {piece for file in folder.glob("*.secrets") for piece in file.read_bytes().splitlines()}
    sought.write_bytes(b"".join(piece + b"\n" for piece in pieces))
    found = (leak for file in sorted(folder.glob("*.log")) for leak in _leaks_of(file, sought))
    return [leak for leak, _ in zip(found, range(most), strict=False)]


def _leaks_of(file: Path, sought: Path) -> Iterator[Leak]:
    """By grep, which looks for ten thousands of pieces at once as fast as for one."""
    grep = ["grep", "--text", "--only-matching", "--fixed-strings", "--file", str(sought), str(file)]
    run = subprocess.run(grep, env={**os.environ, "LC_ALL": "C"}, stdout=subprocess.PIPE, check=False)  # noqa: S603
    if run.returncode > 1:
        run.check_returncode()
    content = file.read_bytes() if run.stdout else b""
    for piece in sorted(set(run.stdout.splitlines())):
        yield _leak(content, piece, file.with_suffix(".tests"))


def _leak(content: bytes, piece: bytes, tests: Path) -> Leak:
    at = content.index(piece)
    number = content[: content.find(b"\n", at)].rpartition(_MARK)[2].partition(b"\n")[0]
    named = [line for line in tests.read_bytes().splitlines() if line.startswith(number + b" ")]
    test = named[0].partition(b" ")[2].strip(b"'\"") if named else b""
    line = content[content.rfind(b"\n", 0, at) + 1 : at + len(piece) + 100].partition(b"\n")[0]
    return Leak(piece.decode(errors="replace"), test.decode(errors="replace"), line[-500:].decode(errors="replace"))


class _Tee:
    """Standard error as the application finds it, and the file of the worker."""

    def __init__(self, stream: Any, watch: Watch) -> None:
        self._stream, self._watch = stream, watch

    def write(self, text: str) -> int:
        self._watch.logged(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def install(watch: Watch) -> None:
    """From now on, whatever this process logs and makes is seen."""
    _see_logs(watch)
    _see_requests(watch)
    _see_processes(watch)


def _see_logs(watch: Watch) -> None:
    class WatchedSys:
        """The module `sys` as `logging_config` sees it."""

        @property
        def stderr(self) -> Any:
            import sys  # noqa: PLC0415 - whatever it is at that moment

            return _Tee(sys.stderr, watch)

    logging_config.sys = WatchedSys()  # type: ignore[assignment, attr-defined]
    capture = structlog.testing.LogCapture.__call__

    @functools.wraps(capture)
    def note(self: Any, logger: Any, level: str, event: Any) -> Any:
        """Tests that look at events keep them from the log: here is what their lines would have been."""
        watch.logged(log_line.render(level, dict(event)) + "\n")
        return capture(self, logger, level, event)

    structlog.testing.LogCapture.__call__ = note  # type: ignore[assignment, method-assign]


def _see_requests(watch: Watch) -> None:
    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    @functools.wraps(send)
    def seen(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        _note_request(watch, request)
        response = send(self, request, **options)
        _note_response(watch, response)
        return response

    @functools.wraps(send_async)
    async def seen_async(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        _note_request(watch, request)
        response = await send_async(self, request, **options)
        _note_response(watch, response)
        return response

    httpx.Client.send = seen  # type: ignore[method-assign]
    httpx.AsyncClient.send = seen_async  # type: ignore[method-assign]


def _note_request(watch: Watch, request: httpx.Request) -> None:
    _note_headers(watch, request.headers)
    watch.made(*(value for _, value in _IN_QUERY.findall(request.url.query)))
    with suppress(httpx.RequestNotRead):
        if len(request.content) < 100_000:
            _note_content(watch, request.content)
            watch.made(*(value for _, value in _IN_QUERY.findall(request.content)))


def _note_response(watch: Watch, response: httpx.Response) -> None:
    _note_headers(watch, response.headers)
    with suppress(httpx.ResponseNotRead, httpx.StreamConsumed):
        if response.is_stream_consumed and len(response.content) < 100_000:
            _note_content(watch, response.content)


def _note_headers(watch: Watch, headers: httpx.Headers) -> None:
    for name in _HEADERS:
        if value := headers.get(name):
            watch.made(*re.findall(r"[^\s;,]{10,}", value.partition("=")[2] if "cookie" in name else value))


def _note_content(watch: Watch, content: bytes) -> None:
    for name, value, several in _IN_JSON.findall(content):
        if name == b"url":
            watch.made(*(secret for _, secret in _IN_QUERY.findall(value)))
        else:
            watch.made(value, *re.findall(rb'"([^"]{8,})"', several))


def _see_processes(watch: Watch) -> None:
    begin, communicate, fork = subprocess.Popen.__init__, subprocess.Popen.communicate, ForkedService.__init__

    @functools.wraps(begin)
    def started(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        _note_variables(watch, options.get("env") or {})
        file = options.get("stdout") if options.get("stderr") == subprocess.STDOUT else options.get("stderr")
        path = getattr(file, "name", None)
        if isinstance(path, str) and Path(path).is_file():
            watch.follow(Path(path).open("rb"))  # noqa: SIM115 - closed at the end of the run

    @functools.wraps(fork)
    def forked(self: Any, *arguments: Any, environment: Mapping[str, str], log: Path, **options: Any) -> None:
        fork(self, *arguments, environment=environment, log=log, **options)
        _note_variables(watch, environment)
        watch.follow(log.open("rb"))

    @functools.wraps(communicate)
    def ended(self: Any, *arguments: Any, **options: Any) -> Any:
        result = communicate(self, *arguments, **options)
        if result[1]:
            watch.logged(result[1])
        return result

    subprocess.Popen.__init__ = started  # type: ignore[method-assign]
    subprocess.Popen.communicate = ended  # type: ignore[method-assign]
    ForkedService.__init__ = forked  # type: ignore[method-assign]


def _note_variables(watch: Watch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        if _VARIABLE.search(name) and name not in os.environ:
            watch.made(*value.split(","))


class Plugin:
    """Fails the run of pytest whose folder it has when a log there holds a secret. Its workers have ended by then."""

    def __init__(self, watch: Watch, folder: Path | None) -> None:
        self._watch, self._folder = watch, folder
        self._found: list[Leak] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._watch.begin(item.nodeid)
        return (yield)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._watch.close()
        self._found = find_leaks(self._folder) if self._folder else []
        if self._found:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for leak in self._found:
            terminalreporter.section("secret in a log", red=True)
            terminalreporter.line(f"{leak.piece} in {leak.test}:\n{leak.line}")


def secrets_of(settings: Mapping[str, Any]) -> Iterator[str]:
    """What settings hold that is secret."""
    for value in settings.values():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, SecretStr):
                yield each.get_secret_value()
