"""Several messages at once: in order, all of them or none."""

import asyncio
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core.scopes import Role
from app.models.conversation import Conversation
from app.models.message import Message
from app.models.usage_counter import UsageCounter
from tests.api.test_messages import post, stored, url_of
from tests.factories import (
    StoredUser,
    make_api_key,
    make_conversation,
    make_messages,
    make_signed_in,
    make_upload,
    make_user,
)


async def post_all(
    client: AsyncClient, conversation: Conversation, headers: dict[str, str], *messages: dict[str, Any]
) -> Response:
    return await client.post(f"{url_of(conversation)}/batch", json={"messages": messages}, headers=headers)


def lines(*contents: str) -> list[dict[str, Any]]:
    return [{"content": content} for content in contents]


async def counted(user: StoredUser) -> int:
    counters = await UsageCounter.find({"user_id": user.id}).to_list()
    return sum(counter.messages for counter in counters)


async def messages_of(conversation: Conversation) -> list[Message]:
    return await Message.find({"conversation_id": conversation.id}).sort("seq").to_list()


class TestPostAll:
    async def test_keeps_the_order(self, client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada")
        conversation = await make_conversation(ada)
        await make_messages(conversation, 2, by=ada)

        response = await post_all(client, conversation, ada.headers, *lines("one", "two", "three"))
        after = await post(client, conversation, ada.headers)

        assert response.status_code == 201
        assert [(row["seq"], row["content"]) for row in response.json()] == [(3, "one"), (4, "two"), (5, "three")]
        assert {row["user"]["username"] for row in response.json()} == {"ada"}
        assert after.json()["seq"] == 6
        listed = await client.get(f"{url_of(conversation)}?limit=3&order=desc", headers=ada.headers)
        assert [row["id"] for row in listed.json()] == [
            row["id"] for row in (after.json(), *reversed(response.json()[1:]))
        ]

    async def test_gives_each_a_place_among_all_that_happens(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        await post_all(client, conversation, ada.headers, *lines("one", "two"))
        await client.patch(f"/api/v1/conversations/{conversation.id}", json={"title": "Tea"}, headers=ada.headers)
        await post_all(client, conversation, ada.headers, *lines("three", "four"))

        assert [message.version for message in await messages_of(conversation)] == [2, 3, 5, 6]
        after = await stored(conversation)
        assert (after["version"], after["message_count"], after["last_seq"]) == (6, 4, 4)

    async def test_counts_against_the_day_of_each_writer(self, client: AsyncClient) -> None:
        key, ada, bob, cy = (
            await make_api_key("write"),
            await make_signed_in(),
            await make_signed_in(),
            await make_user(),
        )
        conversation = await make_conversation(ada, bob, cy)

        said = [("user", ada), ("user", bob), ("assistant", bob), ("user", ada), ("system", None), ("user", None)]
        bodies = [{"content": "x", "role": role, "user_id": str(user.id) if user else None} for role, user in said]
        response = await post_all(client, conversation, key.headers, *bodies)

        assert response.status_code == 201
        assert [row["user"] and row["user"]["id"] for row in response.json()] == [
            user and str(user.id) for _, user in said
        ]
        assert [await counted(user) for user in (ada, bob, cy)] == [2, 1, 0]

    async def test_is_unread_to_the_others_only(self, client: AsyncClient) -> None:
        key, ada, bob, cy = await make_api_key("write"), *[await make_signed_in() for _ in range(3)]
        conversation = await make_conversation(ada, bob, cy)

        bodies = [{"content": "x", "user_id": str(user.id)} for user in (ada, bob, ada)]
        await post_all(client, conversation, key.headers, {"content": "x", "role": "system"}, *bodies)

        shown = [
            await client.get(f"/api/v1/conversations/{conversation.id}", headers=reader.headers)
            for reader in (ada, bob, cy)
        ]
        assert [answer.json()["unread_count"] for answer in shown] == [2, 3, 4]

    async def test_takes_five_hundred(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        response = await post_all(client, conversation, ada.headers, *lines(*(str(at) for at in range(500))))

        assert response.status_code == 201
        assert [row["content"] for row in response.json()] == [str(at) for at in range(500)]
        assert (await stored(conversation))["message_count"] == 500

    async def test_is_not_mixed_with_what_others_say_meanwhile(self, client: AsyncClient) -> None:
        people = [await make_signed_in() for _ in range(3)]
        conversation = await make_conversation(*people)

        answers = await asyncio.gather(
            *(post_all(client, conversation, person.headers, *lines("a", "b", "c")) for person in people * 4),
            *(post(client, conversation, person.headers) for person in people * 4),
        )

        assert {answer.status_code for answer in answers} == {201}
        batches = [[row["seq"] for row in answer.json()] for answer in answers[:12]]
        assert [batch for batch in batches if batch != list(range(batch[0], batch[0] + 3))] == []
        assert [message.seq for message in await messages_of(conversation)] == list(range(1, 49))
        assert [message.version for message in await messages_of(conversation)] == list(range(2, 50))
        after = await stored(conversation)
        assert (after["message_count"], after["last_seq"], after["version"]) == (48, 48, 49)
        assert [entry["sent"] for entry in after["participants"]] == [16, 16, 16]


class TestRefusal:
    async def test_of_one_who_takes_no_part_names_the_message(self, client: AsyncClient) -> None:
        key, ada, stranger = await make_api_key("write"), await make_user(), await make_user()
        conversation = await make_conversation(ada)
        before = await stored(conversation)

        bodies = [{"content": "x", "user_id": str(user.id)} for user in (ada, ada, stranger, ada)]
        response = await post_all(client, conversation, key.headers, *bodies)

        assert response.status_code == 403
        assert response.json()["code"] == "forbidden"
        assert "messages[2]" in response.json()["detail"]
        assert await stored(conversation) == before
        assert await Message.count() == 0
        assert [await counted(user) for user in (ada, stranger)] == [0, 0]

    @pytest.mark.parametrize("more", [{"role": "assistant"}, {"user_id": "{bob}"}], ids=str)
    async def test_of_a_user_who_does_not_write_as_itself_names_the_message(
        self, client: AsyncClient, more: dict[str, str]
    ) -> None:
        ada, bob = await make_signed_in(), await make_user()
        conversation = await make_conversation(ada, bob)

        bad = {"content": "x"} | {name: value.format(bob=bob.id) for name, value in more.items()}
        response = await post_all(client, conversation, ada.headers, *lines("fine"), bad)

        assert response.status_code == 403
        assert response.json()["code"] == "forbidden"
        assert "messages[1]" in response.json()["detail"]
        assert (await Message.count(), await counted(ada)) == (0, 0)

    async def test_of_an_administrator_who_takes_no_part(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)
        conversation = await make_conversation(await make_user())

        response = await post_all(client, conversation, admin.headers, *lines("one", "two"))

        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert (await Message.count(), await counted(admin)) == (0, 0)

    async def test_of_what_one_of_the_writers_has_no_room_for_counts_nobodys(self, client: AsyncClient) -> None:
        key, ada = await make_api_key("write"), await make_user()
        bob = await make_user(limits={"daily_messages": 2})
        conversation = await make_conversation(ada, bob)
        before = await stored(conversation)

        bodies = [{"content": "x", "user_id": str(user.id)} for user in (ada, bob, bob, bob)]
        refused = await post_all(client, conversation, key.headers, *bodies)
        after = await stored(conversation)
        written = await post_all(client, conversation, key.headers, *bodies[:3])

        assert (refused.status_code, refused.json()["code"]) == (429, "daily_limit_reached")
        assert int(refused.headers["retry-after"]) > 0
        assert after == before
        assert written.status_code == 201
        assert (await counted(ada), await counted(bob)) == (1, 2)

    async def test_at_the_limit_is_exact_when_many_come_at_once(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": 10})
        conversations = [await make_conversation(ada) for _ in range(4)]

        answers = await asyncio.gather(
            *(post_all(client, conversation, ada.headers, *lines("a", "b", "c")) for conversation in conversations * 3)
        )

        assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 9
        assert (await Message.count(), await counted(ada)) == (9, 9)

    async def test_leaves_nothing_when_one_can_not_be_stored(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        in_the_way = Message(
            conversation_id=conversation.id, seq=2, version=2, block=0, user_id=None, role="system", content="Here"
        )
        await in_the_way.insert()
        before = await stored(conversation)

        response = await post_all(client, conversation, ada.headers, *lines("one", "two", "three"))

        assert (response.status_code, response.json()["code"]) == (500, "internal_error")
        assert await stored(conversation) == before
        assert [message.id for message in await messages_of(conversation)] == [in_the_way.id]
        assert await counted(ada) == 0

    @pytest.mark.parametrize(
        ("messages", "loc"),
        [
            ([], ["body", "messages"]),
            ([{"content": "x"}] * 501, ["body", "messages"]),
            ("Hello", ["body", "messages"]),
            ([{"content": "x"}, {"content": ""}], ["body", "messages", 1, "content"]),
            ([{"content": "x"}, {"content": "x", "seq": 7}], ["body", "messages", 1, "seq"]),
        ],
        ids=lambda value: repr(value)[:30],
    )
    async def test_of_a_bad_body_says_where(self, client: AsyncClient, messages: Any, loc: list[str | int]) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        url = f"{url_of(conversation)}/batch"
        response = await client.post(url, json={"messages": messages}, headers=ada.headers)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
        assert [error["loc"] for error in response.json()["errors"]] == [loc]
        assert await Message.count() == 0

    async def test_of_more_than_a_body_may_hold(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        response = await post_all(client, conversation, ada.headers, *lines(*["x" * 32_000] * 33))

        assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
        assert await Message.count() == 0

    @pytest.mark.parametrize("conversation_id", ["nonsense", "6746d0a8f8f8f8f8f8f8f8f8"])
    async def test_of_a_conversation_that_is_not_there(self, client: AsyncClient, conversation_id: str) -> None:
        ada = await make_signed_in()

        url = f"/api/v1/conversations/{conversation_id}/messages/batch"
        response = await client.post(url, json={"messages": lines("x")}, headers=ada.headers)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert await counted(ada) == 0


class TestAttachments:
    @pytest.mark.parametrize("count", [1, 20])
    async def test_are_kept_in_order(self, client: AsyncClient, count: int) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        ids = [str((await make_upload(ada)).id) for _ in range(count)]

        response = await post(client, conversation, ada.headers, attachment_ids=ids)

        assert response.status_code == 201
        listed = await client.get(url_of(conversation), headers=ada.headers)
        assert [row["attachment_ids"] for row in (response.json(), *listed.json())] == [ids, ids]

    @pytest.mark.parametrize(
        "ids",
        [["6746d0a8f8f8f8f8f8f8f8f8"] * 2, [str(ObjectId()) for _ in range(21)], ["nonsense"], "x", [None]],
        ids=["twice the same", "21", "nonsense", "no list", "null"],
    )
    async def test_are_refused_otherwise(self, client: AsyncClient, ids: Any) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)

        response = await post(client, conversation, ada.headers, attachment_ids=ids)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
        assert response.json()["errors"][0]["loc"][:2] == ["body", "attachment_ids"]
        assert await Message.count() == 0
