"""Files that messages show."""

from typing import TYPE_CHECKING, Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.models.enums import UploadStatus, Visibility
from app.models.message import Message
from app.models.upload import Upload
from tests.api.test_message_batch import post_all
from tests.api.test_messages import post
from tests.commands import Commands
from tests.conftest import Serve
from tests.factories import SignedInUser, make_api_key, make_conversation, make_signed_in, make_upload

if TYPE_CHECKING:
    from app.models.conversation import Conversation


async def conversation_of(upload: Upload) -> ObjectId | None:
    document = await Upload.get(upload.id)
    assert document is not None
    return document.conversation_id


def refused_at(response: Response) -> list[list[Any]]:
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")
    assert {error["type"] for error in response.json()["errors"]} == {"unknown_upload"}
    return [error["loc"] for error in response.json()["errors"]]


class Scene:
    """Ada, who uploads, and Bob, who takes part in her conversation; one that Ada has elsewhere."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.ada: SignedInUser
        self.bob: SignedInUser
        self.here: Conversation
        self.elsewhere: Conversation

    async def open(self) -> "Scene":
        self.ada, self.bob = await make_signed_in(), await make_signed_in()
        self.here = await make_conversation(self.ada, self.bob)
        self.elsewhere = await make_conversation(self.ada)
        return self

    async def post(self, *uploads: Upload, by: SignedInUser | None = None) -> Response:
        ids = [str(upload.id) for upload in uploads]
        return await post(self.client, self.here, (by or self.ada).headers, attachment_ids=ids)

    async def status_for(self, who: SignedInUser, upload: Upload) -> int:
        return (await self.client.get(f"/api/v1/uploads/{upload.id}", headers=who.headers)).status_code


@pytest.fixture
async def scene(client: AsyncClient) -> Scene:
    return await Scene(client).open()


class TestAttach:
    async def test_lets_who_takes_part_read_the_file(self, scene: Scene) -> None:
        upload = await make_upload(scene.ada)
        stranger = await make_signed_in()
        before = await scene.status_for(scene.bob, upload)

        response = await scene.post(upload)

        assert response.status_code == 201
        assert response.json()["attachment_ids"] == [str(upload.id)]
        after = [await scene.status_for(who, upload) for who in (scene.bob, scene.ada, stranger)]
        assert (before, after) == (404, [200, 200, 404])

    async def test_may_be_repeated_in_the_same_conversation(self, scene: Scene) -> None:
        upload = await make_upload(scene.ada)

        statuses = [(await scene.post(upload)).status_code for _ in range(2)]

        assert statuses == [201, 201]

    async def test_of_what_does_not_fit_is_refused_naming_it(self, scene: Scene) -> None:
        good = await make_upload(scene.ada)
        bad = [
            await make_upload(scene.bob),
            await make_upload(scene.bob, conversation_id=scene.here.id),
            await make_upload(scene.bob, visibility=Visibility.PUBLIC),
            await make_upload(None),
            await make_upload(scene.ada, conversation_id=scene.elsewhere.id),
            await make_upload(scene.ada, status=UploadStatus.PENDING),
            await make_upload(scene.ada, status=UploadStatus.FAILED),
            Upload(owner_id=scene.ada.id, filename="", content_type="", size=0, stem="none"),
        ]

        response = await scene.post(good, *bad)

        assert refused_at(response) == [["body", "attachment_ids", at] for at in range(1, 9)]
        assert await Message.count() == 0
        assert await conversation_of(good) is None

    async def test_in_a_batch_is_refused_naming_the_message(self, scene: Scene) -> None:
        mine, foreign = await make_upload(scene.ada), await make_upload(scene.bob)
        messages: list[dict[str, Any]] = [
            {"content": "one", "attachment_ids": [str(mine.id)]},
            {"content": "two"},
            {"content": "three", "attachment_ids": [str(mine.id), str(foreign.id)]},
        ]

        response = await post_all(scene.client, scene.here, scene.ada.headers, *messages)

        assert refused_at(response) == [["body", "messages", 2, "attachment_ids", 1]]
        assert await Message.count() == 0

    async def test_by_a_stranger_is_told_nothing_of_the_file(self, scene: Scene) -> None:
        stranger = await make_signed_in()
        upload = await make_upload(stranger)

        response = await scene.post(upload, by=stranger)

        assert response.status_code == 404
        assert await conversation_of(upload) is None

    async def test_by_a_service_takes_its_own_and_those_of_the_writer_and_of_the_conversation(
        self, scene: Scene
    ) -> None:
        service = await make_api_key("read", "write")
        fit = [
            await make_upload(None),
            await make_upload(scene.bob),
            await make_upload(scene.ada, conversation_id=scene.here.id),
        ]
        unfit = [await make_upload(scene.ada), await make_upload(None, conversation_id=scene.elsewhere.id)]
        ids = [str(upload.id) for upload in (*fit, *unfit)]
        body = {"user_id": str(scene.bob.id)}

        refused = await post(scene.client, scene.here, service.headers, attachment_ids=ids, **body)
        posted = await post(scene.client, scene.here, service.headers, attachment_ids=ids[:3], **body)

        assert refused_at(refused) == [["body", "attachment_ids", 3], ["body", "attachment_ids", 4]]
        assert posted.status_code == 201
        assert [await conversation_of(upload) for upload in fit] == [scene.here.id] * 3

    async def test_by_a_service_is_asked_of_each_writer(self, scene: Scene) -> None:
        service = await make_api_key("read", "write")
        of_bob, of_nobody_here = await make_upload(scene.bob), await make_upload(await make_signed_in())
        messages: list[dict[str, Any]] = [
            {"content": "one", "user_id": str(person.id), "attachment_ids": [str(upload.id)]}
            for person, upload in ((scene.bob, of_bob), (scene.ada, of_nobody_here), (scene.bob, of_nobody_here))
        ]

        refused = await post_all(scene.client, scene.here, service.headers, *messages)
        posted = await post_all(scene.client, scene.here, service.headers, messages[0], {"content": "two"})

        assert refused_at(refused) == [["body", "messages", at, "attachment_ids", 0] for at in (1, 2)]
        assert posted.status_code == 201

    async def test_that_is_not_asked_for_costs_nothing(self, serve: Serve, commands: Commands) -> None:
        async with serve() as client:
            scene = await Scene(client).open()
            await scene.post()
            commands.taken()
            await scene.post()

            assert "uploads" not in {command.collection for command in commands.taken()}
