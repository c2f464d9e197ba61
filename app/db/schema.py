"""Which documents there are, and their indexes: made once, by one process at a time."""

import asyncio
import hashlib
from datetime import timedelta
from typing import Any, Final

from beanie import Document
from bson import ObjectId, json_util
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError

from app.core.clock import utc_now
from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from app.models.conversation import Conversation, DeletedConversation
from app.models.deleted_user import DeletedUser
from app.models.installation import Installation
from app.models.message import Message
from app.models.session import Session
from app.models.user import User

DOCUMENT_MODELS: Final[list[type[Document]]] = [
    ApiKey,
    AuditEvent,
    Conversation,
    DeletedConversation,
    DeletedUser,
    Installation,
    Message,
    Session,
    User,
]
_LEASE: Final = timedelta(seconds=60)
_POLL_SECONDS: Final = 0.05


async def ensure_indexes(database: AsyncDatabase[dict[str, Any]]) -> bool:
    """Make the indexes unless this version of them is there already. True when this call made them.

    One process works under a lease; others wait until it is done, or until its lease has run out.
    """
    fingerprint = _fingerprint()
    installation = database["installation"]
    while True:
        state = await installation.find_one({"_id": "indexes"}) or {}
        if state.get("fingerprint") == fingerprint:
            return False
        holder = ObjectId()
        if await _acquire(database, holder):
            break
        await asyncio.sleep(_POLL_SECONDS)
    for model in DOCUMENT_MODELS:
        # Named even when it has no index of its own: a collection must exist before a transaction writes to it.
        indexes = [index.document for index in _indexes(model)]
        if indexes:
            await database.command({"createIndexes": _collection(model), "indexes": indexes})
    await installation.update_one(
        {"_id": "indexes", "holder": holder},
        {"$set": {"fingerprint": fingerprint, "at": utc_now()}, "$unset": {"holder": "", "until": ""}},
    )
    return True


async def _acquire(database: AsyncDatabase[dict[str, Any]], holder: ObjectId) -> bool:
    now = utc_now()
    free = {"$or": [{"until": {"$exists": False}}, {"until": {"$lt": now}}]}
    try:
        await database["installation"].update_one(
            {"_id": "indexes", **free}, {"$set": {"holder": holder, "until": now + _LEASE}}, upsert=True
        )
    except DuplicateKeyError:  # it exists and is held
        return False
    return True


def _fingerprint() -> str:
    declared = {_collection(model): [index.document for index in _indexes(model)] for model in DOCUMENT_MODELS}
    return hashlib.sha256(json_util.dumps(declared, sort_keys=True).encode()).hexdigest()


def _collection(model: type[Document]) -> str:
    return str(model.Settings.name)


def _indexes(model: type[Document]) -> list[Any]:
    return list(getattr(model.Settings, "indexes", []))
