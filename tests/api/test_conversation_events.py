"""What is kept for those who listen: everything that happens in a conversation, in order and without gaps."""

import asyncio
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from httpx import AsyncClient, Response

from app.core import background
from app.core.clock import utc_now
from app.models.conversation import Conversation
from app.models.conversation_event import ConversationEvent
from app.models.message import Message
from tests.api.test_messages import post, stored
from tests.conftest import no_event_can_be_written
from tests.factories import SignedInUser, make_conversation, make_signed_in


class Scene(NamedTuple):
    """A conversation that Ada owns and Bob takes part in, with a message of Bob's. Cy takes no part."""

    client: AsyncClient
    ada: SignedInUser
    bob: SignedInUser
    cy: SignedInUser
    conversation: Conversation
    message_id: str

    async def ask(self, method: str, path: str = "", body: Any = None, *, by: SignedInUser) -> Response:
        url = f"/api/v1/conversations/{self.conversation.id}{path}"
        return await self.client.request(method, url, json=body, headers=by.headers)

    async def happened(self) -> list[tuple[int, str, dict[str, Any]]]:
        """Versions, types and data, ids as text."""
        events = await ConversationEvent.find({"conversation_id": self.conversation.id}).sort("version").to_list()
        return [
            (event.version or 0, event.type, {name: _plain(value) for name, value in event.data.items()})
            for event in events
        ]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | None) else str(value)


@pytest.fixture
async def scene(client: AsyncClient) -> Scene:
    ada, bob, cy = [await make_signed_in() for _ in range(3)]
    conversation = await make_conversation(ada, bob)
    message_id = (await post(client, conversation, bob.headers)).json()["id"]
    return Scene(client, ada, bob, cy, conversation, message_id)


ACTS: dict[str, tuple[str, str, Any, Any]] = {
    "message.updated": ("PATCH", "/messages/{message}", {"content": "Other"}, {"message_id": "{message}"}),
    "message.deleted": ("DELETE", "/messages/{message}", None, {"message_id": "{message}"}),
    "participant.read": (
        "POST",
        "/read",
        {"message_id": "{message}"},
        {"user_id": "{bob}", "message_id": "{message}", "last_read_seq": 1},
    ),
    "conversation.updated": ("PATCH", "", {"title": "Tea", "archived": True}, {"title": "Tea", "archived": True}),
    "participant.added": ("POST", "/participants", {"user_id": "{cy}"}, {"user_id": "{cy}", "role": "member"}),
    "participant.removed": ("DELETE", "/participants/{ada}", None, {"user_id": "{ada}", "owner_id": "{bob}"}),
    "conversation.deleted": ("DELETE", "", None, {}),
}
OWNERS = {"conversation.updated", "participant.added", "participant.removed", "conversation.deleted"}


def filled(value: Any, scene: Scene) -> Any:
    names = {"message": scene.message_id, "ada": scene.ada.id, "bob": scene.bob.id, "cy": scene.cy.id}
    if isinstance(value, dict):
        return {name: filled(part, scene) for name, part in value.items()}
    return value.format(**names) if isinstance(value, str) else value


async def act(scene: Scene, kind: str) -> tuple[Response, dict[str, Any]]:
    """The answer, and what is to be told of it."""
    method, path, body, data = [filled(part, scene) for part in ACTS[kind]]
    by = scene.ada if kind in OWNERS else scene.bob
    return await scene.ask(method, path, body, by=by), data


class TestEvents:
    @pytest.mark.parametrize("kind", ACTS)
    async def test_of_a_change_are_one_with_the_version_it_made(self, scene: Scene, kind: str) -> None:
        response, data = await act(scene, kind)
        await background.drain()

        assert response.status_code in {200, 201, 204}
        assert await scene.happened() == [(3, kind, data)]
        if kind != "conversation.deleted":
            assert (await stored(scene.conversation))["version"] == 3

    @pytest.mark.parametrize("kind", ACTS)
    async def test_of_a_change_are_kept_for_seven_days(self, scene: Scene, kind: str) -> None:
        await act(scene, kind)
        await background.drain()

        [event] = await ConversationEvent.find_all().to_list()
        assert timedelta(days=7) - timedelta(minutes=1) < event.expires_at - utc_now() <= timedelta(days=7)

    @pytest.mark.parametrize("kind", sorted(ACTS.keys() - {"participant.read"}))
    async def test_of_what_can_not_be_recorded_are_none(self, scene: Scene, kind: str) -> None:
        async with no_event_can_be_written():
            response, _ = await act(scene, kind)

        assert response.status_code == 500
        assert await scene.happened() == []
        assert (await stored(scene.conversation))["version"] == 2

    @pytest.mark.parametrize("kind", ACTS)
    async def test_that_can_not_be_kept_keep_the_change_from_happening(self, scene: Scene, kind: str) -> None:
        database = ConversationEvent.get_pymongo_collection().database
        before = (await stored(scene.conversation), await Message.find_all().to_list())
        await database.command("collMod", "conversation_events", validator={"type": {"$exists": False}})
        try:
            response, _ = await act(scene, kind)
        finally:
            await database.command("collMod", "conversation_events", validator={})

        assert response.status_code == 500
        assert (await stored(scene.conversation), await Message.find_all().to_list()) == before

    async def test_of_leaving_name_no_owner_when_none_is_new(self, scene: Scene) -> None:
        await scene.ask("DELETE", f"/participants/{scene.bob.id}", by=scene.bob)
        await scene.ask("DELETE", f"/participants/{scene.ada.id}", by=scene.ada)

        assert await scene.happened() == [
            (3, "participant.removed", {"user_id": str(scene.bob.id)}),
            (4, "participant.removed", {"user_id": str(scene.ada.id)}),
        ]

    async def test_of_a_new_owner_say_that_it_is_one(self, scene: Scene) -> None:
        await scene.ask("POST", "/participants", {"user_id": str(scene.cy.id), "role": "owner"}, by=scene.ada)

        assert await scene.happened() == [(3, "participant.added", {"user_id": str(scene.cy.id), "role": "owner"})]

    async def test_name_only_what_was_asked_to_change(self, scene: Scene) -> None:
        await scene.ask("PATCH", "", {"title": None}, by=scene.ada)

        assert await scene.happened() == [(3, "conversation.updated", {"title": None})]

    async def test_are_none_for_what_changes_nothing(self, scene: Scene) -> None:
        await scene.ask("POST", "/participants", {"user_id": str(scene.bob.id)}, by=scene.ada)
        for by in (scene.ada, scene.cy):
            await scene.ask("PATCH", f"/messages/{scene.message_id}", {"content": "x"}, by=by)
            await scene.ask("DELETE", f"/participants/{scene.cy.id}", by=by)
        await scene.ask("PATCH", "", {"title": "Mine"}, by=scene.bob)

        assert await scene.happened() == []
        assert (await stored(scene.conversation))["version"] == 2

    async def test_and_messages_are_in_one_order_without_gaps_whoever_does_what_at_once(self, scene: Scene) -> None:
        async def live(by: SignedInUser, number: int) -> None:
            said = (await post(scene.client, scene.conversation, by.headers)).json()["id"]
            batch = {"messages": [{"content": "a"}, {"content": "b"}]}
            answers = [
                await scene.ask("POST", "/messages/batch", batch, by=by),
                await scene.ask("POST", "/read", {"message_id": said}, by=by),
                await scene.ask("PATCH", f"/messages/{said}", {"content": "x"}, by=by),
                await scene.ask("PATCH", "", {"title": f"Tea {number}"}, by=scene.ada),
                await scene.ask("DELETE", f"/messages/{said}", by=by),
            ]
            assert {answer.status_code for answer in answers} <= {200, 201, 204}

        people = (scene.ada, scene.bob)
        await asyncio.gather(*(live(by, number) for number, by in enumerate(people * 3)))

        versions = [version for version, *_ in await scene.happened()]
        versions += [message.version for message in await Message.find_all().to_list()]
        assert sorted(versions) == list(range(2, (await stored(scene.conversation))["version"] + 1))
        assert len(versions) > 6 * (3 + 3)

    async def test_of_a_writer_that_is_removed_come_behind_all_that_it_wrote(self, scene: Scene) -> None:
        async def write() -> list[Response]:
            return [await post(scene.client, scene.conversation, scene.bob.headers) for _ in range(10)]

        *answers, removed = await asyncio.gather(
            write(), write(), scene.ask("DELETE", f"/participants/{scene.bob.id}", by=scene.ada)
        )

        assert removed.status_code == 200
        statuses = [answer.status_code for crowd in answers for answer in crowd]
        assert set(statuses) <= {201, 404}
        [(version, kind, _)] = await scene.happened()
        messages = await Message.find_all().to_list()
        assert kind == "participant.removed"
        assert version == max(message.version for message in messages) + 1
        assert len(messages) == statuses.count(201) + 1
