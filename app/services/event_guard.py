"""Whether those who follow a conversation may still do so, whatever has become of their credentials since."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from bson import ObjectId

from app.core.logging_config import get_logger
from app.core.principal import Principal
from app.core.scopes import Scope
from app.core.tasks import end_if_cancelled, is_cancelled
from app.crud import crud_conversation
from app.services import auth_service
from app.services.event_subscription import Subscription

_RETRY_SECONDS: Final = 1.0
_AT_ONCE: Final = 8

_log = get_logger(__name__)


class Watch:
    """Subscriptions by what their right to read depends on: the credential, and the account."""

    def __init__(self) -> None:
        self._of_tag: dict[ObjectId, set[Subscription]] = {}
        self._suspects: set[Subscription] = set()
        self._has_suspects = asyncio.Event()

    def add(self, subscription: Subscription) -> None:
        """Look at it once more: what has changed since it was let in was told before anybody watched for it."""
        for tag in _tags(subscription):
            self._of_tag.setdefault(tag, set()).add(subscription)
        self.suspect_one(subscription)

    def remove(self, subscription: Subscription) -> None:
        self._suspects.discard(subscription)
        for tag in _tags(subscription):
            watched = self._of_tag.get(tag, set())
            watched.discard(subscription)
            if not watched:
                self._of_tag.pop(tag, None)

    def suspect(self, tag: ObjectId | None) -> None:
        """Have those looked at that depend on the document, which has changed; on any, when it is not known which."""
        found = self._of_tag.get(tag, ()) if tag else [each for some in self._of_tag.values() for each in some]
        if found:
            self._suspects.update(found)
            self._has_suspects.set()

    def suspect_one(self, subscription: Subscription) -> None:
        self._suspects.add(subscription)
        self._has_suspects.set()

    async def check_forever(self) -> None:
        """End whoever may read no more."""
        while not is_cancelled():
            await self._has_suspects.wait()
            self._has_suspects.clear()
            suspects, self._suspects = self._suspects, set()
            try:
                await _check(suspects)
            except Exception as error:  # noqa: BLE001 - nothing is told of while the database is away, so it can wait
                _log.warning("event_streams_not_checked", streams=len(suspects), exc_info=error)
                self._suspects |= {each for each in suspects if not each.is_over}
                self._has_suspects.set()
                if not is_cancelled():
                    await asyncio.sleep(_RETRY_SECONDS)


async def _check(suspects: set[Subscription]) -> None:
    """A few at once. A credential is looked up once, however many streams it has."""
    present: dict[tuple[object, ...], Principal | None] = {}

    async def renew(subscription: Subscription) -> None:
        present[_credential(subscription)] = await auth_service.renewed(subscription.by, ip=subscription.ip)

    async def judge(subscription: Subscription) -> None:
        by = present[_credential(subscription)]
        if by is None or not await _may_read(subscription, by):
            subscription.end()
        else:
            subscription.by = by
        subscription.checked_at = time.monotonic()

    streams = [each for each in suspects if not each.is_over]
    await _few_at_once(renew, list({_credential(each): each for each in streams}.values()))
    await _few_at_once(judge, streams)


async def _few_at_once(work: Callable[[Subscription], Awaitable[None]], streams: Sequence[Subscription]) -> None:
    waiting = iter(streams)

    async def some() -> None:
        for each in waiting:
            await work(each)
            end_if_cancelled()

    ends = await asyncio.gather(*[some() for _ in streams[:_AT_ONCE]], return_exceptions=True)
    for error in filter(None, ends):
        raise error


def _credential(subscription: Subscription) -> tuple[object, ...]:
    """What all that is looked up of a caller depends on. Each token of a session has its own end."""
    return subscription.by.credential_id, subscription.by.token_expires_at, subscription.ip


async def _may_read(subscription: Subscription, by: Principal) -> bool:
    if Scope.CONVERSATIONS_READ not in by.scopes:
        return False
    participant_id = by.owner_filter(Scope.CONVERSATIONS_READ)
    subscription.participant_id = participant_id
    return await crud_conversation.exists(subscription.conversation_id, user_id=participant_id)


def _tags(subscription: Subscription) -> set[ObjectId]:
    by = subscription.by
    return {tag for tag in (by.credential_id, by.user_id) if tag is not None}
