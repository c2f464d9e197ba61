"""Sparing a service that does not answer, and those who would wait for it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

FAILURES_TO_OPEN: Final = 5
OPEN_SECONDS: Final = 15.0


class CircuitOpenError(Exception):
    """Nobody is let through now. `retry_after` is in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the circuit is open")
        self.retry_after = retry_after


class CircuitBreaker:
    """Opens after so many failures in a row. After a while it lets one attempt through, which decides."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probe: Attempt | None = None

    @property
    def is_open(self) -> bool:
        """Also while one attempt is let through that is to decide."""
        return self._opened_at is not None

    @contextmanager
    def attempt(self) -> Iterator["Attempt"]:
        """One attempt. One that is given up before it has come out either way says nothing."""
        attempt = Attempt(self)
        self._enter(attempt)
        try:
            yield attempt
        finally:
            if self._probe is attempt:
                self._probe = None

    def note_beginning(self, attempt: "Attempt") -> None:
        if self._probe is attempt:
            self._probe = None
            self._close(FAILURES_TO_OPEN - 1)

    def note_success(self) -> None:
        self._close(0)

    def note_failure(self, attempt: "Attempt") -> None:
        self._failures += 1
        if self._probe is attempt or self._failures >= FAILURES_TO_OPEN:
            self._opened_at = self._clock()

    def _enter(self, attempt: "Attempt") -> None:
        if self._opened_at is None:
            return
        rest = self._opened_at + OPEN_SECONDS - self._clock()
        if rest > 0 or self._probe is not None:
            raise CircuitOpenError(max(1, math.ceil(rest)))
        self._probe = attempt

    def _close(self, failures: int) -> None:
        self._opened_at, self._failures = None, failures


class Attempt:
    """What becomes of one attempt."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    def has_begun(self) -> None:
        """An answer has begun to come. Others need not wait for its end, but another failure is one too many."""
        self._breaker.note_beginning(self)

    def has_succeeded(self) -> None:
        self._breaker.note_success()

    def has_failed(self) -> None:
        self._breaker.note_failure(self)
