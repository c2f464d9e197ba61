import pytest

from app.core.plans import LIMITS_OF_PLAN, Limits, Plan, limits_of


class TestLimitsOf:
    @pytest.mark.parametrize(
        ("plan", "expected"),
        [
            (Plan.FREE, (500, 200, 1_073_741_824, None)),
            (Plan.PRO, (10_000, 10_000, 107_374_182_400, 3_000)),
            (Plan.ENTERPRISE, (None, None, None, 10_000)),
        ],
    )
    def test_are_those_of_the_plan(self, plan: Plan, expected: tuple[int | None, ...]) -> None:
        assert tuple(limits_of(plan, {})) == expected

    def test_give_way_to_what_is_set_for_an_account(self) -> None:
        assert limits_of(Plan.FREE, {"daily_messages": 0, "storage_bytes": None}) == Limits(0, 200, None, None)

    def test_leave_the_plan_as_it_is(self) -> None:
        limits_of(Plan.FREE, {"daily_messages": 1})

        assert limits_of(Plan.FREE, {}).daily_messages == 500

    def test_exist_for_every_plan(self) -> None:
        assert LIMITS_OF_PLAN.keys() == set(Plan)


class TestRate:
    @pytest.mark.parametrize(("per_minute", "rate"), [(None, None), (3_000, "3000/minute")])
    def test_is_by_the_minute(self, per_minute: int | None, rate: str | None) -> None:
        assert Limits(None, None, None, per_minute).rate == rate
