"""Conversations: what each participant may do. What one may not see does not exist."""

import asyncio
from typing import Any, NamedTuple

from bson import ObjectId

from app.core import background
from app.core.clock import utc_now
from app.core.exceptions import (
    AppError,
    ConflictError,
    ForbiddenError,
    PreconditionFailedError,
)
from app.core.logging_config import get_logger
from app.core.plans import Limits
from app.core.principal import Principal
from app.core.scopes import Scope
from app.core.turns import Turns
from app.crud import crud_conversation, crud_conversation_event, crud_message, crud_usage, crud_user
from app.db.mongo import after_commit, transactional
from app.models.conversation import Conversation, Participant
from app.models.enums import AuditAction, ConversationEventType, ParticipantRole
from app.schemas.conversation import (
    ConversationCreate,
    ConversationUpdate,
    detail_of,
    participant_of,
)
from app.schemas.message import messages_of
from app.services import audit_service, participant_service, upload_removal_service, usage_service

MESSAGES_SHOWN = 100
_PURGE_PAUSES = (1, 5, 30, 120, 600)
_log = get_logger(__name__)
# By user: conversations that one user opens at the same time count in the same document.
_turns = Turns()


class Detail(NamedTuple):
    """A conversation as it goes out, and the version of it."""

    version: int
    content: dict[str, Any]


async def create(body: ConversationCreate, *, by: Principal) -> ObjectId:
    """Open a conversation. Who opens it owns it; opened by a service, the first participant does.

    It counts against the plan of the user that opens it for as long as it is there.
    """
    if by.user_id is None:
        return await _create(body, limits=None, by=by)
    limits = await usage_service.limits_of_user(by.user_id)
    async with _turns.of(by.user_id):
        await crud_usage.open_totals(by.user_id)
        return await _create(body, limits=limits, by=by)


@transactional
async def _create(body: ConversationCreate, *, limits: Limits | None, by: Principal) -> ObjectId:
    members = [by.user_id] if by.user_id else []
    members += [user_id for user_id in dict.fromkeys(body.participant_ids) if user_id != by.user_id]
    await participant_service.require_users(
        {("participant_ids", at): user_id for at, user_id in enumerate(body.participant_ids)}
    )
    conversation = Conversation(
        title=body.title,
        created_by=by.user_id,
        participants=[_entry(user_id, is_owner=at == 0) for at, user_id in enumerate(members)],
    )
    if by.user_id is not None and limits is not None:
        await usage_service.spend_conversation(by.user_id, limits)
    await conversation.insert()
    await audit_service.record(AuditAction.CONVERSATION_CREATED, by=by, target=("conversation", conversation.id))
    return conversation.id


async def read(conversation_id: ObjectId, *, by: Principal) -> Detail:
    """The conversation with its participants and its latest messages.

    Who may only write is shown what it has written to, without the messages: `write` does not imply `read`.
    """
    may_read = Scope.CONVERSATIONS_READ in by.scopes
    scope = Scope.CONVERSATIONS_READ if may_read else Scope.CONVERSATIONS_WRITE
    conversation = await crud_conversation.find(conversation_id, user_id=by.owner_filter(scope))
    if conversation is None:
        raise participant_service.absent()
    has_messages = may_read and conversation["last_seq"] > 0
    messages = await crud_message.latest(conversation_id, limit=MESSAGES_SHOWN) if has_messages else []
    entries = conversation["participants"]
    people = {entry["user_id"] for entry in entries} | {message["user_id"] for message in messages} - {None}
    cards = await crud_user.cards_of(people)
    usernames = {user_id: card.username for user_id, card in cards.items()}
    content = detail_of(
        conversation,
        participants=[_participant(entry, cards.get(entry["user_id"])) for entry in entries],
        messages=messages_of(messages, usernames),
        reader_id=by.user_id,
    )
    return Detail(conversation["version"], content)


async def require_listable(user_id: ObjectId, *, by: Principal) -> None:
    """Whose conversations may be listed: one's own, or with the right to, anybody's."""
    if user_id == by.user_id:
        return
    await crud_user.require(user_id)
    if not by.reaches_all(Scope.CONVERSATIONS_READ):
        raise ForbiddenError("These are another user's conversations.")


@transactional
async def update(
    conversation_id: ObjectId, body: ConversationUpdate, *, versions: frozenset[int] | None, by: Principal
) -> None:
    changes = body.model_dump(exclude_unset=True)
    version = await crud_conversation.change(conversation_id, changes, owner_id=_owner(by), versions=versions)
    if version is None:
        raise await _why_unchanged(conversation_id, versions, by=by)
    await crud_conversation_event.add(conversation_id, version, ConversationEventType.CONVERSATION_UPDATED, changes)
    await audit_service.record(
        AuditAction.CONVERSATION_UPDATED,
        by=by,
        target=("conversation", conversation_id),
        fields=sorted(changes),
    )


@transactional
async def delete(conversation_id: ObjectId, *, versions: frozenset[int] | None, by: Principal) -> None:
    """Delete a conversation and all its messages.

    It is gone at once and as a whole. Its messages, out of everybody's reach from then on, are removed in the
    background, and by the next start when the process ends before that.
    """
    removed = await crud_conversation.remove(conversation_id, owner_id=_owner(by), versions=versions)
    if removed is None:
        raise await _why_unchanged(conversation_id, versions, by=by)
    if removed["created_by"] is not None:
        await crud_usage.give_back_conversation(removed["created_by"])
    await participant_service.tell_of_end(conversation_id, removed["version"])
    await audit_service.record(AuditAction.CONVERSATION_DELETED, by=by, target=("conversation", conversation_id))
    after_commit(lambda: background.start(_purge(conversation_id), name="purge_messages"))


async def finish_deletions() -> None:
    """Remove the messages of deleted conversations that an ended process left."""
    for conversation_id in await crud_conversation.deleted_ids():
        background.start(_purge(conversation_id), name="purge_messages")


async def _purge(conversation_id: ObjectId) -> None:
    """Try until it is done: the database may be away for a while."""
    for seconds in _PURGE_PAUSES:
        if await _remove_uploads(conversation_id) and await crud_message.purge(conversation_id):
            return
        await asyncio.sleep(seconds)


async def _remove_uploads(conversation_id: ObjectId) -> bool:
    """Those that were made for it. False when the database went away before the end."""
    try:
        await upload_removal_service.remove_of_conversation(conversation_id)
    except Exception as error:  # noqa: BLE001 - the database is away: it is tried again
        _log.warning("uploads_of_conversation_left", error=type(error).__name__)
        return False
    return True


async def _why_unchanged(conversation_id: ObjectId, versions: frozenset[int] | None, *, by: Principal) -> AppError:
    conversation = await crud_conversation.find(conversation_id, user_id=by.owner_filter(Scope.CONVERSATIONS_WRITE))
    if conversation is None:
        return participant_service.absent()
    if not participant_service.is_owner(conversation, by):
        return ForbiddenError("Only an owner of the conversation may do that.")
    if versions is not None and conversation["version"] not in versions:
        return PreconditionFailedError()
    return ConflictError("The conversation was changed by somebody else meanwhile. Try again.")


def _owner(by: Principal) -> ObjectId | None:
    return by.owner_filter(Scope.CONVERSATIONS_WRITE)


def _entry(user_id: Any, *, is_owner: bool) -> Participant:
    role = ParticipantRole.OWNER if is_owner else ParticipantRole.MEMBER
    return Participant(user_id=user_id, role=role, joined_at=utc_now())


def _participant(entry: dict[str, Any], card: crud_user.Card | None) -> dict[str, Any]:
    return participant_of(entry, username=card and card.username, email=card and card.email)
