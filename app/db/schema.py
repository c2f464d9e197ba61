"""Which documents there are, and their indexes: made once, by one process at a time."""

import asyncio
import hashlib
from contextlib import suppress
from functools import cache
from typing import Any, Final

from beanie import Document
from bson import json_util
from pymongo.asynchronous.database import AsyncDatabase

from app.core.clock import utc_now
from app.db.lease import Lease, LeaseLostError
from app.models.api_key import ApiKey
from app.models.api_key_usage import ApiKeyQuota, ApiKeyUsage, ApiKeyUsageBatch
from app.models.audit_chain import AuditChain
from app.models.audit_event import AuditEvent
from app.models.conversation import Conversation, DeletedConversation
from app.models.conversation_event import ConversationEvent
from app.models.credit_hold import CreditHold
from app.models.daily_statistics import DailyStatistics
from app.models.deleted_user import DeletedUser
from app.models.idempotency_record import IdempotencyRecord
from app.models.installation import Installation
from app.models.item import Item
from app.models.job import Job
from app.models.login_throttle import LoginThrottle
from app.models.message import Message
from app.models.message_log import MessageLog
from app.models.one_time_token import OneTimeToken
from app.models.outgoing_mail import OutgoingMail
from app.models.session import Session
from app.models.upload import DeletedUpload, Upload
from app.models.usage_counter import UsageCounter, UsageTotal
from app.models.user import User

DOCUMENT_MODELS: Final[list[type[Document]]] = [
    ApiKey,
    ApiKeyQuota,
    ApiKeyUsage,
    ApiKeyUsageBatch,
    AuditChain,
    AuditEvent,
    Conversation,
    ConversationEvent,
    CreditHold,
    DailyStatistics,
    DeletedConversation,
    DeletedUpload,
    DeletedUser,
    IdempotencyRecord,
    Installation,
    Item,
    Job,
    LoginThrottle,
    Message,
    MessageLog,
    OneTimeToken,
    OutgoingMail,
    Session,
    Upload,
    UsageCounter,
    UsageTotal,
    User,
]
_POLL_SECONDS: Final = 0.05


async def has_indexes(database: AsyncDatabase[dict[str, Any]]) -> bool:
    """Whether this version of the indexes was made."""
    state = await database["installation"].find_one({"_id": "indexes"})
    return state is not None and state.get("fingerprint") == _fingerprint()


async def ensure_indexes(database: AsyncDatabase[dict[str, Any]]) -> bool:
    """Make the indexes unless this version of them is there already. True when this call made them.

    One process works under a lease; others wait until it is done, or until its lease has run out.
    """
    while True:
        lease = Lease(database, "indexes")
        while not await lease.take():
            if await has_indexes(database):
                return False
            await asyncio.sleep(_POLL_SECONDS)
        with suppress(LeaseLostError):
            return await lease.run(_make_once(database, lease))


async def make_indexes(database: AsyncDatabase[dict[str, Any]]) -> None:
    """Make what is missing. Making one that is there changes nothing."""
    for model in DOCUMENT_MODELS:
        indexes = [index.document for index in _indexes(model)]
        if indexes:
            await database.command({"createIndexes": _collection(model), "indexes": indexes})


async def _make_once(database: AsyncDatabase[dict[str, Any]], lease: Lease) -> bool:
    if await has_indexes(database):
        return False
    await make_indexes(database)
    await lease.note({"fingerprint": _fingerprint(), "at": utc_now()})
    return True


@cache
def _fingerprint() -> str:
    declared = {_collection(model): [index.document for index in _indexes(model)] for model in DOCUMENT_MODELS}
    return hashlib.sha256(json_util.dumps(declared, sort_keys=True).encode()).hexdigest()


def _collection(model: type[Document]) -> str:
    return str(model.Settings.name)


def _indexes(model: type[Document]) -> list[Any]:
    return list(getattr(model.Settings, "indexes", []))
