"""Message logs: what users exchanged with models elsewhere, told by services once it has happened.

So nothing is refused for want of credits or of messages of the day: it is on record, draws what there is, and ends
where the retention does.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from bson import ObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import ConflictError
from app.core.normalise import name_key
from app.core.principal import Principal
from app.core.tasks import is_cancelled
from app.core.turns import Turns
from app.crud import crud_credit, crud_message_log, crud_usage, crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction
from app.models.message_log import MessageLog
from app.schemas.message_log import MessageLogEntry, MessageLogReport, RejectedEntry, entry_of
from app.services import audit_service
from app.services.credit_service import credits_for

_CLOCKS_APART: Final = timedelta(seconds=5)
_PRUNED_AT_ONCE: Final = 2000

# The calls of one process mostly tell of the same users, and would make each other's transactions start again.
_turns: Final = Turns()


class Pruned(NamedTuple):
    pruned: int


class _Use(NamedTuple):
    """What the logs of one call add up to."""

    tokens: dict[tuple[ObjectId, str], int]  # by user and day
    credits: dict[ObjectId, int]


async def store(entries: Sequence[Any], *, by: Principal) -> MessageLogReport:
    """Store what is good of the entries, all of that or nothing, and say what is wrong with the others."""
    now = utc_now()
    read = [entry_of(entry) for entry in entries]
    users = await crud_user.named({name_key(entry.username) for entry in read if isinstance(entry, MessageLogEntry)})
    outcomes = [_log_of(entry, users, now) for entry in read]
    logs = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    rejected = [RejectedEntry(index=at, reason=why) for at, why in enumerate(outcomes) if isinstance(why, str)]
    if logs:
        use = _use_of(logs)
        await crud_usage.open_days(use.tokens)
        async with _turns.of("message logs"):
            await _store(logs, use, rejected=len(rejected), by=by)
    return MessageLogReport(accepted=len(logs), rejected=rejected)


async def prune() -> Pruned:
    """Remove the logs that are past the retention, batch by batch: how many."""
    days, count = get_settings().message_log_retention_days, 0
    before = utc_now() - timedelta(days=days)
    while days and not is_cancelled():  # the driver may swallow the cancellation
        removed = await crud_message_log.remove_some_before(before, limit=_PRUNED_AT_ONCE)
        if not removed:
            break
        count += removed
    return Pruned(count)


@transactional
async def _store(logs: Sequence[MessageLog], use: _Use, *, rejected: int, by: Principal) -> None:
    """The logs and all that they draw on, or nothing."""
    if await crud_user.existing(use.credits.keys()) != use.credits.keys():
        raise ConflictError("A user was deleted meanwhile, and nothing is stored. Try again.")
    await crud_credit.draw_from_many(use.credits)
    await crud_usage.count_tokens(use.tokens)
    await MessageLog.insert_many(logs)
    await audit_service.record(
        AuditAction.MESSAGE_LOGS_STORED,
        by=by,
        target=("message_logs", None),
        accepted=len(logs),
        rejected=rejected,
        users=len(use.credits),
        tokens=sum(use.tokens.values()),
    )


def _log_of(entry: MessageLogEntry | str, users: Mapping[str, tuple[ObjectId, str]], now: datetime) -> MessageLog | str:
    """What is stored, or why it is not."""
    if isinstance(entry, str):
        return entry
    days = get_settings().message_log_retention_days
    timestamp = entry.timestamp or now
    if timestamp > now + _CLOCKS_APART:
        return "timestamp: must not be in the future"
    if days and timestamp < now - timedelta(days=days):
        return f"timestamp: must not be older than the {days} days for which logs are kept"
    key = name_key(entry.username)
    if key not in users:
        return "username: there is no such user"
    user_id, username = users[key]
    return MessageLog(
        created_at=now,
        user_id=user_id,
        username=username,
        username_key=key,
        model=entry.model,
        messages=entry.messages,
        tokens=entry.tokens,
        timestamp=timestamp,
    )


def _use_of(logs: Sequence[MessageLog]) -> _Use:
    """Unknown tokens count as none. What a user's logs draw is rounded up once, not log by log."""
    of_days: Counter[tuple[ObjectId, str]] = Counter()
    of_users: Counter[ObjectId] = Counter()
    for log in logs:
        tokens = log.tokens or 0
        of_users[log.user_id] += tokens
        if tokens:
            of_days[log.user_id, crud_usage.day_of(log.timestamp)] += tokens
    return _Use(dict(of_days), {user_id: credits_for(tokens) for user_id, tokens in of_users.items()})
