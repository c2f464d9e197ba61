"""Credits: held before something that costs an unknown amount begins, settled when its cost is known.

A hold is taken from the balance at once, and a document says so. Removing that document is what decides who gives
back, so nothing is given back twice, and nothing is lost when a process dies: a job does it later.
"""

from datetime import timedelta
from typing import Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.core.context import provisionally
from app.core.exceptions import CreditsExhaustedError, RepliesUnderWayError
from app.core.turns import Turns
from app.crud import crud_credit
from app.db.mongo import transactional
from app.models.credit_hold import CreditHold

TOKENS_PER_CREDIT: Final = 1000
MOST_HOLDS: Final = 3
_BATCH: Final = 200
_RETRY_SECONDS: Final = 5

# By user: of the holds that one user asks for at once, all change the same document.
_turns = Turns()


class GivenBack(NamedTuple):
    given_back: int


def credits_for(tokens: int) -> int:
    """What so many tokens cost: a credit for every thousand that is begun."""
    return -(-tokens // TOKENS_PER_CREDIT)


async def hold(user_id: ObjectId, *, tokens: int, life: timedelta) -> CreditHold:
    """Take what so many tokens cost from the account until it is settled or given back, `life` later at the latest."""
    async with _turns.of(user_id):
        with provisionally():
            return await _hold(user_id, credits_for(tokens), life)


@transactional
async def _hold(user_id: ObjectId, amount: int, life: timedelta) -> CreditHold:
    if not await crud_credit.draw(user_id, amount):
        raise CreditsExhaustedError(f"This may cost {amount} credits, and the account has fewer.")
    # Others of the user that draw at the same time are run again, so none is overlooked.
    if await crud_credit.count_holds(user_id, limit=MOST_HOLDS) >= MOST_HOLDS:
        raise RepliesUnderWayError(retry_after=_RETRY_SECONDS)
    return await CreditHold(user_id=user_id, amount=amount, expires_at=utc_now() + life).insert()


async def settle(held: CreditHold, *, tokens: int) -> None:
    """Let the account pay what it was, and give back the rest of the hold. Inside of a transaction.

    Whatever it was, the balance does not fall below zero: nobody owes anything.
    """
    taken = await crud_credit.take_hold(held.id)
    change = (taken.amount if taken else 0) - credits_for(tokens)
    if change:
        await crud_credit.give(held.user_id, change)


@transactional
async def give_back(hold_id: ObjectId) -> bool:
    """Give back all of a hold. False when it was settled or given back before."""
    taken = await crud_credit.take_hold(hold_id)
    if taken is not None:
        await crud_credit.give(taken.user_id, taken.amount)
    return taken is not None


async def give_back_expired() -> GivenBack:
    """Give back the holds of processes that died before they did."""
    count = 0
    while hold_ids := await crud_credit.expired_holds(utc_now(), limit=_BATCH):
        for hold_id in hold_ids:
            count += await give_back(hold_id)
    return GivenBack(count)
