import pytest

from app.core.circuit_breaker import CircuitBreaker, CircuitOpenError


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock=clock)


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with breaker.attempt() as attempt:
            attempt.has_failed()


def succeed(breaker: CircuitBreaker) -> None:
    with breaker.attempt() as attempt:
        attempt.has_succeeded()


def seconds_to_wait(breaker: CircuitBreaker) -> int | None:
    try:
        with breaker.attempt():
            return None
    except CircuitOpenError as error:
        return error.retry_after


class TestCircuitBreaker:
    def test_opens_after_five_failures_in_a_row(self, breaker: CircuitBreaker) -> None:
        fail(breaker, 4)
        assert seconds_to_wait(breaker) is None

        fail(breaker)

        assert seconds_to_wait(breaker) == 15

    def test_forgets_failures_at_a_success(self, breaker: CircuitBreaker) -> None:
        fail(breaker, 4)
        succeed(breaker)
        fail(breaker, 4)

        assert seconds_to_wait(breaker) is None

    def test_lets_one_through_after_a_while(self, breaker: CircuitBreaker, clock: Clock) -> None:
        fail(breaker, 5)
        clock.seconds += 14.5
        assert seconds_to_wait(breaker) == 1
        clock.seconds += 0.5

        with breaker.attempt():
            assert seconds_to_wait(breaker) == 1

    def test_closes_when_that_one_succeeds(self, breaker: CircuitBreaker, clock: Clock) -> None:
        fail(breaker, 5)
        clock.seconds += 15
        succeed(breaker)
        fail(breaker, 4)

        assert seconds_to_wait(breaker) is None

    def test_opens_again_when_that_one_fails(self, breaker: CircuitBreaker, clock: Clock) -> None:
        fail(breaker, 5)
        clock.seconds += 15
        fail(breaker)

        assert seconds_to_wait(breaker) == 15

    def test_lets_all_through_once_that_one_begins_well(self, breaker: CircuitBreaker, clock: Clock) -> None:
        fail(breaker, 5)
        clock.seconds += 15
        with breaker.attempt() as probe:
            probe.has_begun()
            assert seconds_to_wait(breaker) is None
            fail(breaker)

        assert seconds_to_wait(breaker) == 15

    def test_lets_another_through_when_that_one_was_given_up(self, breaker: CircuitBreaker, clock: Clock) -> None:
        fail(breaker, 5)
        clock.seconds += 15
        with pytest.raises(KeyboardInterrupt), breaker.attempt():
            raise KeyboardInterrupt

        with breaker.attempt() as attempt:
            attempt.has_succeeded()

        assert seconds_to_wait(breaker) is None

    def test_says_how_it_stands(self, breaker: CircuitBreaker, clock: Clock) -> None:
        seen = [breaker.state]
        fail(breaker, 5)
        seen.append(breaker.state)
        clock.seconds += 15
        seen.append(breaker.state)
        succeed(breaker)

        assert [*seen, breaker.state] == ["closed", "open", "half_open", "closed"]
