"""Stored objects with defaults. A test names only what it is about."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import uuid4

from bson import ObjectId
from passlib.context import CryptContext

from app.core import key_format
from app.core.clock import utc_now
from app.core.normalise import name_key
from app.core.principal import Principal
from app.core.scopes import Role
from app.core.tokens import RefreshToken, new_access_token
from app.crud.crud_session import identity_of
from app.models.api_key import ApiKey
from app.models.conversation import Conversation, Participant
from app.models.deleted_user import DeletedUser
from app.models.enums import MessageRole, ParticipantRole, UploadStatus
from app.models.item import Item
from app.models.message import Message
from app.models.message_log import MessageLog
from app.models.session import Session
from app.models.upload import Upload
from app.models.user import User
from app.services.auth_service import hash_key

PASSWORD = "turnip-Lantern-42-orbit"
_context = CryptContext(schemes=["bcrypt_sha256"], bcrypt_sha256__rounds=4)


@cache
def _hashed(password: str) -> str:
    """The same for the same password: thousands of users of the tests have one."""
    return str(_context.hash(password))


@dataclass
class StoredUser:
    document: User
    password: str

    @property
    def id(self) -> ObjectId:
        return self.document.id


@dataclass
class SignedInUser(StoredUser):
    session: Session
    access_token: str
    refresh_token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}


@dataclass
class StoredKey:
    document: ApiKey
    text: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Octopus-API-Key": self.text}


async def make_user(
    *,
    email: str | None = None,
    username: str | None = None,
    password: str = PASSWORD,
    role: Role = Role.USER,
    **more: Any,
) -> StoredUser:
    email = email or f"{uuid4().hex}@example.com"
    username = username or f"u{uuid4().hex[:12]}"
    document = User(
        email=email,
        email_key=name_key(email),
        username=username,
        username_key=name_key(username),
        hashed_password=_hashed(password),
        role=role,
        **more,
    )
    await document.insert()
    return StoredUser(document, password)


async def archive(user: StoredUser, *, days_ago: int = 0, **changes: Any) -> StoredUser:
    """As deleting it leaves it."""
    raw = await User.get_pymongo_collection().find_one_and_delete({"_id": user.id})
    deleted_at = utc_now().replace(microsecond=0) - timedelta(days=days_ago)
    fields = {
        "deleted_at": deleted_at,
        "deleted_by": None,
        "reason": None,
        "purge_at": deleted_at + timedelta(days=30),
        **changes,
    }
    await DeletedUser(id=user.id, user=raw, email_key=user.document.email_key, **fields).insert()
    return user


async def sign_in(user: StoredUser, *, expires_at: datetime | None = None, has_mfa: bool = False) -> SignedInUser:
    session_id = ObjectId()
    refresh = RefreshToken.new(session_id)
    session = Session(
        id=session_id,
        user_id=user.id,
        **identity_of(user.document),
        refresh_digest=refresh.digest,
        last_used_at=utc_now(),
        expires_at=expires_at or utc_now() + timedelta(days=30),
        ip="127.0.0.1",
        user_agent="factory",
        has_mfa=has_mfa,
    )
    await session.insert()
    access_token, _ = new_access_token(
        Principal.of_user(user.id, name=None, role=user.document.role, session_id=session_id)
    )
    return SignedInUser(user.document, user.password, session, access_token, str(refresh))


async def make_signed_in(**properties: Any) -> SignedInUser:
    return await sign_in(await make_user(**properties))


async def make_api_key(*scopes: str, owner: StoredUser | None = None, name: str = "key", **more: Any) -> StoredKey:
    parsed = key_format.new_key()
    document = ApiKey(
        key_id=parsed.key_id,
        key_hash=hash_key(parsed.text),
        name=name,
        scopes=list(scopes or ["admin"]),
        owner_id=owner.id if owner else None,
        **more,
    )
    await document.insert()
    return StoredKey(document, parsed.text)


async def make_conversation(*participants: StoredUser, title: str | None = "Tea", **more: Any) -> Conversation:
    """The first participant owns it."""
    entries = [
        Participant(
            user_id=user.id,
            role=ParticipantRole.MEMBER if at else ParticipantRole.OWNER,
            joined_at=utc_now(),
        )
        for at, user in enumerate(participants)
    ]
    created_by = participants[0].id if participants else None
    document = Conversation(title=title, created_by=created_by, participants=entries, **more)
    await document.insert()
    return document


async def make_item(owner: StoredUser, *, title: str = "Buy tea", **more: Any) -> Item:
    document = Item(owner_id=owner.id, title=title, **more)
    await document.insert()
    return document


async def make_upload(owner: StoredUser | None, *, filename: str = "tea.txt", **more: Any) -> Upload:
    """What is known of a clean one. It has no bytes, and nothing counts it."""
    token = uuid4().hex
    fields = {"content_type": "text/plain", "size": 11, "sha256": 64 * "0", "status": UploadStatus.CLEAN, **more}
    stem = f"{token[:2]}/{token[2:4]}/{token}"
    document = Upload(owner_id=owner.id if owner else None, filename=filename, stem=stem, **fields)
    await document.insert()
    return document


async def make_messages(
    conversation: Conversation, count: int = 1, *, by: StoredUser | None = None, content: str = "Hello"
) -> list[Message]:
    """Messages behind those that are there, counted in with the conversation."""
    entry = next((entry for entry in conversation.participants if by and entry.user_id == by.id), None)
    made = [
        Message(
            conversation_id=conversation.id,
            seq=conversation.last_seq + number,
            version=conversation.version + number,
            block=(conversation.last_seq + number) // 4096,
            nth=entry.sent + number if entry else None,
            user_id=by.id if by else None,
            role=MessageRole.USER,
            content=f"{content} {conversation.last_seq + number}",
        )
        for number in range(1, count + 1)
    ]
    await Message.insert_many(made)
    conversation.last_seq += count
    conversation.message_count += count
    conversation.version += count
    if entry:
        entry.sent += count
    await conversation.save()
    return made


async def make_message_log(user: StoredUser, *, model: str = "gpt", **more: Any) -> MessageLog:
    username = user.document.username or ""
    document = MessageLog(
        **{
            "user_id": user.id,
            "username": username,
            "username_key": name_key(username),
            "model": model,
            "messages": 1,
            "timestamp": utc_now(),
            **more,
        }
    )
    await document.insert()
    return document
