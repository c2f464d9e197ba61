"""Asks for everything in the table of permissions as everybody in it, with a body that would be accepted."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from string import Formatter
from typing import Any, Final
from uuid import uuid4

import pytest
from bson import ObjectId
from httpx import AsyncClient

from app.core.clock import utc_now
from app.core.config import Settings
from app.core.one_time_token import token_text
from app.core.scopes import Role
from app.main import create_app
from app.models.conversation import Conversation
from app.models.enums import TokenPurpose, UploadStatus
from app.models.installation import Installation
from app.models.one_time_token import OneTimeToken
from app.models.user import User
from tests import factories
from tests.api.signing_in import Phone, enrol, prepare
from tests.assistant_server import open_assistant
from tests.conftest import Serve
from tests.factories import (
    PASSWORD,
    SignedInUser,
    archive,
    make_api_key,
    make_conversation,
    make_item,
    make_user,
    sign_in,
)
from tests.hostile_files import picture
from tests.permissions import CALLERS, MEANING, ROWS, Row
from tests.stored_uploads import store_upload
from tests.streams import answer_of
from tests.test_architecture import endpoints_of

Body = dict[str, Any]

NEW_PASSWORD: Final = "walrus-Compass-77-lagoon"
STAFF: Final = {f"support {level}": level for level in (1, 2, 3)}
SERVICE_KEYS: Final = {"read key": "read", "write key": "write", "admin key": "admin"}
FILES: Final = ("POST /api/v1/uploads",)
FORMS: Final = ("/auth/token", "/auth/introspect", "/form")


class Scene:
    """A caller, and the owner of what it asks for."""

    def __init__(self, client: AsyncClient, caller: str, whose: str) -> None:
        self.client = client
        self.caller = caller
        self.whose = whose
        self.headers: dict[str, str] = {}
        self.owner: SignedInUser
        self.phone: Phone | None = None
        self._conversation: Conversation | None = None
        self.path = ""

    async def open(self) -> None:
        if "superuser" in {self.caller, self.whose}:
            await make_user(role=Role.SUPERUSER)  # so that neither is the last
        own = await self._caller()
        if self.whose == "own" and own is not None:
            self.owner = own
        else:
            role = Role(self.whose) if self.whose in {"admin", "superuser"} else Role.USER
            self.owner = await sign_in(await make_user(role=role))

    async def _caller(self) -> SignedInUser | None:
        if self.caller == "nobody":
            return None
        if self.caller in SERVICE_KEYS:
            self.headers = (await make_api_key(SERVICE_KEYS[self.caller])).headers
            return None
        role = Role.SUPPORT if self.caller in STAFF else Role.USER if "key" in self.caller else Role(self.caller)
        user = await sign_in(await make_user(role=role, staff_level=STAFF.get(self.caller)))
        self.headers = user.headers
        if self.caller == "personal key":
            self.headers = (await make_api_key("read", "write", owner=user)).headers
        return user

    async def url(self, path: str) -> str:
        if "deleted-users/" in path or path.endswith("/restore"):
            return path.format(user_id=await self._deleted())
        self.path = path
        names = {name for _, name, _, _ in Formatter().parse(path) if name}
        return path.format(**{name: await PLACES[name](self) for name in names})

    async def _deleted(self) -> ObjectId:
        return (await archive(await make_user(role=self.owner.document.role))).id

    async def conversation(self) -> Conversation:
        """The one that the request is about, whatever it names of it."""
        self._conversation = self._conversation or await make_conversation(self.owner)
        return self._conversation

    async def one_time_token(self, purpose: TokenPurpose) -> str:
        token = OneTimeToken(
            purpose=purpose,
            user_id=self.owner.id,
            email_key=self.owner.document.email_key,
            expires_at=utc_now() + timedelta(hours=1),
        )
        await token.insert()
        return token_text(token.id, purpose)


# What the braces of a path stand for.
PLACES: Final[dict[str, Callable[[Scene], Awaitable[Any]]]] = {}
# What is sent: the same by everybody, or made for the occasion.
SENT: Final[dict[str, Body]] = {
    "POST /api/v1/api-keys": {"name": "mine", "scopes": ["items:read"]},
    "PATCH /api/v1/api-keys/{api_key_id}": {"name": "other"},
    "POST /api/v1/conversations": {"title": "Tea"},
    "PUT /api/v1/conversations/{conversation_id}": {"title": "Tea"},
    "PATCH /api/v1/conversations/{conversation_id}": {"title": "Tea"},
    "POST /api/v1/conversations/{conversation_id}/messages/batch": {"messages": [{"content": "Hello"}]},
    "PATCH /api/v1/conversations/{conversation_id}/messages/{message_id}": {"content": "Good day"},
    "POST /api/v1/conversations/{conversation_id}/messages": {"content": "Hello"},
    "POST /api/v1/items": {"title": "Tea"},
    "PUT /api/v1/items/{item_id}": {"title": "Tea"},
    "PATCH /api/v1/items/{item_id}": {"title": "Tea"},
    "PATCH /api/v1/admin/users/{user_id}": {"plan": "pro"},
    "POST /api/v1/uploads/direct": {"filename": "tea.txt", "size": 11},
    "POST /api/v1/uploads/{upload_id}/url": {"expires_in": 60},
    "POST /api/v1/message-logs": {"entries": [{"username": "ada", "model": "gpt", "messages": 1}]},
    "POST /api/v1/staff/users/{user_id}/plan": {"plan": "pro"},
    "POST /api/v1/staff/users/{user_id}/credits": {"amount": 5},
    "PUT /api/v1/users/me": {"full_name": "Ada Lovelace"},
    "PATCH /api/v1/users/me": {"full_name": "Ada Lovelace"},
    "PUT /api/v1/users/{user_id}": {"full_name": "Ada Lovelace"},
    "PATCH /api/v1/users/{user_id}": {"full_name": "Ada Lovelace"},
    "DELETE /api/v1/users/me": {"current_password": PASSWORD},
    "DELETE /api/v1/users/{user_id}": {"current_password": PASSWORD},
    "POST /api/v1/auth/mfa/totp": {"current_password": PASSWORD},
    "POST /api/v1/auth/password/change": {"current_password": PASSWORD, "password": NEW_PASSWORD},
}
MADE: Final[dict[str, Callable[[Scene], Awaitable[Body]]]] = {}


def place(make: Callable[[Scene], Awaitable[Any]]) -> None:
    PLACES[make.__name__] = make


def body(*endpoints: str) -> Callable[[Callable[[Scene], Awaitable[Body]]], None]:
    def add(make: Callable[[Scene], Awaitable[Body]]) -> None:
        MADE.update(dict.fromkeys(endpoints, make))

    return add


@place
async def user_id(scene: Scene) -> ObjectId:
    return scene.owner.id


@place
async def username(scene: Scene) -> str | None:
    return scene.owner.document.username


@place
async def session_id(scene: Scene) -> ObjectId:
    return (await sign_in(scene.owner)).session.id


@place
async def api_key_id(scene: Scene) -> ObjectId:
    return (await make_api_key("items:read", owner=scene.owner)).document.id


@place
async def item_id(scene: Scene) -> ObjectId:
    return (await make_item(scene.owner)).id


@place
async def upload_id(scene: Scene) -> ObjectId:
    """A picture; a text where that is asked for; one that waits for being completed where it can be."""
    if scene.path.endswith("/complete"):
        return (await store_upload(scene.owner, status=UploadStatus.PENDING, is_direct=True)).id
    if scene.path.endswith("/text"):
        return (await store_upload(scene.owner)).id
    return (await store_upload(scene.owner, picture(), content_type="image/png")).id


@place
async def conversation_id(scene: Scene) -> ObjectId:
    conversation = await scene.conversation()
    await factories.make_messages(conversation, by=scene.owner)
    return conversation.id


@place
async def message_id(scene: Scene) -> ObjectId:
    [message] = await factories.make_messages(await scene.conversation(), by=scene.owner)
    return message.id


@place
async def name(_: Scene) -> str:
    return "purge_deleted_users"


@body("POST /api/v1/users", "POST /api/v1/auth/register", "POST /api/v1/admin/users")
async def account(_: Scene) -> Body:
    return {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}


@body("DELETE /api/v1/auth/mfa/totp", "POST /api/v1/auth/mfa/recovery-codes")
async def full_proof(scene: Scene) -> Body:
    phone = await enrol(scene.client, scene.owner)  # with the code of now
    return {"current_password": PASSWORD, "otp": phone.code(datetime.now(UTC) + timedelta(seconds=30))}


@body("POST /api/v1/auth/mfa/totp/confirm")
async def first_code(scene: Scene) -> Body:
    return {"otp": (await prepare(scene.client, scene.owner)).code()}


@body("POST /api/v1/auth/login")
async def login(scene: Scene) -> Body:
    return {"email": scene.owner.document.email, "password": PASSWORD}


@body("POST /api/v1/auth/token")
async def password_grant(scene: Scene) -> Body:
    return {"grant_type": "password", "username": scene.owner.document.email, "password": PASSWORD}


@body("POST /api/v1/auth/refresh")
async def refresh_token(scene: Scene) -> Body:
    return {"refresh_token": scene.owner.refresh_token}


@body("POST /api/v1/auth/introspect")
async def token(scene: Scene) -> Body:
    return {"token": scene.owner.access_token}


@body("POST /api/v1/api-keys/verify")
async def key(scene: Scene) -> Body:
    return {"key": (await make_api_key("items:read", owner=scene.owner)).text}


@body("POST /api/v1/auth/password/forgot", "POST /api/v1/auth/email/verify/request")
async def address(scene: Scene) -> Body:
    return {"email": scene.owner.document.email}


@body("POST /api/v1/auth/password/reset", "POST /api/v1/auth/password/reset/form")
async def reset(scene: Scene) -> Body:
    return {"token": await scene.one_time_token(TokenPurpose.PASSWORD_RESET), "password": NEW_PASSWORD}


@body("POST /api/v1/auth/email/verify", "POST /api/v1/auth/email/verify/form")
async def verification(scene: Scene) -> Body:
    return {"token": await scene.one_time_token(TokenPurpose.EMAIL_VERIFICATION)}


@body("POST /api/v1/conversations/{conversation_id}/participants")
async def participant(_: Scene) -> Body:
    return {"user_id": str((await make_user()).id)}


@body("POST /api/v1/conversations/{conversation_id}/read")
async def read_mark(scene: Scene) -> Body:
    reader = {"user_id": str(scene.owner.id)} if scene.caller in SERVICE_KEYS else {}
    return {"message_id": str(await PLACES["message_id"](scene)), **reader}


@body("POST /api/v1/conversations/{conversation_id}/reply")
async def question(scene: Scene) -> Body:
    await User.get_pymongo_collection().update_one({"_id": scene.owner.id}, {"$set": {"credits": 100}})
    return {}


@body("POST /bootstrap")
async def nothing(_: Scene) -> Body:
    await Installation.find_all().delete()
    return {}


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[AsyncClient]:
    """The application with an assistant."""
    async with open_assistant() as assistant, serve(**assistant.settings) as client:
        yield client


async def answer(row: Row, caller: str, client: AsyncClient) -> int:
    """The status that the caller gets."""
    scene = Scene(client, caller, row.whose)
    await scene.open()
    endpoint = f"{row.method} {row.path}"
    made = await MADE[endpoint](scene) if endpoint in MADE else SENT.get(endpoint, {})
    sent = {**made, **row.fields}
    is_form = row.path.endswith(FORMS)
    url = await scene.url(row.path)
    if row.path.endswith("/events"):  # goes on until one hangs up
        async with answer_of(client, url, scene.headers) as stream:
            return stream.status
    response = await client.request(
        row.method,
        url,
        headers=scene.headers,
        data=sent if is_form else None,
        files={"file": ("tea.txt", b"Tea")} if endpoint in FILES else None,
        json=None if is_form else sent or None,
    )
    return response.status_code


class TestTable:
    def test_has_every_endpoint(self, make_settings: Callable[..., Settings]) -> None:
        listed = {(row.method, row.path) for row in ROWS}

        assert {tuple(endpoint) for endpoint in endpoints_of(create_app(make_settings()))} == listed

    def test_has_what_is_others_beside_what_is_ones_own(self) -> None:
        whose: dict[tuple[str, str], set[str]] = {}
        for row in ROWS:
            whose.setdefault((row.method, row.path), set()).add(row.whose)

        for endpoint, kinds in whose.items():
            if (
                "{" in endpoint[1]
                and kinds & {"own", "user"}
                and not endpoint[1].endswith("/restore")
                and "deleted-users" not in endpoint[1]
            ):
                assert kinds >= {"own", "user"}, endpoint

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
    async def test_is_true(self, client: AsyncClient, row: Row) -> None:
        asked = [caller for caller in CALLERS if row.letters[caller] != "."]

        answers = {caller: await answer(row, caller, client) for caller in asked}

        assert asked
        wrong = {caller: got for caller, got in answers.items() if got not in MEANING[row.letters[caller]]}
        assert wrong == {}
