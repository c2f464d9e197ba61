import asyncio
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core import live_cache
from app.core.scopes import Role
from app.models.conversation import Conversation
from app.models.message import Message
from tests.factories import (
    SignedInUser,
    make_api_key,
    make_conversation,
    make_messages,
    make_signed_in,
    make_user,
)


def url_of(conversation: Conversation) -> str:
    return f"/api/v1/conversations/{conversation.id}/messages"


async def post(client: AsyncClient, conversation: Conversation, headers: dict[str, str], **body: Any) -> Response:
    return await client.post(url_of(conversation), json={"content": "Hello"} | body, headers=headers)


async def stored(conversation: Conversation) -> dict[str, Any]:
    found: dict[str, Any] | None = await Conversation.get_pymongo_collection().find_one({"_id": conversation.id})
    assert found is not None
    return found


async def seqs_by_page(
    client: AsyncClient, conversation: Conversation, query: str, *, by: SignedInUser, meanwhile: int = 0
) -> list[list[int]]:
    """The places of the messages on every page; so many messages are written after each."""
    pages: list[list[int]] = []
    url: str | None = f"{url_of(conversation)}?{query}"
    while url and len(pages) < 10:
        response = await client.get(url, headers=by.headers)
        pages.append([message["seq"] for message in response.json()])
        if meanwhile and len(pages) == 1:
            for _ in range(meanwhile):
                await post(client, conversation, by.headers)
        url = response.links.get("next", {}).get("url")
    return pages


class TestPost:
    async def test_writes_as_the_user(self, client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada")
        conversation = await make_conversation(ada)

        response = await post(client, conversation, ada.headers, content="Tea?", model="gpt")

        assert response.status_code == 201
        shown = response.json()
        assert len(shown.pop("id")) == 24
        assert shown.pop("created_at").endswith("Z")
        assert shown == {
            "conversation_id": str(conversation.id),
            "seq": 1,
            "role": "user",
            "content": "Tea?",
            "user": {"id": str(ada.id), "username": "ada"},
            "attachment_ids": [],
            "model": "gpt",
            "tokens": None,
            "edited_at": None,
            "deleted_at": None,
        }
        listed = await client.get(url_of(conversation), headers=ada.headers)
        assert listed.json() == [response.json()]

    async def test_counts_the_message_in_with_its_conversation(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await make_messages(conversation, 2)

        response = await post(client, conversation, ada.headers)

        assert response.json()["seq"] == 3
        after = await stored(conversation)
        assert (after["last_seq"], after["message_count"]) == (3, 3)
        assert after["last_activity_at"] > conversation.last_activity_at

    async def test_lets_a_user_name_itself(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        response = await post(client, conversation, ada.headers, role="user", user_id=str(ada.id))

        assert response.status_code == 201
        assert response.json()["user"]["id"] == str(ada.id)

    @pytest.mark.parametrize("with_key", [False, True], ids=["token", "personal key"])
    @pytest.mark.parametrize("body", [{"role": "assistant"}, {"role": "system"}, {"user_id": "{bob}"}], ids=str)
    async def test_refuses_a_user_another_role_or_name(
        self, client: AsyncClient, body: dict[str, str], *, with_key: bool
    ) -> None:
        ada, bob = await make_signed_in(), await make_user()
        conversation = await make_conversation(ada, bob)
        headers = (await make_api_key("write", owner=ada)).headers if with_key else ada.headers

        named = {name: value.format(bob=bob.id) for name, value in body.items()}
        response = await post(client, conversation, headers, **named)

        assert response.status_code == 403
        assert response.json()["code"] == "forbidden"
        assert await Message.count() == 0

    async def test_writes_as_the_owner_of_a_personal_key(self, client: AsyncClient) -> None:
        ada = await make_user(username="ada")
        key = await make_api_key("conversations:write", owner=ada)
        conversation = await make_conversation(ada)

        response = await post(client, conversation, key.headers)

        assert response.status_code == 201
        assert response.json()["user"] == {"id": str(ada.id), "username": "ada"}

    async def test_does_not_find_for_a_personal_key_what_its_owner_takes_no_part_in(self, client: AsyncClient) -> None:
        key = await make_api_key("write", owner=await make_user())
        conversation = await make_conversation(await make_user())

        response = await post(client, conversation, key.headers)

        assert response.status_code == 404
        assert response.json()["code"] == "not_found"

    @pytest.mark.parametrize("role", ["user", "assistant", "system"])
    async def test_lets_a_service_write_any_role_for_a_participant(self, client: AsyncClient, role: str) -> None:
        key, ada = await make_api_key("write"), await make_user(username="ada")
        conversation = await make_conversation(await make_user(), ada)

        response = await post(client, conversation, key.headers, role=role, user_id=str(ada.id))

        assert response.status_code == 201
        assert response.json()["role"] == role
        assert response.json()["user"] == {"id": str(ada.id), "username": "ada"}

    @pytest.mark.parametrize("role", ["user", "assistant", "system"])
    async def test_lets_a_service_write_any_role_for_nobody(self, client: AsyncClient, role: str) -> None:
        key = await make_api_key("write")
        conversation = await make_conversation(await make_user())

        response = await post(client, conversation, key.headers, role=role, user_id=None)

        assert response.status_code == 201
        assert (response.json()["role"], response.json()["user"]) == (role, None)

    @pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
    async def test_refuses_a_service_to_write_for_one_who_takes_no_part(
        self, client: AsyncClient, *, is_known: bool
    ) -> None:
        key, stranger = await make_api_key("admin"), await make_user()
        conversation = await make_conversation(await make_user())

        writer = stranger.id if is_known else ObjectId()
        response = await post(client, conversation, key.headers, user_id=str(writer))

        assert response.status_code == 403
        assert response.json()["code"] == "forbidden"
        assert (await stored(conversation))["last_seq"] == 0

    @pytest.mark.parametrize("conversation_id", ["nonsense", "6746d0a8f8f8f8f8f8f8f8f8"])
    async def test_does_not_find_an_unknown_conversation(self, client: AsyncClient, conversation_id: str) -> None:
        key = await make_api_key("admin")

        url = f"/api/v1/conversations/{conversation_id}/messages"
        response = await client.post(url, json={"content": "Hello"}, headers=key.headers)

        assert response.status_code == 404
        assert response.json()["code"] == "not_found"

    async def test_refuses_an_administrator_who_takes_no_part(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)
        outside, inside = await make_conversation(await make_user()), await make_conversation(admin)

        refused = await post(client, outside, admin.headers)
        written = await post(client, inside, admin.headers)

        assert (refused.status_code, written.status_code) == (403, 201)
        assert refused.json()["code"] == "forbidden"

    async def test_refuses_a_guest(self, client: AsyncClient) -> None:
        guest = await make_signed_in(role=Role.GUEST)
        conversation = await make_conversation(guest)

        response = await post(client, conversation, guest.headers)

        assert response.status_code == 403
        assert response.json()["code"] == "insufficient_scope"
        assert await Message.count() == 0

    @pytest.mark.parametrize(
        "content",
        ["x" * 32_000, "\N{TEAPOT}\N{GRINNING FACE}" * 16_000, "one\ntwo\r\n\tthree", " ", '{"$gt": ""}', "e\u0301"],
        ids=["32,000 characters", "32,000 wide characters", "lines", "space", "operator", "combining"],
    )
    async def test_keeps_the_content_as_it_is(self, client: AsyncClient, content: str) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        response = await post(client, conversation, ada.headers, content=content)

        assert response.status_code == 201
        listed = await client.get(url_of(conversation), headers=ada.headers)
        assert [message["content"] for message in listed.json()] == [content]

    @pytest.mark.parametrize(
        "content",
        [
            *("", "x" * 32_001, "NUL\x00", "bell\x07", "escape\x1b[0m", "delete\x7f", "C1\x85"),
            7,
            None,
            ["x"],
            {"$ne": ""},
        ],
        ids=lambda content: repr(content)[:20],
    )
    async def test_refuses_bad_content(self, client: AsyncClient, content: Any) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        response = await post(client, conversation, ada.headers, content=content)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"
        assert [error["loc"] for error in response.json()["errors"]] == [["body", "content"]]
        assert await Message.count() == 0

    async def test_refuses_half_a_character(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        headers = ada.headers | {"Content-Type": "application/json"}
        response = await client.post(url_of(conversation), content=rb'{"content": "\ud83d"}', headers=headers)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"

    @pytest.mark.parametrize(
        "body",
        [{"role": "tool"}, {"role": None}, {"user_id": "nonsense"}, {"model": "a\nb"}, {"seq": 7}, {"edited_at": None}],
        ids=str,
    )
    async def test_refuses_a_bad_body(self, client: AsyncClient, body: dict[str, Any]) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        response = await post(client, conversation, ada.headers, **body)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"
        assert await Message.count() == 0

    @pytest.mark.usefixtures("patience")
    async def test_gives_out_places_without_gaps_to_many_at_the_same_time(self, client: AsyncClient) -> None:
        people = [await make_signed_in() for _ in range(4)]
        conversation = await make_conversation(*people)

        answers = await asyncio.gather(
            *(post(client, conversation, person.headers) for person in people for _ in range(25))
        )

        assert [answer.status_code for answer in answers] == [201] * 100
        assert sorted(answer.json()["seq"] for answer in answers) == list(range(1, 101))
        after = await client.get(f"/api/v1/conversations/{conversation.id}", headers=people[0].headers)
        assert [message["seq"] for message in after.json()["messages"]] == list(range(1, 101))
        assert (after.json()["message_count"], after.json()["unread_count"]) == (100, 75)

    async def test_counts_nothing_when_the_message_can_not_be_stored(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await Message(
            conversation_id=conversation.id,
            seq=1,
            version=1,
            block=0,
            user_id=None,
            role="system",
            content="In the way",
        ).insert()
        before = await stored(conversation)

        response = await post(client, conversation, ada.headers)

        assert response.status_code == 500
        assert response.json()["code"] == "internal_error"
        assert await stored(conversation) == before
        assert await Message.count() == 1


class TestList:
    @pytest.mark.parametrize(("query", "seqs"), [("", [1, 2, 3]), ("order=asc", [1, 2, 3]), ("order=desc", [3, 2, 1])])
    async def test_shows_the_oldest_first_unless_asked(self, client: AsyncClient, query: str, seqs: list[int]) -> None:
        ada = await make_signed_in()
        conversation, other = await make_conversation(ada), await make_conversation(ada)
        await make_messages(conversation, 3)
        await make_messages(other, 1)

        assert await seqs_by_page(client, conversation, query, by=ada) == [seqs]

    @pytest.mark.parametrize(("role", "seqs"), [("user", [2]), ("assistant", [1, 4]), ("system", [3])])
    async def test_can_be_limited_to_a_role(self, client: AsyncClient, role: str, seqs: list[int]) -> None:
        ada, key = await make_signed_in(), await make_api_key("write")
        conversation = await make_conversation(ada)
        for written in ("assistant", "user", "system", "assistant"):
            await post(client, conversation, key.headers, role=written)

        assert await seqs_by_page(client, conversation, f"role={role}", by=ada) == [seqs]

    @pytest.mark.parametrize(
        ("query", "there", "meanwhile", "pages"),
        [
            ("limit=2", 5, 3, [[1, 2], [3, 4], [5, 6], [7, 8]]),
            ("limit=2&order=desc", 5, 3, [[5, 4], [3, 2], [1]]),
            ("limit=2&role=user", 4, 1, [[1, 2], [3, 4], [5]]),
            ("limit=3", 6, 0, [[1, 2, 3], [4, 5, 6]]),
        ],
    )
    async def test_pages_while_messages_are_written(
        self, client: AsyncClient, query: str, there: int, meanwhile: int, pages: list[list[int]]
    ) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await make_messages(conversation, there)

        assert await seqs_by_page(client, conversation, query, by=ada, meanwhile=meanwhile) == pages

    async def test_shows_fifty_at_first(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await make_messages(conversation, 51)

        assert await seqs_by_page(client, conversation, "", by=ada) == [list(range(1, 51)), [51]]

    async def test_can_be_polled_behind_the_last_message(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        last = (await make_messages(conversation, 2))[-1]

        nothing = await seqs_by_page(client, conversation, f"after={last.id}", by=ada)
        await make_messages(conversation, 3)
        something = await seqs_by_page(client, conversation, f"after={last.id}&limit=2", by=ada)

        assert nothing == [[]]
        assert something == [[3, 4], [5]]

    async def test_shows_what_is_behind_a_message_newest_first_too(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        first = (await make_messages(conversation, 4))[0]

        pages = await seqs_by_page(client, conversation, f"after={first.id}&order=desc&limit=2", by=ada)

        assert pages == [[4, 3], [2]]

    @pytest.mark.parametrize("after", ["{elsewhere}", "6746d0a8f8f8f8f8f8f8f8f8", "nonsense"])
    async def test_does_not_find_a_message_to_begin_behind_that_is_not_there(
        self, client: AsyncClient, after: str
    ) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        [elsewhere] = await make_messages(await make_conversation(ada))

        url = f"{url_of(conversation)}?after={after.format(elsewhere=elsewhere.id)}"
        response = await client.get(url, headers=ada.headers)

        assert response.status_code == 404
        assert response.json()["code"] == "not_found"

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "order=newest", "role=tool", "role="])
    async def test_refuses_a_bad_query(self, client: AsyncClient, query: str) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        response = await client.get(f"{url_of(conversation)}?{query}", headers=ada.headers)

        assert response.status_code == 422
        assert response.json()["code"] == "validation_error"

    @pytest.mark.parametrize("query", ["limit=1&order=desc", "limit=1&role=user"])
    async def test_refuses_a_cursor_of_another_list(self, client: AsyncClient, query: str) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await make_messages(conversation, 2)
        other = await client.get(f"{url_of(conversation)}?limit=1", headers=ada.headers)

        cursor = other.links["next"]["url"].partition("cursor=")[2]
        response = await client.get(f"{url_of(conversation)}?{query}&cursor={cursor}", headers=ada.headers)

        assert response.status_code == 400
        assert response.json()["code"] == "invalid_cursor"

    async def test_shows_who_wrote(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(username="ada"), await make_user(username="bob")
        conversation = await make_conversation(ada, bob)
        for writer in (ada, bob, None):
            await make_messages(conversation, by=writer)

        listed = await client.get(url_of(conversation), headers=ada.headers)

        assert [message["user"] for message in listed.json()] == [
            {"id": str(ada.id), "username": "ada"},
            {"id": str(bob.id), "username": "bob"},
            None,
        ]

    async def test_shows_a_new_name_at_once(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in(username="bob")
        conversation = await make_conversation(ada, bob)
        await make_messages(conversation, by=bob)
        live_cache.hear(60)  # so that names are remembered
        await client.get(url_of(conversation), headers=ada.headers)

        await client.patch("/api/v1/users/me", json={"username": "robert"}, headers=bob.headers)

        listed = await client.get(url_of(conversation), headers=ada.headers)
        assert [message["user"]["username"] for message in listed.json()] == ["robert"]

    async def test_keeps_the_id_of_a_writer_whose_account_is_gone(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_user(username="bob")
        conversation = await make_conversation(ada, bob)
        await make_messages(conversation, by=bob)
        live_cache.hear(60)  # so that names are remembered
        await client.get(url_of(conversation), headers=ada.headers)

        key = await make_api_key("admin")
        deleted = await client.delete(f"/api/v1/users/{bob.id}", headers=key.headers)

        assert deleted.status_code == 204
        listed = await client.get(url_of(conversation), headers=ada.headers)
        assert [message["user"] for message in listed.json()] == [{"id": str(bob.id), "username": None}]
