"""Files that are announced, put by the client and then checked: clean then, or gone."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.api import raw_body
from app.core import background, signed_link
from app.core.clock import utc_now
from app.core.stored_object import ORIGINAL, key_of
from app.crud import crud_direct_upload
from app.models.audit_event import AuditEvent
from app.models.enums import UploadStatus
from app.models.upload import Upload
from app.models.usage_counter import UsageTotal
from app.services import direct_upload_service, upload_check_service, upload_removal_service
from app.services.storage import get_storage
from tests.azure_app import HOME, ServeStorage, ask, azurite, client, home, serve_azure, serve_either
from tests.clamd_server import ClamdServer, clamd, running_clamd
from tests.conftest import Serve
from tests.factories import SignedInUser, make_api_key, make_conversation, make_signed_in
from tests.hostile_files import picture

__all__ = ["azurite", "clamd", "client", "home", "running_clamd", "serve_azure", "serve_either"]  # fixtures

PICTURE = picture(size=(400, 200))
DIGEST = hashlib.sha256(PICTURE).hexdigest()
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"


@pytest.fixture
async def ada(client: AsyncClient) -> SignedInUser:  # noqa: ARG001 - the application runs
    return await make_signed_in()


async def announce(client: AsyncClient, user: SignedInUser, **body: Any) -> Any:
    answer = await client.post("/api/v1/uploads/direct", headers=user.headers, json=announced(**body))
    assert answer.status_code == 201, answer.text
    return answer.json()


def announced(**body: Any) -> dict[str, Any]:
    return {"filename": "tea.png", "size": len(PICTURE), **body}


async def put(client: AsyncClient, plan: Any, content: Any = PICTURE) -> Response:
    return await ask(client, plan["method"], plan["url"], headers=plan["headers"], content=content)


async def complete(client: AsyncClient, plan: Any, user: SignedInUser) -> Response:
    return await client.post(f"/api/v1/uploads/{plan['upload']['id']}/complete", headers=user.headers)


async def read(client: AsyncClient, plan: Any, user: SignedInUser) -> Response:
    return await client.get(f"/api/v1/uploads/{plan['upload']['id']}/content", headers=user.headers)


async def counted(user: SignedInUser) -> int:
    total = await UsageTotal.find_one({"_id": user.id})
    return total.storage_bytes if total else 0


async def stored_keys() -> list[str]:
    return [found.key async for found in get_storage().objects()]


class TestDirectUpload:
    async def test_is_announced_put_and_completed(self, client: AsyncClient, ada: SignedInUser) -> None:
        plan = await announce(client, ada, sha256=DIGEST, content_type="image/png", visibility="public")
        early = await read(client, plan, ada)
        was_put = await put(client, plan)
        unchecked = await read(client, plan, ada)
        done = await complete(client, plan, ada)
        content = await read(client, plan, ada)

        assert (plan["method"], plan["upload"]["status"]) == ("PUT", "pending")
        assert (early.status_code, was_put.is_success, unchecked.status_code) == (409, True, 409)
        assert done.status_code == 200
        shown = ("filename", "content_type", "size", "sha256", "status", "visibility", "owner_id")
        assert {name: done.json()[name] for name in shown} == {
            "filename": "tea.png",
            "content_type": "image/png",
            "size": len(PICTURE),
            "sha256": DIGEST,
            "status": "clean",
            "visibility": "public",
            "owner_id": str(ada.id),
        }
        assert content.content == PICTURE
        assert await counted(ada) == len(PICTURE)

    async def test_may_take_an_hour(self, client: AsyncClient, ada: SignedInUser) -> None:
        plan = await announce(client, ada)

        life = datetime.fromisoformat(plan["expires_at"]) - utc_now()
        upload = await Upload.get(plan["upload"]["id"])

        assert timedelta(minutes=59) < life <= timedelta(hours=1)
        assert upload is not None
        assert upload.due_at is not None
        assert upload.due_at > utc_now() + timedelta(minutes=90)

    async def test_completed_again_is_as_it_was(self, client: AsyncClient, ada: SignedInUser) -> None:
        plan = await announce(client, ada)
        await put(client, plan)

        answers = [await complete(client, plan, ada) for _ in range(3)]

        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert answers[0].json() == answers[2].json()
        assert await AuditEvent.find(AuditEvent.action == "upload:created").count() == 1

    async def test_can_not_be_put_twice(self, client: AsyncClient, ada: SignedInUser) -> None:
        plan = await announce(client, ada)
        other = bytes(len(PICTURE))

        first, second = await put(client, plan), await put(client, plan, other)
        await complete(client, plan, ada)
        third = await put(client, plan, other)

        assert first.is_success
        assert {second.status_code, third.status_code} in ({409}, {403})  # Azure says that the link does not allow it
        assert (await read(client, plan, ada)).content == PICTURE

    async def test_waits_for_its_bytes(self, client: AsyncClient, ada: SignedInUser) -> None:
        plan = await announce(client, ada)

        answer = await complete(client, plan, ada)
        upload = await Upload.find_one({})
        await put(client, plan)
        again = await complete(client, plan, ada)

        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert upload is not None
        assert upload.checked_until is None
        assert again.status_code == 200

    @pytest.mark.parametrize(
        ("body", "content"),
        [
            ({"sha256": "0" * 64}, PICTURE),
            ({"filename": "tea.pdf"}, PICTURE),
            ({"filename": "tea.svg", "size": 6}, b"<svg/>"),
            ({"size": 4}, b"\x00\x01\x02\x03"),
        ],
    )
    async def test_that_is_not_what_it_should_be_is_removed(
        self, client: AsyncClient, ada: SignedInUser, body: dict[str, Any], content: bytes
    ) -> None:
        plan = await announce(client, ada, **body)
        await put(client, plan, content)

        answers = [await complete(client, plan, ada) for _ in range(2)]
        known = await client.get(f"/api/v1/uploads/{plan['upload']['id']}", headers=ada.headers)
        content_answer = await read(client, plan, ada)
        await upload_removal_service.clean_up()

        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(422, "file_rejected")] * 2
        assert answers[0].json()["detail"] == answers[1].json()["detail"]
        assert known.json()["status"] == "failed"
        assert content_answer.status_code == 404
        assert await stored_keys() == []
        assert await counted(ada) == 0
        [event] = await AuditEvent.find(AuditEvent.action == "upload:refused").to_list()
        assert (event.outcome, event.details["reason"]) == ("failure", answers[0].json()["detail"])

    async def test_that_would_be_given_out_as_another_file_is_removed(self, serve_azure: ServeStorage) -> None:
        """What was scanned are the bytes as they are stored, and a browser would unpack them."""
        async with serve_azure() as client:
            ada = await make_signed_in()
            plan = await announce(client, ada)
            plan["headers"]["x-ms-blob-content-encoding"] = "br"
            was_put = await put(client, plan)
            answer = await complete(client, plan, ada)
            await background.drain()
            left = await stored_keys()

        assert was_put.is_success
        assert (answer.status_code, answer.json()["code"]) == (422, "file_rejected")
        assert left == []

    async def test_that_was_refused_gives_nothing_back_twice(self, client: AsyncClient, ada: SignedInUser) -> None:
        plan, other = await announce(client, ada, sha256="0" * 64), await announce(client, ada)
        await put(client, plan)
        await complete(client, plan, ada)

        deleted = await client.delete(f"/api/v1/uploads/{plan['upload']['id']}", headers=ada.headers)

        assert deleted.status_code == 204
        assert await counted(ada) == other["upload"]["size"]

    async def test_counts_against_the_plan_before_it_is_there(self, client: AsyncClient, ada: SignedInUser) -> None:
        room = 1024**3
        await announce(client, ada, size=room - 100)

        answer = await client.post("/api/v1/uploads/direct", headers=ada.headers, json=announced(size=101))

        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        assert await counted(ada) == room - 100

    async def test_that_is_never_completed_is_given_up(self, client: AsyncClient, ada: SignedInUser) -> None:
        plan = await announce(client, ada)
        await put(client, plan)
        await Upload.get_pymongo_collection().update_one({}, {"$set": {"due_at": utc_now()}})

        await upload_removal_service.clean_up()

        assert await stored_keys() == []
        assert await counted(ada) == 0
        assert (await complete(client, plan, ada)).status_code == 404

    async def test_is_completed_by_its_owner(self, client: AsyncClient, ada: SignedInUser) -> None:
        bob, key = await make_signed_in(), await make_api_key("write")
        plan = await announce(client, ada)
        await put(client, plan)
        url = f"/api/v1/uploads/{plan['upload']['id']}/complete"

        codes = [(await client.post(url, headers=who)).status_code for who in ({}, bob.headers, key.headers)]

        assert codes == [401, 404, 200]

    async def test_belongs_to_a_conversation(self, client: AsyncClient, ada: SignedInUser) -> None:
        bob = await make_signed_in()
        mine, foreign = await make_conversation(ada, bob), await make_conversation(bob)
        plan = await announce(client, ada, conversation_id=str(mine.id))
        await put(client, plan)
        await complete(client, plan, ada)

        refused = await client.post(
            "/api/v1/uploads/direct", headers=ada.headers, json=announced(conversation_id=str(foreign.id))
        )

        assert (await read(client, plan, bob)).status_code == 200
        assert refused.status_code == 422

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({"size": 0}, 422, "validation_error"),
            ({"size": 5 * 1024**3 + 1}, 413, "payload_too_large"),
            ({"filename": ""}, 422, "validation_error"),
            ({"sha256": "tea"}, 422, "validation_error"),
            ({"content_type": "text/html"}, 422, "file_rejected"),
            ({"tea": 1}, 422, "validation_error"),
        ],
    )
    async def test_that_could_not_be_accepted_is_refused_at_once(
        self, client: AsyncClient, ada: SignedInUser, body: dict[str, Any], status: int, code: str
    ) -> None:
        answer = await client.post("/api/v1/uploads/direct", headers=ada.headers, json=announced(**body))

        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert await Upload.count() == 0
        assert await counted(ada) == 0

    async def test_has_a_clean_name(self, client: AsyncClient, ada: SignedInUser) -> None:
        plan = await announce(client, ada, filename="../../etc/tea\u202egnp.png")

        assert plan["upload"]["filename"] == "teagnp.png"


class TestScanned:
    async def test_and_infected_it_is_removed(self, serve_either: ServeStorage, clamd: ClamdServer) -> None:
        async with serve_either(clamav_host="127.0.0.1", clamav_port=clamd.port) as client:
            ada = await make_signed_in()
            plan = await announce(client, ada, filename="eicar.txt", size=len(EICAR))
            await put(client, plan, EICAR)
            answers = [await complete(client, plan, ada) for _ in range(2)]
            known = await client.get(f"/api/v1/uploads/{plan['upload']['id']}", headers=ada.headers)
            await upload_removal_service.clean_up()
            left = await stored_keys()
            [event] = await AuditEvent.find(AuditEvent.action == "upload:refused").to_list()

        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(422, "file_infected")] * 2
        assert known.json()["status"] == "infected"
        assert left == []
        assert "eicar" in event.details["reason"].lower()

    async def test_once_the_scanner_answers(self, serve_either: ServeStorage, clamd: ClamdServer) -> None:
        async with serve_either(clamav_host="127.0.0.1", clamav_port=clamd.port) as client:
            ada = await make_signed_in()
            plan = await announce(client, ada)
            await put(client, plan)
            clamd.kill()
            away = await complete(client, plan, ada)
            unchecked = await read(client, plan, ada)
            clamd.start()
            done = await complete(client, plan, ada)

        assert (away.status_code, away.json()["code"]) == (503, "scanner_unavailable")
        assert unchecked.status_code == 409
        assert done.status_code == 200


class TestTwoAtOnce:
    async def test_one_checks_and_the_other_is_told(
        self, client: AsyncClient, ada: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = await announce(client, ada)
        await put(client, plan)
        has_begun, may_go_on = asyncio.Event(), asyncio.Event()
        run = upload_check_service._Check.run

        async def slow(check: Any) -> Any:
            has_begun.set()
            await may_go_on.wait()
            return await run(check)

        monkeypatch.setattr(upload_check_service._Check, "run", slow)
        first = asyncio.create_task(complete(client, plan, ada))
        await asyncio.wait_for(has_begun.wait(), 5)
        second = await complete(client, plan, ada)
        may_go_on.set()

        assert (second.status_code, second.json()["code"]) == (409, "conflict")
        assert (await first).status_code == 200

    async def test_of_a_crowd_each_is_told_the_truth(self, client: AsyncClient, ada: SignedInUser) -> None:
        plan = await announce(client, ada)
        await put(client, plan)

        answers = await asyncio.gather(*(complete(client, plan, ada) for _ in range(8)))

        assert {answer.status_code for answer in answers} <= {200, 409}
        assert 200 in {answer.status_code for answer in answers}
        assert await AuditEvent.find(AuditEvent.action == "upload:created").count() == 1

    async def test_the_check_of_a_process_that_died_is_done_by_another(
        self, client: AsyncClient, ada: SignedInUser
    ) -> None:
        plan = await announce(client, ada)
        await put(client, plan)
        uploads = Upload.get_pymongo_collection()

        await uploads.update_one({}, {"$set": {"checked_until": utc_now() + timedelta(seconds=30)}})
        meanwhile = await complete(client, plan, ada)
        await uploads.update_one({}, {"$set": {"checked_until": utc_now() - timedelta(seconds=1)}})
        afterwards = await complete(client, plan, ada)

        assert (meanwhile.status_code, afterwards.status_code) == (409, 200)


class TestPut:
    """To a folder, the bytes come through this service."""

    @pytest.fixture
    async def bob(self, home: AsyncClient) -> SignedInUser:  # noqa: ARG002 - the application runs
        return await make_signed_in()

    @pytest.mark.parametrize("content", [PICTURE + b"!", PICTURE[:-1], b""])
    async def test_takes_just_as_many_bytes_as_were_announced(
        self, home: AsyncClient, bob: SignedInUser, content: bytes
    ) -> None:
        plan = await announce(home, bob)

        answer = await put(home, plan, content)
        left = await stored_keys()
        again = await put(home, plan)

        assert (answer.status_code, answer.json()["code"]) == (422, "file_rejected")
        assert left == []
        assert again.status_code == 204

    async def test_reads_no_further_when_there_are_more(self, home: AsyncClient, bob: SignedInUser) -> None:
        plan = await announce(home, bob)

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield PICTURE

        answer = await asyncio.wait_for(put(home, plan, endless()), 10)

        assert (answer.status_code, answer.json()["code"]) == (422, "file_rejected")
        assert await stored_keys() == []

    async def test_takes_one_sender_at_a_time(self, home: AsyncClient, bob: SignedInUser) -> None:
        """Of many, each would fill the disk with as much as the upload counts for."""
        plan, answers = await announce(home, bob), []

        async def slow() -> AsyncIterator[bytes]:
            yield PICTURE[:10]
            answers.extend([await asyncio.wait_for(put(home, plan), 5), await complete(home, plan, bob)])
            yield PICTURE[10:]

        taken = await put(home, plan, slow())
        done = await complete(home, plan, bob)

        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(409, "conflict")] * 2
        assert (taken.status_code, done.status_code) == (204, 200)

    async def test_reads_nothing_when_the_bytes_are_there(
        self, home: AsyncClient, bob: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = await announce(home, bob)
        await put(home, plan)
        monkeypatch.setattr(get_storage(), "write", None)

        answer = await put(home, plan)

        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")

    async def test_needs_the_whole_link(self, home: AsyncClient, bob: SignedInUser) -> None:
        plan, other = await announce(home, bob), await announce(home, bob)
        url = plan["url"].removeprefix(HOME)
        path = url.partition("?")[0]

        refused = [
            await home.put(path, content=PICTURE),
            await home.put(path, content=PICTURE, headers=bob.headers),
            await home.put(url[:-1], content=PICTURE),
            await home.put(url.replace(plan["upload"]["id"], other["upload"]["id"]), content=PICTURE),
        ]
        reading = await home.get(url.replace("/bytes", "/content"))

        assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(403, "forbidden")] * 4
        assert reading.status_code == 403
        assert await stored_keys() == []

    async def test_is_over_after_an_hour(
        self, home: AsyncClient, bob: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = await announce(home, bob)
        later = utc_now() + timedelta(seconds=3602)
        monkeypatch.setattr(signed_link, "utc_now", lambda: later)

        assert (await put(home, plan)).status_code == 403

    async def test_gives_up_on_a_sender_that_sends_nothing(
        self, home: AsyncClient, bob: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(raw_body, "IDLE_SECONDS", 0.05)
        plan = await announce(home, bob)

        async def stalling() -> AsyncIterator[bytes]:
            yield PICTURE[:10]
            await asyncio.Event().wait()

        answer = await asyncio.wait_for(put(home, plan, stalling()), 5)

        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert await stored_keys() == []

    @pytest.mark.parametrize("status", [UploadStatus.FAILED, UploadStatus.INFECTED])
    async def test_is_not_for_what_was_refused(
        self, home: AsyncClient, bob: SignedInUser, status: UploadStatus
    ) -> None:
        plan = await announce(home, bob)
        await Upload.get_pymongo_collection().update_one({}, {"$set": {"status": status}})

        assert (await put(home, plan)).status_code == 404

    async def test_leaves_nothing_when_the_upload_is_deleted_meanwhile(
        self, home: AsyncClient, bob: SignedInUser
    ) -> None:
        plan = await announce(home, bob)

        async def deleting() -> AsyncIterator[bytes]:
            yield PICTURE[:10]
            await home.delete(f"/api/v1/uploads/{plan['upload']['id']}", headers=bob.headers)
            yield PICTURE[10:]

        answer = await put(home, plan, deleting())

        assert answer.status_code == 404
        assert await stored_keys() == []

    async def test_holds_the_upload_while_it_goes_on(
        self, home: AsyncClient, bob: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(direct_upload_service, "_HELD_EVERY_SECONDS", 0.01)
        plan, was_held = await announce(home, bob), asyncio.Event()
        prolong, uploads = crud_direct_upload.prolong_check, Upload.get_pymongo_collection()

        async def noted(upload_id: ObjectId, **times: datetime) -> bool:
            is_there = await prolong(upload_id, **times)
            was_held.set()
            return is_there

        async def slow() -> AsyncIterator[bytes]:
            yield PICTURE[:10]
            await uploads.update_one({}, {"$set": {"due_at": utc_now()}})
            was_held.clear()
            await asyncio.wait_for(was_held.wait(), 5)
            yield PICTURE[10:]

        monkeypatch.setattr(crud_direct_upload, "prolong_check", noted)
        answer = await put(home, plan, slow())
        upload = await Upload.find_one({})

        assert answer.status_code == 204
        assert upload is not None
        assert upload.due_at is not None
        assert upload.due_at > utc_now() + timedelta(minutes=4)


class TestServe:
    async def test_takes_what_is_larger_than_other_bodies(self, serve: Serve) -> None:
        async with serve(public_url=HOME, max_body_bytes=1024, max_upload_bytes=5000) as home:
            bob = await make_signed_in()
            content = b"Tea. " * 1000
            plan = await announce(home, bob, filename="tea.txt", size=5000)
            taken = await put(home, plan, content)
            done = await complete(home, plan, bob)
            stored = await get_storage().stat(key_of((await Upload.find_all().to_list())[0].stem, ORIGINAL))

        assert (taken.status_code, done.status_code) == (204, 200)
        assert stored is not None
        assert stored.size == 5000
