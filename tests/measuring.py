"""Keeps what repeats from being traced for the coverage: that doubles the cost of a line, which counts once.

What is not traced is not counted, so this can only make the figures smaller than they are.
"""

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_times: Counter[str] = Counter()


@contextmanager
def measured(what: str, *, times: int) -> Iterator[None]:
    """Trace what is inside as long as it is among the first of that name in this process."""
    _times[what] += 1
    trace, of_new_threads = sys.gettrace(), threading.gettrace()
    if _times[what] <= times or not type(trace).__module__.startswith("coverage"):
        yield
        return
    sys.settrace(None)
    threading.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)
        threading.settrace(of_new_threads)


def process_environment(what: str, *, times: int) -> dict[str, str]:
    """The environment for a process that is measured as long as it is among the first of that name."""
    _times[what] += 1
    is_measured = _times[what] <= times
    return {name: value for name, value in os.environ.items() if is_measured or not name.startswith("COVERAGE_")}
