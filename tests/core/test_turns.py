import asyncio

from app.core.turns import Turns


class TestOf:
    async def test_lets_one_in_at_a_time_in_the_order_of_asking(self) -> None:
        turns, seen = Turns(), []

        async def take(number: int) -> None:
            async with turns.of("tea"):
                seen.append(number)
                await asyncio.sleep(0)
                seen.append(number)

        await asyncio.gather(*[take(number) for number in range(3)])

        assert seen == [0, 0, 1, 1, 2, 2]

    async def test_lets_other_keys_in_meanwhile(self) -> None:
        turns = Turns()

        async with turns.of("tea"), asyncio.timeout(0.2), turns.of("coffee"):
            pass

    async def test_makes_nobody_wait_for_long(self) -> None:
        turns = Turns()

        async with turns.of("tea"), asyncio.timeout(5), turns.of("tea"):
            is_in = True

        assert is_in

    async def test_keeps_no_key_that_nobody_uses(self) -> None:
        turns = Turns()

        async with turns.of("tea"):
            assert len(turns._locks) == 1

        assert len(turns._locks) == 0
