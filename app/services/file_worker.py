"""Work on foreign files, each in a process of its own that is bounded in memory and time and can be killed.

A file can at most spoil its own process: what comes back is a result or a `Failure`. See docs/decisions/0028.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from app.core.config import Settings
from app.core.exceptions import FileRejectedError
from app.core.file_work import Answer, Fault
from app.core.logging_config import get_logger
from app.core.metrics import FILE_WORK

# As in `image_work.FORMATS`, which stays out of this process with what it imports.
IMAGE_TYPES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"})
THUMBNAIL_SIZES: Final = (64, 256, 1024)

_ROOT: Final = Path(__file__).resolve().parents[2]
_LONGEST_ANSWER: Final = 32 * 1024 * 1024
_PART_BYTES: Final = 256 * 1024
_LONGEST_SENTENCE: Final = 200
_OUT_OF_TIME: Final = {signal.SIGXCPU, signal.SIGALRM}
_SENTENCES: Final = {
    Fault.REFUSED: "The file asks for more than it may.",
    Fault.DAMAGED: "The file is damaged.",
    Fault.TOO_LONG: "The work on this file takes too long.",
    Fault.TOO_LARGE: "The work on this file needs too much memory.",
    Fault.DIED: "The file can't be read.",
    Fault.BUSY: "There is too much to do. Try again shortly.",
    Fault.CLOSED: "The server is stopping. Try again shortly.",
}
_SPOILT: Final = frozenset(Fault) - {Fault.BUSY, Fault.CLOSED}

Result = TypeVar("Result")

_log = get_logger(__name__)


class Kind(NamedTuple):
    """A kind of work, and what its process may use."""

    module: str
    memory_bytes: int
    cpu_seconds: int
    seconds: int  # by the clock on the wall


IMAGES: Final = Kind("app.core.image_work", memory_bytes=1024**3, cpu_seconds=15, seconds=20)
DOCUMENTS: Final = Kind("app.core.document_work", memory_bytes=1024**3, cpu_seconds=25, seconds=30)
_READING_SECONDS: Final = 20  # of the 30; then what was read so far is the answer


class Failure(NamedTuple):
    """Why there is no result. `is_final` when it would be the same the next time, since it lies in the file."""

    fault: Fault
    sentence: str
    reason: str | None = None  # the error of the library, for the log

    @property
    def is_final(self) -> bool:
        return self.fault in _SPOILT

    def as_error(self) -> FileRejectedError:
        return FileRejectedError(self.sentence)


class Thumbnail(NamedTuple):
    size: int  # the bound of the longer side
    width: int
    height: int
    content: bytes  # WebP


class Picture(NamedTuple):
    width: int  # upright
    height: int
    thumbnails: list[Thumbnail]


class Text(NamedTuple):
    content: bytes  # UTF-8
    characters: int
    is_truncated: bool


class FileWorkers:
    """As many processes at once as there are processors to this one; the rest waits."""

    def __init__(self, *, at_once: int) -> None:
        self._places = asyncio.Semaphore(at_once + 1)
        self._turns = asyncio.Semaphore(at_once)
        self._at_once = at_once
        self._processes: set[Process] = set()
        self._is_closed = False

    def place(self) -> AbstractAsyncContextManager[None]:
        """For whoever has to get a file ready first: those that are worked on have one, and the one that is next."""
        return _waited_for(self._places)

    async def make_thumbnails(self, path: Path, content_type: str) -> Picture | Failure:
        """Of a picture of one of the `IMAGE_TYPES`, for each of the `THUMBNAIL_SIZES`."""
        answer = await self.work(IMAGES, path, content_type)
        return answer if isinstance(answer, Failure) else _read(answer, _picture_of)

    async def extract_text(self, path: Path, content_type: str) -> Text | Failure:
        """Of a document of one of the `TEXT_TYPES`."""
        answer = await self.work(DOCUMENTS, path, content_type, str(_READING_SECONDS))
        return answer if isinstance(answer, Failure) else _read(answer, _text_of)

    async def work(self, kind: Kind, path: Path, *arguments: str) -> Answer | Failure:
        """Let a process do it when there is a turn. Whoever gives up waiting for the answer ends the process."""
        async with _waited_for(self._turns):
            return _failure(Fault.CLOSED) if self._is_closed else await self._run(kind, path, arguments)

    async def close(self) -> None:
        """End what runs, and let nothing begin any more."""
        self._is_closed = True
        for process in self._processes:
            _kill(process)
        for _ in range(self._at_once):
            await self._turns.acquire()
        for _ in range(self._at_once):
            self._turns.release()

    async def _run(self, kind: Kind, path: Path, arguments: tuple[str, ...]) -> Answer | Failure:
        try:
            process = await _start(kind, path, arguments)
        except (BlockingIOError, MemoryError):  # the machine has no room for another process
            return _failure(Fault.BUSY)
        self._processes.add(process)
        try:
            async with asyncio.timeout(0 if self._is_closed else kind.seconds):
                raw = await _answer_of(process)
                await process.wait()  # before anybody else asks how it ended: only the first one is told
        except TimeoutError:
            raw = None
        finally:
            self._processes.discard(process)
            _kill(process)
            await process.communicate()  # it is dead; what is left in the pipe goes
        if self._is_closed and process.returncode:
            return _failure(Fault.CLOSED)
        outcome = _failure(Fault.TOO_LONG) if raw is None else _outcome(raw, process.returncode)
        if isinstance(outcome, Failure):
            facts = {"fault": outcome.fault, "reason": outcome.reason, "exit_status": process.returncode}
            _log.warning("file_work_failed", work=kind.module, **facts)
        return outcome


_active: FileWorkers | None = None


@asynccontextmanager
async def open_file_workers(settings: Settings) -> AsyncIterator[None]:
    """Let this process have file workers, as many as are its share of the processors; end them afterwards."""
    global _active  # noqa: PLW0603 - one set of workers serves one process
    mine = _active = FileWorkers(at_once=max(1, (os.cpu_count() or 1) // settings.workers))
    try:
        yield
    finally:
        await mine.close()


def file_workers() -> FileWorkers:
    """Those of the process. Asking before they are open is a `RuntimeError`."""
    if _active is None:
        raise RuntimeError("The file workers are not open.")
    return _active


@asynccontextmanager
async def _waited_for(turns: asyncio.Semaphore) -> AsyncIterator[None]:
    FILE_WORK.move(1)
    try:
        await turns.acquire()
    finally:
        FILE_WORK.move(-1)
    try:
        yield
    finally:
        turns.release()


async def _start(kind: Kind, path: Path, arguments: tuple[str, ...]) -> Process:
    """A fresh interpreter without our environment, in which the secrets are, and without our connections."""
    file = await asyncio.to_thread(path.open, "rb")
    with file:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-E", "-s", "-B", "-X", "utf8", "-m", kind.module),
            *(str(kind.memory_bytes), str(kind.cpu_seconds), *arguments),
            stdin=file,
            stdout=PIPE,
            stderr=DEVNULL,
            env={},
            cwd=_ROOT,
            start_new_session=True,
        )


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


async def _answer_of(process: Process) -> bytes:
    """What it writes until it ends; nothing when that is too much, and then it ends at once."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    raw = bytearray()
    while part := await process.stdout.read(_PART_BYTES):
        raw += part
        if len(raw) > _LONGEST_ANSWER:
            _kill(process)
            return b""
    return bytes(raw)


def _outcome(raw: bytes, status: int | None) -> Answer | Failure:
    if status:
        return _failure(Fault.TOO_LONG if -status in _OUT_OF_TIME else Fault.DIED)
    try:
        answer = Answer.decode(raw)
        return answer if "fault" not in answer.facts else _failure(Fault(answer.facts["fault"]), answer)
    except ValueError:
        return _failure(Fault.DIED)


def _failure(fault: Fault, answer: Answer | None = None) -> Failure:
    said = answer.facts if answer else {}
    sentence, reason = (
        str(said[name])[:_LONGEST_SENTENCE] if name in said else None for name in ("sentence", "reason")
    )
    return Failure(fault, sentence or _SENTENCES[fault], reason)


def _picture_of(answer: Answer) -> Picture:
    made = answer.facts["thumbnails"]
    thumbnails = [
        Thumbnail(int(one["size"]), int(one["width"]), int(one["height"]), content)
        for one, content in zip(made, answer.parts, strict=True)
    ]
    return Picture(int(answer.facts["width"]), int(answer.facts["height"]), thumbnails)


def _text_of(answer: Answer) -> Text:
    (content,) = answer.parts
    return Text(content, int(answer.facts["characters"]), bool(answer.facts["is_truncated"]))


def _read(answer: Answer, read: Callable[[Answer], Result]) -> Result | Failure:
    """The answer in its own type. One that does not fit was written by the file, not by us."""
    try:
        return read(answer)
    except (KeyError, TypeError, ValueError):
        return _failure(Fault.DIED)
