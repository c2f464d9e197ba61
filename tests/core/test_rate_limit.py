import pytest

from app.core.rate_limit import MemoryRateLimiter, is_at_most, is_rate


class Clock:
    now = 6000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> MemoryRateLimiter:
    return MemoryRateLimiter(clock)


class TestHit:
    def test_counts_down_to_the_limit(self, limiter: MemoryRateLimiter) -> None:
        budgets = [limiter.hit("3/minute", "login", "192.0.2.1") for _ in range(5)]

        assert [budget.remaining for budget in budgets] == [2, 1, 0, 0, 0]
        assert [budget.is_exceeded for budget in budgets] == [False, False, False, True, True]
        assert {budget.limit for budget in budgets} == {3}

    @pytest.mark.parametrize(
        ("rate", "ends_at"), [("1/second", 6002), ("1/minute", 6060), ("1/hour", 7200), ("1 per 5 minutes", 6300)]
    )
    def test_lasts_until_its_window_ends(
        self, limiter: MemoryRateLimiter, clock: Clock, rate: str, ends_at: int
    ) -> None:
        clock.now = 6001.5
        assert limiter.hit(rate, "login", "a").resets_at == ends_at

        clock.now = ends_at - 0.01
        assert limiter.hit(rate, "login", "a").is_exceeded

        clock.now = ends_at
        assert not limiter.hit(rate, "login", "a").is_exceeded

    @pytest.mark.parametrize("hours", [1, -1])
    def test_begins_a_window_of_its_length_when_the_clock_jumps(
        self, limiter: MemoryRateLimiter, clock: Clock, hours: int
    ) -> None:
        assert not limiter.hit("1/minute", "login", "a").is_exceeded
        assert limiter.hit("1/minute", "login", "a").is_exceeded

        clock.now += hours * 3600

        assert not limiter.hit("1/minute", "login", "a").is_exceeded
        assert limiter.hit("1/minute", "login", "a").seconds_left == 60

    def test_has_no_fresh_budget_when_only_the_number_changes(self, limiter: MemoryRateLimiter) -> None:
        for _ in range(3):
            limiter.hit("2/minute", "login", "a")

        assert limiter.hit("3/minute", "login", "a").is_exceeded

    @pytest.mark.parametrize("text", ["0/minute", "10 per 5 seconds", "1/month", "1/minute;2/hour", "often", ""])
    def test_is_no_rate(self, text: str) -> None:
        assert not is_rate(text)

    @pytest.mark.parametrize("other", [("1/minute", "login", "b"), ("1/minute", "keys", "a"), ("1/hour", "login", "a")])
    def test_has_a_budget_for_each_rate_purpose_and_caller(
        self, limiter: MemoryRateLimiter, other: tuple[str, str, str]
    ) -> None:
        limiter.hit("1/minute", "login", "a")
        limiter.hit("1/minute", "login", "a")

        assert not limiter.hit(*other).is_exceeded

    def test_forgets_callers_whose_window_has_ended(self, limiter: MemoryRateLimiter, clock: Clock) -> None:
        for number in range(1000):
            limiter.hit("1/minute", "login", str(number))
        clock.now += 60

        limiter.hit("1/minute", "login", "new")

        assert [len(counts) for _, counts in limiter._windows.values()] == [1]


class TestIsAtMost:
    @pytest.mark.parametrize(
        ("rate", "other"),
        [("60/minute", "60/minute"), ("1/second", "60/minute"), ("60/minute", "1/second"), ("5/day", "1/second")],
    )
    def test_compares_what_is_allowed_per_second(self, rate: str, other: str) -> None:
        assert is_at_most(rate, other)

    @pytest.mark.parametrize(
        ("rate", "other"), [("61/minute", "1/second"), ("2/second", "60/minute"), ("86401/day", "1/second")]
    )
    def test_is_false_of_one_more(self, rate: str, other: str) -> None:
        assert not is_at_most(rate, other)


class TestSecondsLeft:
    @pytest.mark.parametrize(("now", "seconds"), [(6000.0, 60), (6000.1, 60), (6058.9, 2), (6059.99, 1)])
    def test_is_whole_and_at_least_one(
        self, limiter: MemoryRateLimiter, clock: Clock, now: float, seconds: int
    ) -> None:
        clock.now = now

        assert limiter.hit("1/minute", "login", "a").seconds_left == seconds


class TestSpend:
    async def test_tells_of_the_one_with_the_least_left(self, limiter: MemoryRateLimiter) -> None:
        common, own = ("3/minute", "authenticated", "a"), ("5/hour", "key's own", "a")

        budgets = [await limiter.spend(common, own) for _ in range(4)]
        reverse = await limiter.spend(own, common)

        assert [(budget.limit, budget.remaining) for budget in budgets] == [(3, 2), (3, 1), (3, 0), (3, 0)]
        assert (reverse.limit, reverse.is_exceeded) == (3, True)

    async def test_tells_of_the_one_that_refused(self, limiter: MemoryRateLimiter) -> None:
        one, other = ("1/minute", "authenticated", "a"), ("2/hour", "key's own", "a")
        limiter.hit(*other)
        limiter.hit(*other)

        budget = await limiter.spend(one, other)

        assert (budget.limit, budget.is_exceeded, budget.resets_at) == (2, True, 7200)

    async def test_says_for_what_the_one_is_that_refused(self, limiter: MemoryRateLimiter, clock: Clock) -> None:
        common, own = ("2/minute", "authenticated", "a"), ("2/hour", "key's own", "a")

        refused = [[await limiter.spend(common, own) for _ in range(3)][-1]]
        clock.now += 60
        refused.append(await limiter.spend(common, own))

        assert [(budget.purpose, budget.is_exceeded) for budget in refused] == [
            ("authenticated", True),
            ("key's own", True),
        ]

    async def test_tells_of_the_one_that_lasts_longest_when_as_much_is_left(self, limiter: MemoryRateLimiter) -> None:
        budgets = [
            await limiter.spend(*charges)
            for charges in (
                [("2/minute", "authenticated", "a"), ("2/hour", "key's own", "a")],
                [("2/hour", "authenticated", "b"), ("2/minute", "key's own", "b")],
            )
        ]

        assert [budget.resets_at for budget in budgets] == [7200, 7200]
