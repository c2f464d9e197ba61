"""Whether those who follow a conversation may still do so, whatever has become of their credentials since."""

import asyncio
import time
from typing import Final

from bson import ObjectId

from app.core.logging_config import get_logger
from app.core.principal import Principal
from app.core.scopes import Scope
from app.core.tasks import is_cancelled
from app.crud import crud_conversation
from app.services import auth_service
from app.services.event_subscription import Subscription

_RETRY_SECONDS: Final = 1.0

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
    """A credential is looked up once, however many streams it has."""
    renewed: dict[tuple[object, ...], Principal | None] = {}
    for subscription in suspects:
        by, ip = subscription.by, subscription.ip
        if subscription.is_over:
            continue
        credential = (by.credential_id, by.token_expires_at, ip)
        if credential not in renewed:
            renewed[credential] = await auth_service.renewed(by, ip=ip)
        present = renewed[credential]
        if present is None or not await _may_read(subscription, present):
            subscription.end()
        else:
            subscription.by = present
        subscription.checked_at = time.monotonic()


async def _may_read(subscription: Subscription, by: Principal) -> bool:
    if Scope.CONVERSATIONS_READ not in by.scopes:
        return False
    participant_id = by.owner_filter(Scope.CONVERSATIONS_READ)
    subscription.participant_id = participant_id
    return await crud_conversation.exists(subscription.conversation_id, user_id=participant_id)


def _tags(subscription: Subscription) -> set[ObjectId]:
    by = subscription.by
    return {tag for tag in (by.credential_id, by.user_id) if tag is not None}
