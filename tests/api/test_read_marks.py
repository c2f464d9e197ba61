"""How far participants have read, and what is unread to them."""

import asyncio
import random
from typing import Any, NamedTuple

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core.scopes import Role
from app.models.conversation import Conversation
from app.models.conversation_event import ConversationEvent
from app.models.message import Message
from tests.api.test_messages import post, stored
from tests.factories import SignedInUser, make_api_key, make_conversation, make_messages, make_signed_in, make_user
from tests.test_architecture import Profile, profile

__all__ = ["profile"]  # the fixture


class Scene(NamedTuple):
    """A conversation of Ada and Bob. Cy takes no part."""

    client: AsyncClient
    ada: SignedInUser
    bob: SignedInUser
    cy: SignedInUser
    conversation: Conversation

    @property
    def url(self) -> str:
        return f"/api/v1/conversations/{self.conversation.id}"

    async def say(self, *speakers: SignedInUser) -> list[str]:
        """The ids of messages that they have posted."""
        return [(await post(self.client, self.conversation, by.headers)).json()["id"] for by in speakers]

    async def mark(self, message_id: Any, by: Any, **body: Any) -> Response:
        return await self.client.post(f"{self.url}/read", json={"message_id": message_id} | body, headers=by.headers)

    async def unread(self, by: SignedInUser) -> int:
        """As the conversation and the list say."""
        shown = (await self.client.get(self.url, headers=by.headers)).json()["unread_count"]
        [row] = (await self.client.get("/api/v1/conversations", headers=by.headers)).json()
        assert row["unread_count"] == shown
        return int(shown)


@pytest.fixture
async def scene(client: AsyncClient) -> Scene:
    ada, bob, cy = [await make_signed_in() for _ in range(3)]
    return Scene(client, ada, bob, cy, await make_conversation(ada, bob))


class TestMark:
    @pytest.mark.parametrize(
        ("at", "to_ada", "to_bob"),
        # Ada, Bob, Bob, Ada, Ada, Bob
        [(1, 3, 2), (2, 2, 2), (3, 1, 2), (4, 1, 1), (5, 1, 0), (6, 0, 0)],
    )
    async def test_leaves_as_unread_what_others_said_behind_it(
        self, scene: Scene, at: int, to_ada: int, to_bob: int
    ) -> None:
        ids = await scene.say(scene.ada, scene.bob, scene.bob, scene.ada, scene.ada, scene.bob)

        answers = [await scene.mark(ids[at - 1], by) for by in (scene.ada, scene.bob)]

        assert [answer.status_code for answer in answers] == [200, 200]
        assert [answer.json() for answer in answers] == [
            {"last_read_seq": at, "unread_count": to_ada},
            {"last_read_seq": at, "unread_count": to_bob},
        ]
        assert [await scene.unread(by) for by in (scene.ada, scene.bob)] == [to_ada, to_bob]

    async def test_shows_everybody_how_far_everybody_has_read(self, scene: Scene) -> None:
        ids = await scene.say(scene.ada, scene.ada)
        await scene.mark(ids[0], scene.bob)

        shown = await scene.client.get(scene.url, headers=scene.ada.headers)

        assert [entry["last_read_seq"] for entry in shown.json()["participants"]] == [0, 1]

    async def test_never_moves_back(self, scene: Scene) -> None:
        ids = await scene.say(scene.ada, scene.ada, scene.ada)
        await scene.mark(ids[1], scene.bob)
        before = await stored(scene.conversation)

        answers = [await scene.mark(message_id, scene.bob) for message_id in (ids[0], ids[1])]

        assert [answer.json() for answer in answers] == [{"last_read_seq": 2, "unread_count": 1}] * 2
        assert await stored(scene.conversation) == before
        assert await ConversationEvent.count() == 1

    async def test_counts_what_is_said_afterwards(self, scene: Scene) -> None:
        [first] = await scene.say(scene.ada)
        await scene.mark(first, scene.bob)

        await scene.say(scene.bob, scene.ada, scene.bob, scene.ada)

        assert await scene.unread(scene.bob) == 2

    async def test_counts_tombstones_as_what_others_said(self, scene: Scene) -> None:
        ids = await scene.say(scene.bob, scene.ada, scene.ada)
        for message_id, by in ((ids[2], scene.ada), (ids[0], scene.bob)):
            deleted = await scene.client.delete(f"{scene.url}/messages/{message_id}", headers=by.headers)
            assert deleted.status_code == 204

        assert (await scene.mark(ids[1], scene.bob)).json()["unread_count"] == 1
        assert (await scene.mark(ids[2], scene.bob)).json()["unread_count"] == 0

    async def test_is_exact_however_it_is_moved(self, scene: Scene) -> None:
        chance = random.Random(7)  # noqa: S311 - the same story every time
        key, people = await make_api_key("write"), [scene.ada, scene.bob]
        said: list[tuple[str, Any]] = []
        marks = dict.fromkeys([scene.ada.id, scene.bob.id], 0)
        for _ in range(120):
            reader = chance.choice(people)
            if said and chance.random() < 0.4:
                at = chance.randrange(len(said))
                marks[reader.id] = max(marks[reader.id], at + 1)
                answer = (await scene.mark(said[at][0], reader)).json()
                unread = sum(writer != reader.id for _, writer in said[marks[reader.id] :])
                assert answer == {"last_read_seq": marks[reader.id], "unread_count": unread}
            elif chance.random() < 0.3:
                bodies = [{"content": "x", "user_id": str(by.id)} for by in chance.choices(people, k=3)]
                url = f"{scene.url}/messages/batch"
                batch = await scene.client.post(url, json={"messages": bodies}, headers=key.headers)
                said += [(row["id"], ObjectId(row["user"]["id"])) for row in batch.json()]
            else:
                [message_id] = await scene.say(reader)
                said.append((message_id, reader.id))
        assert [await scene.unread(by) for by in people] == [
            sum(writer != by.id for _, writer in said[marks[by.id] :]) for by in people
        ]

    async def test_is_exact_while_everybody_writes_and_reads(self, scene: Scene) -> None:
        async def take_part(by: SignedInUser) -> None:
            for number in range(12):
                [message_id] = await scene.say(by)
                if number % 3 == 0:
                    assert (await scene.mark(message_id, by)).status_code == 200

        await asyncio.gather(*(take_part(by) for by in (scene.ada, scene.bob) for _ in range(2)))

        messages = await Message.find_all().sort("seq").to_list()
        after = await stored(scene.conversation)
        for entry in after["participants"]:
            unread = [row for row in messages[entry["last_read_seq"] :] if row.user_id != entry["user_id"]]
            by = scene.ada if entry["user_id"] == scene.ada.id else scene.bob
            assert await scene.unread(by) == len(unread)

    async def test_of_one_who_came_back_counts_from_then_on(self, scene: Scene) -> None:
        participants = f"{scene.url}/participants"
        early = await scene.say(scene.bob, scene.bob, scene.ada)
        await scene.client.delete(f"{participants}/{scene.bob.id}", headers=scene.ada.headers)
        await scene.say(scene.ada)
        await scene.client.post(participants, json={"user_id": str(scene.bob.id)}, headers=scene.ada.headers)

        back = await scene.mark(early[0], scene.bob)
        ids = await scene.say(scene.ada, scene.bob, scene.ada)

        assert back.json() == {"last_read_seq": 4, "unread_count": 0}
        assert (await scene.mark(ids[0], scene.bob)).json() == {"last_read_seq": 5, "unread_count": 1}
        assert (await scene.mark(ids[1], scene.bob)).json() == {"last_read_seq": 6, "unread_count": 1}
        assert (await scene.mark(ids[2], scene.bob)).json() == {"last_read_seq": 7, "unread_count": 0}

    async def test_costs_the_same_however_much_was_said(self, scene: Scene, profile: Profile) -> None:
        conversation = scene.conversation
        for by in (scene.ada, scene.bob, scene.ada):
            rows = await make_messages(conversation, 1000, by=by)
        await make_messages(conversation, 1, by=scene.bob)

        profile.database.command("profile", 2)
        answers = [await scene.mark(str(rows[500].id), by) for by in (scene.ada, scene.bob)]
        profile.database.command("profile", 0)

        assert [answer.json() for answer in answers] == [
            {"last_read_seq": 2501, "unread_count": 1},
            {"last_read_seq": 2501, "unread_count": 499},
        ]
        plans = [plan for plan in profile.plans() if plan["ns"].endswith((".messages", ".conversations"))]
        assert len(plans) >= 8
        assert max(plan["docsExamined"] for plan in plans) <= 1


class TestForWhom:
    async def test_a_service_marks_for_a_participant(self, scene: Scene) -> None:
        [message_id] = await scene.say(scene.ada)

        marked = await scene.mark(message_id, await make_api_key("write"), user_id=str(scene.bob.id))

        assert (marked.status_code, marked.json()) == (200, {"last_read_seq": 1, "unread_count": 0})
        assert await scene.unread(scene.bob) == 0

    async def test_a_service_says_for_whom(self, scene: Scene) -> None:
        [message_id] = await scene.say(scene.ada)

        response = await scene.mark(message_id, await make_api_key("write"))

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
        assert [error["loc"] for error in response.json()["errors"]] == [["body", "user_id"]]

    async def test_a_service_does_not_mark_for_one_who_takes_no_part(self, scene: Scene) -> None:
        [message_id] = await scene.say(scene.ada)

        response = await scene.mark(message_id, await make_api_key("write"), user_id=str(scene.cy.id))

        assert (response.status_code, response.json()["code"]) == (403, "forbidden")

    async def test_a_user_and_its_personal_key_mark_for_themselves(self, scene: Scene) -> None:
        ids = await scene.say(scene.ada, scene.ada)
        key = await make_api_key("write", owner=scene.bob)

        by_key = await scene.mark(ids[0], key)
        by_name = await scene.mark(ids[1], scene.bob, user_id=str(scene.bob.id))
        for_another = [await scene.mark(ids[1], by, user_id=str(scene.ada.id)) for by in (scene.bob, key)]

        assert [by_key.json()["last_read_seq"], by_name.json()["last_read_seq"]] == [1, 2]
        assert [(answer.status_code, answer.json()["code"]) for answer in for_another] == [(403, "forbidden")] * 2

    async def test_an_administrator_who_takes_no_part_has_nothing_to_mark(self, scene: Scene) -> None:
        [message_id] = await scene.say(scene.ada)

        response = await scene.mark(message_id, await make_signed_in(role=Role.ADMIN))

        assert (response.status_code, response.json()["code"]) == (403, "forbidden")

    async def test_a_stranger_does_not_find_it(self, scene: Scene) -> None:
        [message_id] = await scene.say(scene.ada)
        before = await stored(scene.conversation)

        response = await scene.mark(message_id, scene.cy)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert await stored(scene.conversation) == before


class TestRefusal:
    @pytest.mark.parametrize(
        "message_id", ["6746d0a8f8f8f8f8f8f8f8f8", "{elsewhere}", "nonsense", None, 7, {"$gt": ""}]
    )
    async def test_of_a_message_that_is_not_there(self, scene: Scene, message_id: Any) -> None:
        [elsewhere] = await make_messages(await make_conversation(await make_user(), scene.bob))
        if isinstance(message_id, str):
            message_id = message_id.format(elsewhere=elsewhere.id)
        before = await stored(scene.conversation)

        response = await scene.mark(message_id, scene.bob)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
        assert [error["loc"] for error in response.json()["errors"]] == [["body", "message_id"]]
        assert await stored(scene.conversation) == before

    async def test_of_other_fields(self, scene: Scene) -> None:
        [message_id] = await scene.say(scene.ada)

        response = await scene.mark(message_id, scene.bob, last_read_seq=7)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
