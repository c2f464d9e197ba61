"""`python -m app` in a process in which its modules are loaded already: to load them takes longer than most tests do.

They are forked from a server of multiprocessing, which has loaded the modules and done nothing else, so nothing of the
tests is in them. One worker only: several are begun anew by uvicorn, as by the command itself.
"""

import atexit
import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_LOADED: Final = ["app.__main__", "app.main", "tests.forking"]


class ForkedService:
    """Its output goes to the log. Used as a `subprocess.Popen`; it leads a group of processes."""

    def __init__(
        self, program: str, options: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        _CONTEXT.set_forkserver_preload(_LOADED)
        with _without_coverage():
            forkserver.ensure_running()
        begun, says_so = _CONTEXT.Pipe(duplex=False)
        given = (program, list(options), dict(environment), str(folder), str(log), says_so)
        self._process = _CONTEXT.Process(target=_serve, args=given)
        self._process.start()
        says_so.close()
        begun.recv()
        begun.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("python -m app", timeout or 0)
        return self._process.exitcode


@contextmanager
def _without_coverage() -> Iterator[None]:
    """Whoever begins here says for itself whether it is measured."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("COVERAGE_")}
    try:
        yield
    finally:
        os.environ.update(taken)


def _serve(
    program: str, options: list[str], environment: dict[str, str], folder: str, log: str, says_so: Connection
) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if any(name.startswith("COVERAGE_") for name in environment):
        import coverage  # noqa: PLC0415 - as at the start of an interpreter

        coverage.process_startup()
    sys.argv = ["app", *options]
    says_so.send(None)
    says_so.close()
    try:
        importlib.import_module(program).main()  # in this process: tests load nothing of it
    finally:
        atexit._run_exitfuncs()  # the end of a process of multiprocessing leaves them out
