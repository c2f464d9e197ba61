"""A server of another make that a test starts, stops and freezes."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import ClassVar


class ServerProcess:
    """A server on a port of its own that it keeps, however often it is started."""

    NAME: ClassVar[str]
    command: Sequence[str]  # given before the first start

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def start(self) -> None:
        """Start it over what it left, and wait until it answers."""
        self.process = subprocess.Popen(  # noqa: S603 - a program that was found, and arguments of ours
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        give_up_at = time.monotonic() + 30
        while not self.answers():
            assert self.process.poll() is None, f"The {self.NAME} of the test has ended."
            assert time.monotonic() < give_up_at, f"The {self.NAME} of the test did not start."
            time.sleep(0.02)  # nothing tells of it

    def answers(self) -> bool:
        raise NotImplementedError

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Let it accept connections and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)  # until then some of its threads may go on

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)
