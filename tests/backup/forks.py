"""Runs `backup_db.py` in processes that are forked from one in which everything is loaded; killed where a test says.

One order a line on standard input, one report a line on standard output. See `tests/backup/terminal.py`.
"""

import json
import os
import signal
import sys
from typing import Any

from pymongo import monitoring
from pymongo.monitoring import CommandFailedEvent, CommandStartedEvent, CommandSucceededEvent

from app.backup.__main__ import main as run


class Killer(monitoring.CommandListener):
    """Ends this process at the n-th command of a name, before it is sent or once it is answered."""

    def __init__(self, moment: str, command: str, count: int, number: int = signal.SIGKILL) -> None:
        self._moment = moment
        self._command = command
        self._left = count
        self._number = number

    def started(self, event: CommandStartedEvent) -> None:
        self._see("before", event.command_name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self._see("after", event.command_name)

    def failed(self, event: CommandFailedEvent) -> None:
        pass

    def _see(self, moment: str, command: str) -> None:
        if (moment, command) == (self._moment, self._command):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._number)


def obey(order: dict[str, Any]) -> None:
    """Become the command."""
    for number, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.chdir(order["folder"])
    os.environ.update(order["variables"])
    sys.argv = ["backup_db.py", *order["arguments"]]
    if order["kill"] == ["before", "publishing"]:
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)  # noqa: ARG005 - the name is Python's
    elif order["kill"]:
        monitoring.register(Killer(*order["kill"]))
    os._exit(ended())


def ended() -> int:
    """The exit code, as Python would have it; what Python tidies up before it ends takes longer than the command."""
    code = 0
    try:
        run()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)  # noqa: T201 - as Python does
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            obey(json.loads(line))
            return
        _, status, usage = os.wait4(child, 0)
        report = {"code": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * 1024}
        print(json.dumps(report), flush=True)  # noqa: T201 - that is how it tells


if __name__ == "__main__":
    main()
