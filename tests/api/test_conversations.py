import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core import background, live_cache
from app.core.scopes import Role
from app.db.mongo import connected
from app.models.audit_event import AuditEvent
from app.models.conversation import Conversation, DeletedConversation, Participant
from app.models.enums import ParticipantRole
from app.models.message import Message
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import (
    SignedInUser,
    make_api_key,
    make_conversation,
    make_messages,
    make_signed_in,
    make_user,
)

CONVERSATIONS = "/api/v1/conversations"
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


class Scene(NamedTuple):
    """A conversation that Ada owns and Bob takes part in. Cy does not."""

    ada: SignedInUser
    bob: SignedInUser
    cy: SignedInUser
    conversation: Conversation


async def make_scene() -> Scene:
    ada, bob, cy = [await make_signed_in() for _ in range(3)]
    return Scene(ada, bob, cy, await make_conversation(ada, bob))


class Act(NamedTuple):
    """A request about the conversation of a scene. `{bob}` and `{cy}` stand for their ids."""

    method: str
    path: str = ""
    body: dict[str, str] | None = None

    async def on(self, scene: Scene, client: AsyncClient, headers: dict[str, str] | None = None) -> Response:
        people = {"bob": scene.bob.id, "cy": scene.cy.id}
        body = None if self.body is None else {name: value.format(**people) for name, value in self.body.items()}
        url = url_of(scene.conversation) + self.path.format(**people)
        return await client.request(self.method, url, json=body, headers=headers)


GET = Act("GET")
LIST_MESSAGES = Act("GET", "/messages")
POST_MESSAGE = Act("POST", "/messages", {"content": "Hello"})
PATCH = Act("PATCH", "", {"title": "Coffee"})
PUT = Act("PUT", "", {"title": "Coffee"})
DELETE = Act("DELETE")
ADD = Act("POST", "/participants", {"user_id": "{cy}"})
REMOVE = Act("DELETE", "/participants/{bob}")


def url_of(conversation: Conversation) -> str:
    return f"{CONVERSATIONS}/{conversation.id}"


async def say(client: AsyncClient, conversation: Conversation, by: SignedInUser) -> None:
    response = await client.post(f"{url_of(conversation)}/messages", json={"content": "Hello"}, headers=by.headers)
    assert response.status_code == 201


async def show(client: AsyncClient, conversation: Conversation, to: SignedInUser) -> dict[str, Any]:
    response = await client.get(url_of(conversation), headers=to.headers)
    assert response.status_code == 200
    shown: dict[str, Any] = response.json()
    return shown


async def stored(conversation: Conversation) -> dict[str, Any] | None:
    found: dict[str, Any] | None = await Conversation.get_pymongo_collection().find_one({"_id": conversation.id})
    return found


def roles_in(shown: dict[str, Any]) -> list[tuple[str, str]]:
    return [(entry["id"], entry["role"]) for entry in shown["participants"]]


def ids_in(response: Response) -> list[str]:
    return [row["id"] for row in response.json()]


class TestCreate:
    async def test_makes_the_user_the_owner_of_what_it_creates(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_user()

        body = {"title": " Tea ", "participant_ids": [str(bob.id)]}
        created = await client.post(CONVERSATIONS, json=body, headers=ada.headers)

        assert created.status_code == 201
        assert created.json()["title"] == "Tea"
        assert created.json()["created_by"] == str(ada.id)
        assert roles_in(created.json()) == [(str(ada.id), "owner"), (str(bob.id), "member")]
        shown = await client.get(f"{CONVERSATIONS}/{created.json()['id']}", headers=ada.headers)
        assert shown.json() == created.json()
        assert shown.headers["etag"] == created.headers["etag"]

    async def test_needs_neither_title_nor_company(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        created = await client.post(CONVERSATIONS, json={}, headers=ada.headers)

        assert created.status_code == 201
        assert created.json()["title"] is None
        assert roles_in(created.json()) == [(str(ada.id), "owner")]

    async def test_counts_everybody_once_however_often_named(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_user()

        body = {"participant_ids": [str(bob.id), str(ada.id), str(bob.id)]}
        created = await client.post(CONVERSATIONS, json=body, headers=ada.headers)

        assert created.status_code == 201
        assert roles_in(created.json()) == [(str(ada.id), "owner"), (str(bob.id), "member")]

    async def test_makes_the_first_participant_the_owner_when_a_service_creates(self, client: AsyncClient) -> None:
        key, bob, cy = await make_api_key("write"), await make_user(), await make_user()

        body = {"participant_ids": [str(cy.id), str(bob.id)]}
        created = await client.post(CONVERSATIONS, json=body, headers=key.headers)

        assert created.status_code == 201
        assert created.json()["created_by"] is None
        assert roles_in(created.json()) == [(str(cy.id), "owner"), (str(bob.id), "member")]

    @pytest.mark.parametrize("is_personal", [False, True], ids=["service", "personal"])
    async def test_needs_no_right_to_read(self, client: AsyncClient, *, is_personal: bool) -> None:
        key = await make_api_key("conversations:write", owner=await make_user() if is_personal else None)

        created = await client.post(CONVERSATIONS, json={"title": "Tea"}, headers=key.headers)

        assert created.status_code == 201
        assert created.json()["title"] == "Tea"

    async def test_makes_the_owner_of_a_personal_key_the_owner(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("conversations:*", owner=ada)

        created = await client.post(CONVERSATIONS, json={}, headers=key.headers)

        assert created.status_code == 201
        assert created.json()["created_by"] == str(ada.id)
        assert roles_in(created.json()) == [(str(ada.id), "owner")]

    async def test_names_the_users_that_do_not_exist(self, client: AsyncClient) -> None:
        ada, bob, nobody, nobody_else = await make_signed_in(), await make_user(), ObjectId(), ObjectId()

        body = {"participant_ids": [str(nobody), str(bob.id), str(nobody_else)]}
        response = await client.post(CONVERSATIONS, json=body, headers=ada.headers)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"
        errors = response.json()["errors"]
        assert [(error["loc"], error["type"]) for error in errors] == [
            (["body", "participant_ids", 0], "unknown_user"),
            (["body", "participant_ids", 2], "unknown_user"),
        ]
        assert [str(nobody) in errors[0]["msg"], str(nobody_else) in errors[1]["msg"]] == [True, True]
        assert await Conversation.count() == 0

    @pytest.mark.parametrize(
        "body",
        [
            {"title": "x" * 201},
            {"title": "  "},
            {"title": "two\nlines"},
            {"title": "NUL\x00"},
            {"title": 7},
            {"title": {"$gt": ""}},
            {"participant_ids": "6746d0a8f8f8f8f8f8f8f8f8"},
            {"participant_ids": ["nonsense"]},
            {"participant_ids": [{"$ne": None}]},
            {"participant_ids": ["6746d0a8f8f8f8f8f8f8f8f8"] * 1000},
            {"titel": "Tea"},
            {"created_by": "6746d0a8f8f8f8f8f8f8f8f8"},
            [],
        ],
        ids=str,
    )
    async def test_refuses_a_bad_body(self, client: AsyncClient, body: Any) -> None:
        ada = await make_signed_in()

        response = await client.post(CONVERSATIONS, json=body, headers=ada.headers)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"
        assert await Conversation.count() == 0


class TestGet:
    async def test_shows_who_takes_part(self, client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada", email="ada@example.com")
        bob = await make_signed_in(username="bob", email="bob@example.com")
        conversation = await make_conversation(ada, bob)

        shown = await show(client, conversation, bob)

        joined = [entry.pop("joined_at") for entry in shown["participants"]]
        assert shown["participants"] == [
            {
                "id": str(ada.id),
                "username": "ada",
                "email": "ada@example.com",
                "role": "owner",
                "last_read_seq": 0,
            },
            {
                "id": str(bob.id),
                "username": "bob",
                "email": "bob@example.com",
                "role": "member",
                "last_read_seq": 0,
            },
        ]
        assert [moment[-1] for moment in joined] == ["Z", "Z"]
        times = [entry.joined_at for entry in conversation.participants]
        assert [datetime.fromisoformat(moment) for moment in joined] == times

    async def test_keeps_the_place_of_a_participant_whose_account_is_gone(self, client: AsyncClient) -> None:
        scene = await make_scene()
        admin = await make_signed_in(role=Role.ADMIN)
        live_cache.hear(60)  # so that names are remembered
        await show(client, scene.conversation, scene.ada)

        deleted = await client.delete(f"/api/v1/users/{scene.bob.id}", headers=admin.headers)

        assert deleted.status_code == 204
        entry = (await show(client, scene.conversation, scene.ada))["participants"][1]
        assert (entry["id"], entry["username"], entry["email"]) == (str(scene.bob.id), None, None)

    async def test_counts_what_others_said_and_the_reader_has_not_read(self, client: AsyncClient) -> None:
        scene = await make_scene()
        key = await make_api_key("write")

        for speaker in (scene.ada, scene.ada, scene.bob):
            await say(client, scene.conversation, speaker)
        await ADD.on(scene, client, scene.ada.headers)
        await say(client, scene.conversation, scene.bob)
        await POST_MESSAGE.on(scene, client, key.headers)

        shown = [await show(client, scene.conversation, reader) for reader in (scene.ada, scene.bob, scene.cy)]
        assert [reader["unread_count"] for reader in shown] == [3, 3, 2]
        assert [reader["message_count"] for reader in shown] == [5, 5, 5]

    async def test_counts_nothing_as_unread_to_one_who_does_not_take_part(self, client: AsyncClient) -> None:
        ada, admin = await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        conversation = await make_conversation(ada)
        await make_messages(conversation, 2, by=ada)

        shown = await show(client, conversation, admin)

        assert (shown["message_count"], shown["unread_count"]) == (2, 0)

    async def test_shows_the_latest_hundred_messages_oldest_first(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await make_messages(conversation, 102, by=ada)

        shown = await show(client, conversation, ada)

        assert [message["seq"] for message in shown["messages"]] == list(range(3, 103))
        assert shown["message_count"] == 102

    @pytest.mark.parametrize("conversation_id", ["nonsense", "6746d0a8f8f8f8f8f8f8f8f8", "6746d0a8f8f8f8f8f8f8f8f"])
    async def test_does_not_find_what_does_not_exist(self, client: AsyncClient, conversation_id: str) -> None:
        key = await make_api_key("admin")

        response = await client.get(f"{CONVERSATIONS}/{conversation_id}", headers=key.headers)

        assert response.status_code == 404
        assert response.json()["code"] == "not_found"

    async def test_is_answered_304_while_nothing_has_changed(self, client: AsyncClient) -> None:
        scene = await make_scene()
        tag = (await GET.on(scene, client, scene.ada.headers)).headers["etag"]

        headers = scene.ada.headers | {"If-None-Match": f'"other", W/{tag}'}
        again = await GET.on(scene, client, headers)

        assert again.status_code == 304
        assert again.content == b""
        assert again.headers["etag"] == tag

    async def test_is_answered_anew_after_a_message(self, client: AsyncClient) -> None:
        scene = await make_scene()
        tag = (await GET.on(scene, client, scene.ada.headers)).headers["etag"]
        await say(client, scene.conversation, scene.bob)

        again = await GET.on(scene, client, scene.ada.headers | {"If-None-Match": tag})

        assert again.status_code == 200
        assert again.headers["etag"] != tag
        assert [message["seq"] for message in again.json()["messages"]] == [1]

    async def test_is_answered_anew_after_a_participant_was_renamed(self, client: AsyncClient) -> None:
        scene = await make_scene()
        live_cache.hear(60)  # so that names are remembered
        tag = (await GET.on(scene, client, scene.ada.headers)).headers["etag"]
        await client.patch("/api/v1/users/me", json={"username": "robert"}, headers=scene.bob.headers)

        again = await GET.on(scene, client, scene.ada.headers | {"If-None-Match": tag})

        assert again.status_code == 200
        assert again.headers["etag"] != tag
        assert again.json()["participants"][1]["username"] == "robert"


class TestList:
    async def test_shows_ones_own_by_last_activity(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        first, second, third = [
            await make_conversation(ada, bob, last_activity_at=LONG_AGO + timedelta(days=day)) for day in range(3)
        ]
        await make_conversation(bob)

        await say(client, first, bob)

        listed = await client.get(CONVERSATIONS, headers=ada.headers)
        assert listed.status_code == 200
        assert ids_in(listed) == [str(first.id), str(third.id), str(second.id)]

    async def test_shows_counters_instead_of_messages(self, client: AsyncClient) -> None:
        scene = await make_scene()
        await say(client, scene.conversation, scene.ada)
        await say(client, scene.conversation, scene.bob)
        whole = await show(client, scene.conversation, scene.ada)

        listed = await client.get(CONVERSATIONS, headers=scene.ada.headers)

        without = {name: value for name, value in whole.items() if name not in {"participants", "messages"}}
        assert listed.json() == [without | {"participant_count": 2, "message_count": 2, "unread_count": 1}]

    async def test_shows_everybodys_to_a_service(self, client: AsyncClient) -> None:
        key = await make_api_key("read")
        older = await make_conversation(await make_user(), last_activity_at=LONG_AGO)
        newer = await make_conversation(await make_user())

        listed = await client.get(CONVERSATIONS, headers=key.headers)

        assert ids_in(listed) == [str(newer.id), str(older.id)]

    async def test_shows_a_personal_key_what_its_owner_takes_part_in(self, client: AsyncClient) -> None:
        ada = await make_user()
        key = await make_api_key("read", owner=ada)
        mine = await make_conversation(ada)
        await make_conversation(await make_user())

        listed = await client.get(CONVERSATIONS, headers=key.headers)

        assert ids_in(listed) == [str(mine.id)]

    async def test_pages_without_repeating_or_losing_any(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        # Two for each moment, so that pages end between conversations of the same one.
        made = [
            await make_conversation(ada, last_activity_at=LONG_AGO + timedelta(days=at // 2), archived=True)
            for at in range(7)
        ]

        pages, url = [], f"{CONVERSATIONS}?limit=3&archived=true"
        for _ in range(3):
            response = await client.get(url, headers=ada.headers)
            pages.append(ids_in(response))
            await make_conversation(ada, archived=True)  # something newer meanwhile
            url = response.links.get("next", {}).get("url", "")

        assert [len(page) for page in pages] == [3, 3, 1]
        assert [row for page in pages for row in page] == [str(conversation.id) for conversation in reversed(made)]
        assert url == ""

    async def test_has_no_next_page_when_the_last_one_is_full(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        for _ in range(2):
            await make_conversation(ada)

        response = await client.get(f"{CONVERSATIONS}?limit=2", headers=ada.headers)

        assert len(response.json()) == 2
        assert "link" not in response.headers

    @pytest.mark.parametrize(("query", "titles"), [("", ["new", "old"]), ("true", ["old"]), ("false", ["new"])])
    async def test_can_be_limited_to_the_archived_or_the_others(
        self, client: AsyncClient, query: str, titles: list[str]
    ) -> None:
        ada = await make_signed_in()
        await make_conversation(ada, title="old", archived=True, last_activity_at=LONG_AGO)
        await make_conversation(ada, title="new")

        params = {"archived": query} if query else {}
        listed = await client.get(CONVERSATIONS, params=params, headers=ada.headers)

        assert [row["title"] for row in listed.json()] == titles

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "archived=maybe"])
    async def test_refuses_a_bad_query(self, client: AsyncClient, query: str) -> None:
        ada = await make_signed_in()

        response = await client.get(f"{CONVERSATIONS}?{query}", headers=ada.headers)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"

    @pytest.mark.parametrize("path", ["?limit=1&archived=false", "/user/{ada}?limit=1"])
    async def test_refuses_a_cursor_that_was_made_elsewhere(self, client: AsyncClient, path: str) -> None:
        ada = await make_signed_in()
        key = await make_api_key("read")
        for _ in range(2):
            await make_conversation(ada)
        elsewhere = await client.get(CONVERSATIONS + path.format(ada=ada.id), headers=key.headers)

        cursor = elsewhere.links["next"]["url"].partition("cursor=")[2]
        response = await client.get(f"{CONVERSATIONS}?limit=1&cursor={cursor}", headers=key.headers)

        assert response.status_code == 400
        assert response.json()["code"] == "invalid_cursor"

    async def test_refuses_a_cursor_that_was_changed(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        for _ in range(2):
            await make_conversation(ada)
        url = (await client.get(f"{CONVERSATIONS}?limit=1", headers=ada.headers)).links["next"]["url"]

        changed = url[:-10] + ("A" if url[-10] != "A" else "B") + url[-9:]
        response = await client.get(changed, headers=ada.headers)

        assert response.status_code == 400
        assert response.json()["code"] == "invalid_cursor"


class TestListOfUser:
    @pytest.mark.parametrize("reader", ["self", "admin", "service"])
    async def test_shows_what_is_unread_to_that_user(self, client: AsyncClient, reader: str) -> None:
        scene = await make_scene()
        await make_conversation(scene.ada)
        await say(client, scene.conversation, scene.ada)
        headers = {
            "self": scene.bob.headers,
            "admin": (await make_signed_in(role=Role.ADMIN)).headers,
            "service": (await make_api_key("read")).headers,
        }[reader]

        listed = await client.get(f"{CONVERSATIONS}/user/{scene.bob.id}", headers=headers)

        assert listed.status_code == 200
        assert [(row["id"], row["unread_count"]) for row in listed.json()] == [(str(scene.conversation.id), 1)]

    async def test_pages_through_links(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        made = [await make_conversation(ada, last_activity_at=LONG_AGO) for _ in range(3)]

        first = await client.get(f"{CONVERSATIONS}/user/{ada.id}?limit=2&archived=false", headers=ada.headers)
        second = await client.get(first.links["next"]["url"], headers=ada.headers)

        assert ids_in(first) + ids_in(second) == [str(conversation.id) for conversation in reversed(made)]
        assert "link" not in second.headers

    @pytest.mark.parametrize("role", [Role.GUEST, Role.USER, Role.SUPPORT])
    async def test_is_refused_for_another(self, client: AsyncClient, role: Role) -> None:
        reader, ada = await make_signed_in(role=role), await make_user()

        response = await client.get(f"{CONVERSATIONS}/user/{ada.id}", headers=reader.headers)

        assert response.status_code == 403
        assert response.json()["code"] == "forbidden"

    @pytest.mark.parametrize("user_id", ["nonsense", "6746d0a8f8f8f8f8f8f8f8f8"])
    @pytest.mark.parametrize("role", [Role.USER, Role.ADMIN])
    async def test_does_not_find_an_unknown_user(self, client: AsyncClient, role: Role, user_id: str) -> None:
        reader = await make_signed_in(role=role)

        response = await client.get(f"{CONVERSATIONS}/user/{user_id}", headers=reader.headers)

        assert response.status_code == 404
        assert response.json()["code"] == "not_found"


class TestCallers:
    @pytest.mark.parametrize("act", [GET, LIST_MESSAGES, POST_MESSAGE, PATCH, PUT, DELETE, ADD, REMOVE], ids=str)
    async def test_nobody_is_refused(self, client: AsyncClient, act: Act) -> None:
        scene = await make_scene()
        before = await stored(scene.conversation)

        response = await act.on(scene, client)

        assert response.status_code == 401
        assert response.json()["code"] == "not_authenticated"
        assert response.headers["www-authenticate"] == "Bearer"
        assert await stored(scene.conversation) == before

    @pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", ""), ("GET", "/user/6746d0a8f8f8f8f8f8f8f8f8")])
    async def test_nobody_is_refused_by_lists(self, client: AsyncClient, method: str, path: str) -> None:
        response = await client.request(method, CONVERSATIONS + path)

        assert response.status_code == 401
        assert response.json()["code"] == "not_authenticated"

    @pytest.mark.parametrize(
        ("scope", "act"),
        [
            *[("conversations:write", act) for act in (GET, LIST_MESSAGES)],
            *[("conversations:read", act) for act in (POST_MESSAGE, PATCH, PUT, DELETE, ADD, REMOVE)],
        ],
        ids=str,
    )
    async def test_a_key_without_the_scope_is_refused(self, client: AsyncClient, scope: str, act: Act) -> None:
        scene = await make_scene()
        key = await make_api_key(scope)
        before = await stored(scene.conversation)

        response = await act.on(scene, client, key.headers)

        assert response.status_code == 403
        assert response.json()["code"] == "insufficient_scope"
        assert await stored(scene.conversation) == before

    @pytest.mark.parametrize("act", [GET, LIST_MESSAGES, POST_MESSAGE, PATCH, PUT, DELETE, ADD, REMOVE], ids=str)
    async def test_a_stranger_does_not_find_it(self, client: AsyncClient, act: Act) -> None:
        scene = await make_scene()
        before = await stored(scene.conversation)

        response = await act.on(scene, client, scene.cy.headers)

        assert response.status_code == 404
        assert response.json()["code"] == "not_found"
        assert await stored(scene.conversation) == before

    @pytest.mark.parametrize("act", [PATCH, PUT, DELETE, ADD], ids=str)
    async def test_a_member_may_not_act_as_an_owner(self, client: AsyncClient, act: Act) -> None:
        scene = await make_scene()
        before = await stored(scene.conversation)

        response = await act.on(scene, client, scene.bob.headers)

        assert response.status_code == 403
        assert response.json()["code"] == "forbidden"
        assert await stored(scene.conversation) == before

    @pytest.mark.parametrize(
        ("act", "status"), [(GET, 200), (LIST_MESSAGES, 200), (PATCH, 200), (ADD, 201), (REMOVE, 200), (DELETE, 204)]
    )
    @pytest.mark.parametrize("caller", ["admin", "service"])
    async def test_an_administrator_and_a_service_reach_everybodys(
        self, client: AsyncClient, caller: str, act: Act, status: int
    ) -> None:
        scene = await make_scene()
        admin, key = await make_signed_in(role=Role.ADMIN), await make_api_key("read", "write")

        response = await act.on(scene, client, admin.headers if caller == "admin" else key.headers)

        assert response.status_code == status

    @pytest.mark.parametrize(("act", "status"), [(PATCH, 200), (PUT, 200), (ADD, 201), (REMOVE, 200), (DELETE, 204)])
    async def test_a_key_that_may_only_write_is_told_that_it_has_written(
        self, client: AsyncClient, act: Act, status: int
    ) -> None:
        scene = await make_scene()
        key = await make_api_key("conversations:write")
        before = await stored(scene.conversation)

        response = await act.on(scene, client, key.headers)

        assert response.status_code == status
        assert await stored(scene.conversation) != before

    @pytest.mark.parametrize("is_personal", [False, True], ids=["service", "personal"])
    async def test_a_key_that_may_only_write_is_shown_no_messages(
        self, client: AsyncClient, *, is_personal: bool
    ) -> None:
        scene = await make_scene()
        key = await make_api_key("conversations:write", owner=scene.ada if is_personal else None)
        await say(client, scene.conversation, scene.bob)

        changed = await PATCH.on(scene, client, key.headers)

        assert changed.status_code == 200
        assert (changed.json()["title"], changed.json()["messages"]) == ("Coffee", [])


class TestUpdate:
    @pytest.mark.parametrize("method", ["PUT", "PATCH"])
    async def test_changes_what_is_named_and_keeps_the_rest(self, client: AsyncClient, method: str) -> None:
        scene = await make_scene()
        url, headers = url_of(scene.conversation), scene.ada.headers

        archived = await client.request(method, url, json={"archived": True}, headers=headers)
        renamed = await client.request(method, url, json={"title": "Coffee"}, headers=headers)

        assert (archived.status_code, renamed.status_code) == (200, 200)
        assert (archived.json()["title"], archived.json()["archived"]) == ("Tea", True)
        assert (renamed.json()["title"], renamed.json()["archived"]) == ("Coffee", True)
        assert await show(client, scene.conversation, scene.bob) == renamed.json()

    async def test_archives_for_everybody_and_a_new_message_brings_it_not_back(self, client: AsyncClient) -> None:
        scene = await make_scene()
        await client.patch(url_of(scene.conversation), json={"archived": True}, headers=scene.ada.headers)

        await say(client, scene.conversation, scene.bob)

        for reader in (scene.ada, scene.bob):
            archived = await client.get(f"{CONVERSATIONS}?archived=true", headers=reader.headers)
            assert [(row["id"], row["message_count"]) for row in archived.json()] == [(str(scene.conversation.id), 1)]

    async def test_clears_the_title_with_null(self, client: AsyncClient) -> None:
        scene = await make_scene()

        response = await client.patch(url_of(scene.conversation), json={"title": None}, headers=scene.ada.headers)

        assert response.status_code == 200
        assert (await show(client, scene.conversation, scene.ada))["title"] is None

    @pytest.mark.parametrize(
        "body",
        [{"archived": None}, {"archived": "perhaps"}, {"title": "x" * 201}, {"title": ""}, {"message_count": 0}],
        ids=str,
    )
    @pytest.mark.parametrize("method", ["PUT", "PATCH"])
    async def test_refuses_a_bad_body(self, client: AsyncClient, method: str, body: Any) -> None:
        scene = await make_scene()
        before = await stored(scene.conversation)

        response = await client.request(method, url_of(scene.conversation), json=body, headers=scene.ada.headers)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"
        assert await stored(scene.conversation) == before

    async def test_gives_every_change_a_tag_of_its_own(self, client: AsyncClient) -> None:
        scene = await make_scene()
        tag = (await GET.on(scene, client, scene.ada.headers)).headers["etag"]

        changed = await PATCH.on(scene, client, scene.ada.headers | {"If-Match": tag})

        assert changed.status_code == 200
        assert changed.headers["etag"] != tag
        assert changed.headers["etag"] == (await GET.on(scene, client, scene.ada.headers)).headers["etag"]

    @pytest.mark.parametrize("act", [PATCH, PUT, DELETE], ids=str)
    async def test_is_refused_when_a_message_came_meanwhile(self, client: AsyncClient, act: Act) -> None:
        scene = await make_scene()
        tag = (await GET.on(scene, client, scene.ada.headers)).headers["etag"]
        await say(client, scene.conversation, scene.bob)

        response = await act.on(scene, client, scene.ada.headers | {"If-Match": tag})

        assert response.status_code == 412
        assert response.json()["code"] == "precondition_failed"
        assert (await show(client, scene.conversation, scene.ada))["title"] == "Tea"

    @pytest.mark.parametrize("act", [PATCH, PUT, DELETE], ids=str)
    async def test_is_refused_with_a_foreign_tag(self, client: AsyncClient, act: Act) -> None:
        scene = await make_scene()

        response = await act.on(scene, client, scene.ada.headers | {"If-Match": '"foreign"'})

        assert response.status_code == 412
        assert response.json()["code"] == "precondition_failed"

    async def test_happens_once_of_two_at_the_same_time_with_one_tag(self, client: AsyncClient) -> None:
        scene = await make_scene()
        tag = (await GET.on(scene, client, scene.ada.headers)).headers["etag"]

        headers = scene.ada.headers | {"If-Match": tag}
        answers = await asyncio.gather(*(PATCH.on(scene, client, headers) for _ in range(5)))

        assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412, 412]


class TestDelete:
    async def test_takes_the_messages_along(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation, other = await make_conversation(ada), await make_conversation(ada)
        await make_messages(conversation, 1001, by=ada)
        await make_messages(other, 2, by=ada)

        response = await client.delete(url_of(conversation), headers=ada.headers)
        await background.drain()

        assert response.status_code == 204
        assert (await client.get(url_of(conversation), headers=ada.headers)).status_code == 404
        left = await Message.find_all().to_list()
        assert {message.conversation_id for message in left} == {other.id}
        assert len(left) == 2
        assert await DeletedConversation.count() == 0

    async def test_puts_everything_out_of_reach_at_once(self, client: AsyncClient) -> None:
        scene = await make_scene()
        await say(client, scene.conversation, scene.bob)

        await DELETE.on(scene, client, scene.ada.headers)

        for act in (GET, LIST_MESSAGES, POST_MESSAGE):
            assert (await act.on(scene, client, scene.bob.headers)).status_code == 404
        assert (await client.get(CONVERSATIONS, headers=scene.bob.headers)).json() == []

    async def test_does_not_find_what_is_deleted_already(self, client: AsyncClient) -> None:
        scene = await make_scene()

        first, second = [await DELETE.on(scene, client, scene.ada.headers) for _ in range(2)]

        assert (first.status_code, second.status_code) == (204, 404)

    async def test_leaves_everything_when_its_note_can_not_be_written(self, client: AsyncClient) -> None:
        scene = await make_scene()
        await say(client, scene.conversation, scene.bob)
        before = await stored(scene.conversation)
        await DeletedConversation(id=scene.conversation.id).insert()

        response = await DELETE.on(scene, client, scene.ada.headers)
        await background.drain()

        assert response.status_code == 500
        assert await stored(scene.conversation) == before
        assert await Message.count() == 1

    async def test_is_finished_by_the_next_start_when_it_was_interrupted(self, serve: Serve, database_url: str) -> None:
        async with connected(database_url):
            scene = await make_scene()
            other = await make_conversation(scene.ada)
            await make_messages(other, 1)
            await make_messages(scene.conversation, 3)
            await scene.conversation.delete()
            await DeletedConversation(id=scene.conversation.id).insert()

        async with serve():
            await background.drain()

            assert [message.conversation_id for message in await Message.find_all().to_list()] == [other.id]
            assert await DeletedConversation.count() == 0


class TestAddParticipant:
    @pytest.mark.parametrize(
        ("body", "role"), [({}, "member"), ({"role": "member"}, "member"), ({"role": "owner"}, "owner")]
    )
    async def test_lets_a_user_take_part(self, client: AsyncClient, body: dict[str, str], role: str) -> None:
        scene = await make_scene()

        url = f"{url_of(scene.conversation)}/participants"
        added = await client.post(url, json={"user_id": str(scene.cy.id)} | body, headers=scene.ada.headers)

        assert added.status_code == 201
        assert roles_in(added.json())[2] == (str(scene.cy.id), role)
        assert added.headers["etag"] == (await GET.on(scene, client, scene.ada.headers)).headers["etag"]
        may_rename = await PATCH.on(scene, client, scene.cy.headers)
        assert may_rename.status_code == (200 if role == "owner" else 403)

    async def test_changes_nothing_for_one_who_takes_part_already(self, client: AsyncClient) -> None:
        scene = await make_scene()
        before = await stored(scene.conversation)

        body = {"user_id": str(scene.bob.id), "role": "owner"}
        added = await client.post(f"{url_of(scene.conversation)}/participants", json=body, headers=scene.ada.headers)

        assert added.status_code == 201
        assert roles_in(added.json()) == [(str(scene.ada.id), "owner"), (str(scene.bob.id), "member")]
        assert await stored(scene.conversation) == before
        assert await AuditEvent.find({"action": "participant:added"}).count() == 0

    async def test_adds_once_of_many_at_the_same_time(self, client: AsyncClient) -> None:
        scene = await make_scene()

        answers = await asyncio.gather(*(ADD.on(scene, client, scene.ada.headers) for _ in range(10)))

        assert {answer.status_code for answer in answers} == {201}
        shown = await show(client, scene.conversation, scene.ada)
        assert [entry["id"] for entry in shown["participants"]].count(str(scene.cy.id)) == 1
        assert await AuditEvent.find({"action": "participant:added"}).count() == 1

    async def test_names_a_user_that_does_not_exist(self, client: AsyncClient) -> None:
        scene = await make_scene()

        body = {"user_id": "6746d0a8f8f8f8f8f8f8f8f8"}
        response = await client.post(f"{url_of(scene.conversation)}/participants", json=body, headers=scene.ada.headers)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"
        assert [(error["loc"], error["type"]) for error in response.json()["errors"]] == [
            (["body", "user_id"], "unknown_user")
        ]

    @pytest.mark.parametrize(
        "more", [{"user_id": None}, {"user_id": "nonsense"}, {"role": "admin"}, {"role": None}, {"name": "x"}], ids=str
    )
    async def test_refuses_a_bad_body(self, client: AsyncClient, more: dict[str, Any]) -> None:
        scene = await make_scene()

        body = {"user_id": str(scene.cy.id)} | more
        response = await client.post(f"{url_of(scene.conversation)}/participants", json=body, headers=scene.ada.headers)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"

    async def test_stops_at_a_thousand(self, client: AsyncClient) -> None:
        scene = await make_scene()
        dee = await make_user()
        members = [Participant(user_id=ObjectId(), role=ParticipantRole.MEMBER, joined_at=LONG_AGO) for _ in range(997)]
        scene.conversation.participants += members
        await scene.conversation.save()

        url = f"{url_of(scene.conversation)}/participants"
        last = await ADD.on(scene, client, scene.ada.headers)
        one_more = await client.post(url, json={"user_id": str(dee.id)}, headers=scene.ada.headers)
        again = await ADD.on(scene, client, scene.ada.headers)

        assert (last.status_code, one_more.status_code, again.status_code) == (201, 409, 201)
        assert one_more.json()["code"] == "conflict"
        assert len(again.json()["participants"]) == 1000


class TestRemoveParticipant:
    async def test_lets_an_owner_remove_a_member(self, client: AsyncClient) -> None:
        scene = await make_scene()

        removed = await REMOVE.on(scene, client, scene.ada.headers)

        assert removed.status_code == 200
        assert roles_in(removed.json()) == [(str(scene.ada.id), "owner")]
        assert (await GET.on(scene, client, scene.bob.headers)).status_code == 404

    async def test_lets_a_member_leave(self, client: AsyncClient) -> None:
        scene = await make_scene()

        left = await REMOVE.on(scene, client, scene.bob.headers)

        assert left.status_code == 204
        assert left.content == b""
        assert (await GET.on(scene, client, scene.bob.headers)).status_code == 404
        assert roles_in(await show(client, scene.conversation, scene.ada)) == [(str(scene.ada.id), "owner")]

    async def test_refuses_a_member_who_removes_another(self, client: AsyncClient) -> None:
        scene = await make_scene()

        url = f"{url_of(scene.conversation)}/participants/{scene.ada.id}"
        response = await client.delete(url, headers=scene.bob.headers)

        assert response.status_code == 403
        assert response.json()["code"] == "forbidden"
        assert len((await show(client, scene.conversation, scene.ada))["participants"]) == 2

    @pytest.mark.parametrize("user_id", ["{cy}", "nonsense", "6746d0a8f8f8f8f8f8f8f8f8"])
    async def test_does_not_find_one_who_takes_no_part(self, client: AsyncClient, user_id: str) -> None:
        scene = await make_scene()

        response = await Act("DELETE", f"/participants/{user_id}").on(scene, client, scene.ada.headers)

        assert response.status_code == 404
        assert response.json()["code"] == "not_found"

    async def test_hands_ownership_to_the_longest_standing(self, client: AsyncClient) -> None:
        scene = await make_scene()
        await ADD.on(scene, client, scene.ada.headers)
        await REMOVE.on(scene, client, scene.bob.headers)
        back = Act("POST", "/participants", {"user_id": "{bob}"})
        await back.on(scene, client, scene.ada.headers)

        left = await client.delete(
            f"{url_of(scene.conversation)}/participants/{scene.ada.id}", headers=scene.ada.headers
        )

        assert left.status_code == 204
        shown = await show(client, scene.conversation, scene.cy)
        assert roles_in(shown) == [(str(scene.cy.id), "owner"), (str(scene.bob.id), "member")]

    async def test_hands_nothing_over_while_another_owner_is_there(self, client: AsyncClient) -> None:
        scene = await make_scene()
        await Act("POST", "/participants", {"user_id": "{cy}", "role": "owner"}).on(scene, client, scene.ada.headers)

        url = f"{url_of(scene.conversation)}/participants/{scene.ada.id}"
        await client.delete(url, headers=scene.ada.headers)

        shown = await show(client, scene.conversation, scene.cy)
        assert roles_in(shown) == [(str(scene.bob.id), "member"), (str(scene.cy.id), "owner")]

    async def test_leaves_one_owner_when_the_last_two_leave_at_the_same_time(self, client: AsyncClient) -> None:
        scene = await make_scene()
        await Act("POST", "/participants", {"user_id": "{cy}", "role": "owner"}).on(scene, client, scene.ada.headers)

        url = f"{url_of(scene.conversation)}/participants"
        answers = await asyncio.gather(
            *(client.delete(f"{url}/{owner.id}", headers=owner.headers) for owner in (scene.ada, scene.cy))
        )

        assert [answer.status_code for answer in answers] == [204, 204]
        assert roles_in(await show(client, scene.conversation, scene.bob)) == [(str(scene.bob.id), "owner")]

    async def test_lets_the_very_last_one_leave(self, client: AsyncClient) -> None:
        ada, admin = await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        conversation = await make_conversation(ada)

        left = await client.delete(f"{url_of(conversation)}/participants/{ada.id}", headers=ada.headers)

        assert left.status_code == 204
        assert (await show(client, conversation, admin))["participants"] == []

    async def test_forgets_what_was_unread_to_one_who_comes_back(self, client: AsyncClient) -> None:
        scene = await make_scene()
        await say(client, scene.conversation, scene.ada)
        await REMOVE.on(scene, client, scene.ada.headers)
        await say(client, scene.conversation, scene.ada)

        await Act("POST", "/participants", {"user_id": "{bob}"}).on(scene, client, scene.ada.headers)

        assert (await show(client, scene.conversation, scene.bob))["unread_count"] == 0


class TestAudit:
    async def test_records_who_created_it(self, client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada")

        created = await client.post(CONVERSATIONS, json={}, headers=ada.headers)

        [event] = await AuditEvent.find_all().to_list()
        assert (event.action, event.outcome) == ("conversation:created", "success")
        assert (event.actor.kind, event.actor.id, event.actor.name) == ("user", ada.id, "ada")
        assert (event.target.kind, str(event.target.id)) == ("conversation", created.json()["id"])
        assert event.request_id == created.headers["x-request-id"]

    @pytest.mark.parametrize(
        ("act", "action"),
        [
            (PATCH, "conversation:updated"),
            (PUT, "conversation:updated"),
            (DELETE, "conversation:deleted"),
            (ADD, "participant:added"),
            (REMOVE, "participant:removed"),
        ],
    )
    async def test_records_every_change_once(self, client: AsyncClient, act: Act, action: str) -> None:
        scene = await make_scene()

        await act.on(scene, client, scene.ada.headers)

        [event] = await AuditEvent.find_all().to_list()
        assert (event.action, event.outcome) == (action, "success")
        assert (event.actor.id, event.target.id) == (scene.ada.id, scene.conversation.id)

    @pytest.mark.parametrize("act", [PATCH, PUT, DELETE, ADD, REMOVE], ids=str)
    async def test_what_can_not_be_recorded_does_not_happen(self, client: AsyncClient, act: Act) -> None:
        scene = await make_scene()
        await say(client, scene.conversation, scene.bob)
        before = await stored(scene.conversation)

        async with no_event_can_be_written():
            response = await act.on(scene, client, scene.ada.headers)
        await background.drain()

        assert response.status_code == 500
        assert response.json()["code"] == "internal_error"
        assert await stored(scene.conversation) == before
        assert await Message.count() == 1

    async def test_does_not_create_what_can_not_be_recorded(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        async with no_event_can_be_written():
            response = await client.post(CONVERSATIONS, json={}, headers=ada.headers)

        assert response.status_code == 500
        assert await Conversation.count() == 0
