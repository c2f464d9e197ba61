"""How far it is: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

_LINES: Final = 10


class Step:
    def __init__(self, show: Callable[[int], None]) -> None:
        self._show = show
        self._at = 0

    def reach(self, position: int) -> None:
        self._at = position
        self._show(position)

    def advance(self, size: int) -> None:
        self.reach(self._at + size)


class Progress:
    """Tells it on standard error, so that standard output has the results alone."""

    @contextmanager
    def step(self, name: str, total: int | None) -> Iterator[Step]:
        """`total` is about how much there is, in bytes."""
        if not sys.stderr.isatty():
            show = _in_lines(name, total)
            yield Step(show)
            show(total or 0)
            return
        columns = (TextColumn("{task.description:>12}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
            bar = bars.add_task(name, total=total)
            yield Step(lambda position: bars.update(bar, completed=position))
            bars.update(bar, total=total or 1, completed=total or 1)


def _in_lines(name: str, total: int | None) -> Callable[[int], None]:
    said = -1

    def show(position: int) -> None:
        nonlocal said
        tenth = min(_LINES, position * _LINES // total) if total else 0
        if tenth > said:
            said = tenth
            print(f"{name}: {tenth * 100 // _LINES} %", file=sys.stderr, flush=True)  # noqa: T201 - it is for the terminal

    show(0)
    return show
