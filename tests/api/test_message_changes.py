"""Messages that are there already: read, edited and deleted one by one."""

import asyncio
from typing import Any, NamedTuple

import pytest
from httpx import AsyncClient, Response

from app.core.scopes import Role
from app.models.audit_event import AuditEvent
from app.models.conversation import Conversation
from app.models.conversation_event import ConversationEvent
from app.models.message import Message
from tests.api.test_messages import post, stored, url_of
from tests.conftest import no_event_can_be_written
from tests.factories import SignedInUser, make_api_key, make_conversation, make_signed_in, make_upload


class Scene(NamedTuple):
    """A conversation that Ada owns and Bob takes part in; the message is Bob's. Cy takes no part."""

    client: AsyncClient
    ada: SignedInUser
    bob: SignedInUser
    cy: SignedInUser
    conversation: Conversation
    message: dict[str, Any]

    @property
    def url(self) -> str:
        return f"{url_of(self.conversation)}/{self.message['id']}"

    async def edit(self, by: SignedInUser, content: str = "Good day") -> Response:
        return await self.client.patch(self.url, json={"content": content}, headers=by.headers)

    async def delete(self, by: SignedInUser) -> Response:
        return await self.client.delete(self.url, headers=by.headers)

    async def shown(self) -> dict[str, Any]:
        response = await self.client.get(self.url, headers=self.ada.headers)
        assert response.status_code == 200
        message: dict[str, Any] = response.json()
        return message

    async def state(self) -> list[Any]:
        """All that a change of the message would change."""
        documents = [await Message.find_all().to_list(), await ConversationEvent.find_all().to_list()]
        return [*documents, await stored(self.conversation)]


@pytest.fixture
async def scene(client: AsyncClient) -> Scene:
    ada, bob, cy = await make_signed_in(), await make_signed_in(username="bob"), await make_signed_in()
    conversation = await make_conversation(ada, bob)
    attachments = [str((await make_upload(bob)).id)]
    posted = await post(client, conversation, bob.headers, content="Hello", model="gpt", attachment_ids=attachments)
    return Scene(client, ada, bob, cy, conversation, posted.json())


class TestGet:
    async def test_shows_what_the_list_shows(self, scene: Scene) -> None:
        listed = await scene.client.get(url_of(scene.conversation), headers=scene.ada.headers)

        assert [await scene.shown()] == listed.json() == [scene.message]

    @pytest.mark.parametrize("message_id", ["nonsense", "6746d0a8f8f8f8f8f8f8f8f8", "{elsewhere}"])
    @pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
    async def test_or_change_finds_none_that_is_not_there(self, scene: Scene, method: str, message_id: str) -> None:
        other = await make_conversation(scene.ada)
        elsewhere = (await post(scene.client, other, scene.ada.headers)).json()["id"]
        before = await scene.state()

        url = f"{url_of(scene.conversation)}/{message_id.format(elsewhere=elsewhere)}"
        body = {"content": "x"} if method == "PATCH" else None
        response = await scene.client.request(method, url, json=body, headers=scene.ada.headers)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert await scene.state() == before


class TestEdit:
    async def test_changes_what_was_said_and_says_when(self, scene: Scene) -> None:
        response = await scene.edit(scene.bob, "Good\nday")

        assert response.status_code == 200
        edited_at = response.json()["edited_at"]
        assert edited_at >= scene.message["created_at"]
        assert response.json() == scene.message | {"content": "Good\nday", "edited_at": edited_at}
        assert await scene.shown() == response.json()

    async def test_leaves_order_and_counts_as_they_are(self, scene: Scene) -> None:
        await post(scene.client, scene.conversation, scene.ada.headers)
        before = await stored(scene.conversation)

        await scene.edit(scene.bob)

        after = await stored(scene.conversation)
        assert after["version"] == before["version"] + 1
        for name in ("last_seq", "message_count", "last_activity_at", "participants"):
            assert after[name] == before[name]

    @pytest.mark.parametrize("content", ["", "x" * 32_001, "NUL\x00", None, 7])
    async def test_refuses_bad_content(self, scene: Scene, content: Any) -> None:
        before = await scene.state()

        response = await scene.edit(scene.bob, content)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
        assert await scene.state() == before

    @pytest.mark.parametrize("body", [{}, {"content": "x", "role": "system"}, {"content": "x", "model": "y"}], ids=str)
    async def test_refuses_other_fields(self, scene: Scene, body: dict[str, str]) -> None:
        response = await scene.client.patch(scene.url, json=body, headers=scene.bob.headers)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")

    async def test_of_a_deleted_one_is_refused(self, scene: Scene) -> None:
        await scene.delete(scene.bob)
        before = await scene.state()

        response = await scene.edit(scene.bob)

        assert (response.status_code, response.json()["code"]) == (409, "conflict")
        assert await scene.state() == before

    async def test_at_the_same_time_as_deleting_leaves_nothing_of_what_was_said(self, scene: Scene) -> None:
        edits = [scene.edit(scene.bob, f"Secret {number}") for number in range(5)]
        answers = await asyncio.gather(*edits, scene.delete(scene.bob))

        assert {answer.status_code for answer in answers[:5]} <= {200, 409}
        assert answers[5].status_code == 204
        assert (await scene.shown())["content"] == ""


class TestDelete:
    async def test_leaves_a_tombstone(self, scene: Scene) -> None:
        response = await scene.delete(scene.bob)

        assert (response.status_code, response.content) == (204, b"")
        left = await scene.shown()
        deleted_at = left["deleted_at"]
        assert deleted_at >= scene.message["created_at"]
        assert left == scene.message | {"content": "", "attachment_ids": [], "deleted_at": deleted_at}
        assert (await scene.client.get(url_of(scene.conversation), headers=scene.bob.headers)).json() == [left]
        assert "Hello" not in str(await Message.get_pymongo_collection().find().to_list())

    async def test_leaves_order_and_counts_as_they_are(self, scene: Scene) -> None:
        await scene.delete(scene.bob)

        next_one = await post(scene.client, scene.conversation, scene.bob.headers)
        shown = await scene.client.get(f"/api/v1/conversations/{scene.conversation.id}", headers=scene.ada.headers)

        assert next_one.json()["seq"] == 2
        assert (shown.json()["message_count"], shown.json()["unread_count"]) == (2, 2)
        assert [row["seq"] for row in shown.json()["messages"]] == [1, 2]

    async def test_again_changes_nothing(self, scene: Scene) -> None:
        await scene.delete(scene.bob)
        before = await scene.state()

        again = await scene.delete(scene.bob)

        assert again.status_code == 204
        assert await scene.state() == before

    async def test_happens_once_of_many_at_the_same_time(self, scene: Scene) -> None:
        answers = await asyncio.gather(*(scene.delete(scene.bob) for _ in range(8)))

        assert {answer.status_code for answer in answers} == {204}
        assert await ConversationEvent.count() == 1
        assert await AuditEvent.find({"action": "message:deleted"}).count() == 1
        assert (await stored(scene.conversation))["version"] == 3


CHANGES = pytest.mark.parametrize("change", [Scene.edit, Scene.delete], ids=["edit", "delete"])


class TestCallers:
    @CHANGES
    async def test_an_owner_of_the_conversation_does_not_change_what_others_said(
        self, scene: Scene, change: Any
    ) -> None:
        before = await scene.state()

        response = await change(scene, scene.ada)

        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert await scene.state() == before

    @CHANGES
    async def test_an_owner_is_told_nothing_else_of_what_is_deleted(self, scene: Scene, change: Any) -> None:
        await scene.delete(scene.bob)

        response = await change(scene, scene.ada)

        assert (response.status_code, response.json()["code"]) == (403, "forbidden")

    @CHANGES
    async def test_a_stranger_does_not_find_it(self, scene: Scene, change: Any) -> None:
        before = await scene.state()

        response = await change(scene, scene.cy)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert await scene.state() == before

    @CHANGES
    async def test_its_writer_does_not_find_it_after_leaving(self, scene: Scene, change: Any) -> None:
        url = f"/api/v1/conversations/{scene.conversation.id}/participants/{scene.bob.id}"
        await scene.client.delete(url, headers=scene.ada.headers)
        before = await scene.state()

        response = await change(scene, scene.bob)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert await scene.state() == before

    @CHANGES
    async def test_a_user_does_not_change_what_a_service_made_the_assistant_say_for_it(
        self, scene: Scene, change: Any
    ) -> None:
        key = await make_api_key("write")
        said = await post(scene.client, scene.conversation, key.headers, role="assistant", user_id=str(scene.bob.id))

        response = await change(scene._replace(message=said.json()), scene.bob)

        assert (response.status_code, response.json()["code"]) == (403, "forbidden")

    @CHANGES
    @pytest.mark.parametrize("caller", ["admin", "service"])
    async def test_an_administrator_and_a_service_reach_everybodys(
        self, scene: Scene, change: Any, caller: str
    ) -> None:
        by: Any = await make_signed_in(role=Role.ADMIN) if caller == "admin" else await make_api_key("write")

        response = await change(scene, by)

        assert response.status_code in {200, 204}
        assert (await scene.shown())["content"] in {"Good day", ""}

    @CHANGES
    async def test_the_personal_key_of_its_writer_changes_it(self, scene: Scene, change: Any) -> None:
        response = await change(scene, await make_api_key("write", owner=scene.bob))

        assert response.status_code in {200, 204}

    @CHANGES
    async def test_who_changed_it_is_on_record_but_not_what_it_said(self, scene: Scene, change: Any) -> None:
        admin = await make_signed_in(role=Role.ADMIN)

        await change(scene, admin)

        [event] = await AuditEvent.find_all().to_list()
        assert event.action in {"message:updated", "message:deleted"}
        assert (event.actor.id, event.target.kind, str(event.target.id)) == (admin.id, "message", scene.message["id"])
        assert event.details == {"conversation_id": scene.conversation.id}

    @CHANGES
    async def test_what_can_not_be_recorded_does_not_happen(self, scene: Scene, change: Any) -> None:
        before = await scene.state()

        async with no_event_can_be_written():
            response = await change(scene, scene.bob)

        assert response.status_code == 500
        assert await scene.state() == before
