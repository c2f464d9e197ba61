"""Uploading files, and what is known of them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.api import middleware
from app.api.multipart import StreamedForm
from app.api.upload_form import UploadForm
from app.core import background
from app.core.clock import utc_now
from app.core.exceptions import StorageUnavailableError
from app.core.plans import Plan
from app.core.scopes import Role
from app.crud import crud_idempotency, crud_upload
from app.models.audit_event import AuditEvent
from app.models.conversation import DeletedConversation
from app.models.enums import UploadStatus, Visibility
from app.models.idempotency_record import IdempotencyRecord
from app.models.upload import DeletedUpload, Upload
from app.models.usage_counter import UsageTotal
from app.models.user import User
from app.services import folder_draft, idempotency_service, upload_removal_service, upload_service
from app.services.storage import get_storage
from tests.clamd_server import ClamdServer, clamd, running_clamd
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import (
    StoredUser,
    make_api_key,
    make_conversation,
    make_signed_in,
    make_upload,
    make_user,
)
from tests.hostile_files import EICAR, svg

__all__ = ["clamd", "running_clamd"]  # the fixtures
TEXT = b"Tea is a drink.\n"
BOUNDARY = "a-boundary-of-our-own"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, content: bytes | str, filename: str | None = None) -> bytes:
    declared = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    value = content.encode() if isinstance(content, str) else content
    return f"--{BOUNDARY}\r\nContent-Disposition: {declared}\r\n\r\n".encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


async def upload(
    client: AsyncClient, headers: dict[str, str], content: bytes = TEXT, name: str = "tea.txt", **fields: str
) -> Response:
    return await client.post("/api/v1/uploads", files={"file": (name, content)}, data=fields, headers=headers)


async def send(client: AsyncClient, headers: dict[str, str], *parts: bytes) -> Response:
    return await client.post("/api/v1/uploads", content=b"".join(parts), headers=headers | HEADERS)


def objects(folder: Path) -> list[Path]:
    """Every file below the folder of the uploads, half ones included."""
    return sorted(path for path in (folder / "uploads").rglob("*") if path.is_file())


async def storage_used(user: StoredUser) -> int:
    total = await UsageTotal.get(user.id)
    return total.storage_bytes if total else 0


async def nothing_is_left(user: StoredUser, folder: Path) -> bool:
    await background.drain()
    return (
        await storage_used(user) == 0
        and await Upload.count() == 0
        and await DeletedUpload.count() == 0
        and objects(folder) == []
    )


def errors_of(response: Response) -> list[tuple[list[Any], str]]:
    return [(error["loc"], error["type"]) for error in response.json()["errors"]]


class TestCreate:
    async def test_stores_the_bytes_and_tells_what_they_are(self, client: AsyncClient, tmp_path: Path) -> None:
        ada = await make_signed_in()

        response = await upload(client, ada.headers)

        assert response.status_code == 201
        known = response.json()
        assert known == {
            "id": known["id"],
            "filename": "tea.txt",
            "content_type": "text/plain",
            "size": 16,
            "sha256": sha256(TEXT).hexdigest(),
            "status": "clean",
            "visibility": "private",
            "conversation_id": None,
            "created_at": known["created_at"],
            "variants": [],
            "text_available": True,
            "owner_id": str(ada.id),
        }
        assert known["created_at"].endswith("Z")
        [stored] = objects(tmp_path)
        assert stored.read_bytes() == TEXT
        assert (await client.get(f"/api/v1/uploads/{known['id']}", headers=ada.headers)).json() == known
        assert await storage_used(ada) == 16
        event = await AuditEvent.find_one({"action": "upload:created"})
        assert event is not None
        assert (event.actor.id, event.target.id) == (ada.id, ObjectId(known["id"]))
        assert event.details == {
            "filename": "tea.txt",
            "content_type": "text/plain",
            "size": 16,
            "sha256": sha256(TEXT).hexdigest(),
            "scan": "not_scanned",
        }

    @pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]], ids=str)
    async def test_takes_its_parts_in_any_order(self, client: AsyncClient, order: list[int]) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        parts = [
            part("file", TEXT, "tea.txt"),
            part("visibility", "public"),
            part("conversation_id", str(conversation.id)),
        ]

        response = await send(client, ada.headers, *(parts[at] for at in order), END)

        assert response.status_code == 201
        known = response.json()
        assert (known["size"], known["visibility"]) == (16, "public")
        assert known["conversation_id"] == str(conversation.id)

    @pytest.mark.parametrize("size", [1, 7, 64, 5000])
    async def test_takes_a_body_cut_anywhere(self, client: AsyncClient, tmp_path: Path, size: int) -> None:
        ada = await make_signed_in()
        content = f"Tea\r\n--{BOUNDARY}x\r\n-\r\n--{BOUNDARY[:-1]}".encode() + b"\r\n\r" * 50 + TEXT
        body = part("visibility", "public") + part("file", content, "tea.txt") + END

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), size):
                yield body[start : start + size]

        response = await client.post("/api/v1/uploads", content=pieces(), headers=ada.headers | HEADERS)

        assert response.status_code == 201
        assert response.json()["sha256"] == sha256(content).hexdigest()
        assert [stored.read_bytes() for stored in objects(tmp_path)] == [content]
        assert await storage_used(ada) == len(content)

    @pytest.mark.parametrize(
        ("name", "kept"),
        [
            ("../../etc/passwd", "passwd"),
            ("..\\..\\boot.ini", "boot.ini"),
            ("te\0a.txt", "tea.txt"),
            ("", "file.txt"),
            ("Tee für alle.txt", "Tee für alle.txt"),
        ],
    )
    async def test_keeps_the_name_without_what_is_dangerous(self, client: AsyncClient, name: str, kept: str) -> None:
        ada = await make_signed_in()

        response = await send(client, ada.headers, part("file", TEXT, name), END)

        assert (response.status_code, response.json()["filename"]) == (201, kept)

    async def test_counts_against_nobody_what_a_service_uploads(self, client: AsyncClient) -> None:
        service = await make_api_key("write")

        response = await upload(client, service.headers)

        assert (response.status_code, response.json()["owner_id"]) == (201, None)
        assert await UsageTotal.count() == 0

    async def test_counts_against_the_owner_of_a_personal_key(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("uploads:write", owner=ada)

        response = await upload(client, key.headers)

        assert (response.status_code, response.json()["owner_id"]) == (201, str(ada.id))
        assert await storage_used(ada) == 16

    async def test_shares_only_where_one_takes_part(self, client: AsyncClient, tmp_path: Path) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        of_bob = await make_conversation(bob)

        for other in (str(of_bob.id), str(ObjectId())):
            for parts in ([part("conversation_id", other)], []):
                last = [] if parts else [part("conversation_id", other)]
                response = await send(client, ada.headers, *parts, part("file", TEXT, "tea.txt"), *last, END)
                assert response.status_code == 422
                assert errors_of(response) == [(["body", "conversation_id"], "unknown_conversation")]
        assert await nothing_is_left(ada, tmp_path)


class TestRefusal:
    """Each leaves nothing behind, and nothing counts."""

    @pytest.mark.parametrize(
        ("parts", "place", "kind"),
        [
            ([END], "file", "missing"),
            ([part("visibility", "public"), END], "file", "missing"),
            ([part("file", TEXT, "a.txt"), part("file", TEXT, "b.txt"), END], "file", "too_many"),
            ([part("visibility", "public"), part("visibility", "public"), END], "visibility", "too_many"),
            ([part("file", TEXT, "a.txt"), part("visibility", "secret"), END], "visibility", "enum"),
            ([part("conversation_id", "x"), part("file", TEXT, "a.txt"), END], "conversation_id", "value_error"),
            ([part("visibility", b"\xff"), part("file", TEXT, "a.txt"), END], "visibility", "string_unicode"),
            ([part("file", TEXT, "a.txt"), part("visibility", "x" * 1025), END], "visibility", "too_long"),
            ([part("owner_id", "x"), part("file", TEXT, "a.txt"), END], "owner_id", "extra_forbidden"),
            ([part("other", TEXT, "a.txt"), END], "other", "extra_forbidden"),
        ],
    )
    async def test_names_the_part_that_does_not_fit(
        self, client: AsyncClient, tmp_path: Path, parts: list[bytes], place: str, kind: str
    ) -> None:
        ada = await make_signed_in()

        response = await send(client, ada.headers, *parts)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
        assert errors_of(response) == [(["body", place], kind)]
        assert await nothing_is_left(ada, tmp_path)

    @pytest.mark.parametrize("field", [("visibility", "secret"), ("conversation_id", "6b01811398ac8cb6e718c10f")])
    async def test_of_what_stands_behind_the_file_comes_before_the_file_is_one(
        self, client: AsyncClient, tmp_path: Path, field: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada, published = await make_signed_in(), Mock(wraps=folder_draft._publish)
        monkeypatch.setattr(folder_draft, "_publish", published)

        async def body() -> AsyncIterator[bytes]:
            yield part("file", TEXT, "tea.txt")
            yield part(*field) + END

        refused = await client.post("/api/v1/uploads", content=body(), headers=ada.headers | HEADERS)

        assert (refused.status_code, refused.json()["code"]) == (422, "validation_error")
        assert not published.called
        assert await nothing_is_left(ada, tmp_path)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"nonsense",
            part("file", TEXT, "tea.txt"),
            part("file", TEXT, "tea.txt")[:-5],
            part("file", TEXT, "tea.txt") + b"--" + BOUNDARY.encode() + b"\r\n",
            f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nx\r\n--{BOUNDARY}--".encode(),
            f"--{BOUNDARY}\r\n\r\nx\r\n--{BOUNDARY}--".encode(),
            f"--{BOUNDARY}\r\nContent Disposition: form-data\r\n\r\n".encode(),
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; x="{"x" * 5000}"\r\n\r\n'.encode(),
            f"--{BOUNDARY}\r\n".encode() + b"X: y\r\n" * 9 + b"\r\n",
        ],
    )
    async def test_of_a_form_that_is_cut_off_or_none(self, client: AsyncClient, tmp_path: Path, body: bytes) -> None:
        ada = await make_signed_in()

        response = await send(client, ada.headers, body)

        assert response.status_code in {400, 422}
        assert response.json()["code"] in {"invalid_request", "validation_error"}
        assert await nothing_is_left(ada, tmp_path)

    @pytest.mark.parametrize("parts", [21, 10_000])
    async def test_of_more_than_twenty_parts(
        self, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
    ) -> None:
        ada = await make_signed_in()
        names = [f"field{at}" for at in range(parts - 1)]
        monkeypatch.setattr(UploadForm, "NAMES", names)

        fields = [part(name, "x") for name in names]
        response = await send(client, ada.headers, part("file", TEXT, "tea.txt"), *fields, END)

        assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
        assert response.json()["detail"] == "A form has at most 20 parts here."
        assert await nothing_is_left(ada, tmp_path)

    @pytest.mark.parametrize(
        ("declared", "status", "code"),
        [
            ("application/json", 415, "unsupported_media_type"),
            ("application/x-www-form-urlencoded", 415, "unsupported_media_type"),
            ("", 415, "unsupported_media_type"),
            ("multipart/form-data", 400, "invalid_request"),
            ("multipart/form-data; boundary=", 400, "invalid_request"),
            (f"multipart/form-data; boundary={'x' * 71}", 400, "invalid_request"),
            (f'multipart/form-data; boundary="{BOUNDARY} "', 400, "invalid_request"),
            ("multipart/form-data; boundary=other", 400, "invalid_request"),
        ],
    )
    async def test_of_another_kind_of_body(
        self, client: AsyncClient, tmp_path: Path, declared: str, status: int, code: str
    ) -> None:
        ada = await make_signed_in()
        body = part("file", TEXT, "tea.txt") + END

        headers = ada.headers | {"Content-Type": declared}
        response = await client.post("/api/v1/uploads", content=body, headers=headers)

        assert (response.status_code, response.json()["code"]) == (status, code)
        assert await nothing_is_left(ada, tmp_path)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("empty.txt", b""),
            ("page.html", b"<!doctype html><script>alert(1)</script>"),
            ("tea.png", TEXT),
            ("picture.svg", svg()),
            ("tea.bin", b"\x00\x01\x02\x03" * 30_000),
        ],
    )
    async def test_of_what_is_not_accepted_is_on_record(
        self, client: AsyncClient, tmp_path: Path, name: str, content: bytes
    ) -> None:
        ada = await make_signed_in()

        response = await upload(client, ada.headers, content, name)

        assert (response.status_code, response.json()["code"]) == (422, "file_rejected")
        assert await nothing_is_left(ada, tmp_path)
        [event] = await AuditEvent.find({"action": "upload:refused"}).to_list()
        assert (event.actor.id, event.outcome, event.details["reason"]) == (
            ada.id,
            "failure",
            response.json()["detail"],
        )

    async def test_of_a_file_over_the_limit(self, serve: Serve, tmp_path: Path) -> None:
        async with serve(max_upload_bytes=1000) as client:
            ada = await make_signed_in()

            exact = await upload(client, ada.headers, b"x" * 1000)
            over = await upload(client, ada.headers, b"x" * 1001)
            far_over = await upload(client, ada.headers, b"x" * 100_000)

            assert [response.status_code for response in (exact, over, far_over)] == [201, 413, 413]
            assert {response.json()["code"] for response in (over, far_over)} == {"payload_too_large"}
            assert await storage_used(ada) == 1000
            assert len(objects(tmp_path)) == 1

    async def test_of_a_stream_over_the_limit_comes_while_it_streams(self, serve: Serve, tmp_path: Path) -> None:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            yield part("file", "", "tea.txt")[:-2]
            while True:
                sent += 1000
                yield b"x" * 1000

        async with serve(max_upload_bytes=10_000) as client:
            ada = await make_signed_in()
            response = await client.post("/api/v1/uploads", content=endless(), headers=ada.headers | HEADERS)

            assert (response.status_code, response.headers["connection"]) == (413, "close")
            assert await nothing_is_left(ada, tmp_path)

    async def test_of_an_ordinary_body_has_its_own_limit(self, serve: Serve) -> None:
        async with serve(max_body_bytes=2000) as client:
            ada = await make_signed_in()

            statuses = [
                (await upload(client, ada.headers, b"x" * 5000)).status_code,
                (await client.post("/api/v1/uploads/", content=b"x" * 5000, headers=ada.headers)).status_code,
                (await client.post("/api/v1/items", content=b"x" * 5000, headers=ada.headers)).status_code,
            ]

            assert statuses == [201, 415, 413]

    async def test_of_a_sender_who_goes_quiet(
        self, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(StreamedForm.__init__, "__kwdefaults__", {"idle_seconds": 0.2})
        monkeypatch.setattr(middleware, "_LINGER_SECONDS", 0.2)
        ada = await make_signed_in()

        async def quiet() -> AsyncIterator[bytes]:
            yield part("file", TEXT, "tea.txt")
            await asyncio.sleep(60)

        response = await client.post("/api/v1/uploads", content=quiet(), headers=ada.headers | HEADERS)

        assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
        assert "0.2 s" in response.json()["detail"]
        assert await nothing_is_left(ada, tmp_path)

    async def test_while_the_storage_is_away(
        self, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def away(*_: object) -> None:
            raise StorageUnavailableError

        monkeypatch.setattr(get_storage(), "write", away)
        ada = await make_signed_in()

        response = await upload(client, ada.headers)

        assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
        assert await nothing_is_left(ada, tmp_path)

    async def test_of_what_can_not_be_recorded(self, client: AsyncClient, tmp_path: Path) -> None:
        ada = await make_signed_in()

        async with no_event_can_be_written():
            response = await upload(client, ada.headers)

        assert response.status_code == 500
        assert await nothing_is_left(ada, tmp_path)


class TestScanning:
    async def test_removes_what_is_infected(self, serve: Serve, tmp_path: Path, clamd: ClamdServer) -> None:
        async with serve(clamav_host="127.0.0.1", clamav_port=clamd.port) as client:
            ada = await make_signed_in()

            response = await upload(client, ada.headers, EICAR, "eicar.txt")

            assert (response.status_code, response.json()["code"]) == (422, "file_infected")
            assert await nothing_is_left(ada, tmp_path)
            [event] = await AuditEvent.find({"action": "upload:refused"}).to_list()
            assert (event.actor.id, event.outcome) == (ada.id, "failure")
            assert "Eicar" in event.details["reason"]

    async def test_takes_what_is_clean(self, serve: Serve, clamd: ClamdServer) -> None:
        async with serve(clamav_host="127.0.0.1", clamav_port=clamd.port) as client:
            ada = await make_signed_in()

            assert (await upload(client, ada.headers)).status_code == 201
            event = await AuditEvent.find_one({"action": "upload:created"})
            assert event is not None
            assert event.details["scan"] == "clean"

    @pytest.mark.parametrize(("fails_open", "status"), [(False, 503), (True, 201)])
    async def test_that_is_not_possible_takes_nothing_unless_told_to(
        self, serve: Serve, tmp_path: Path, fails_open: object, status: int
    ) -> None:
        async with serve(clamav_host="127.0.0.1", clamav_port=9, scanner_fail_open=fails_open) as client:
            ada = await make_signed_in()

            response = await upload(client, ada.headers)

            assert response.status_code == status
            if not fails_open:
                assert response.json()["code"] == "scanner_unavailable"
                assert await nothing_is_left(ada, tmp_path)


class TestQuota:
    async def test_takes_exactly_what_there_is_room_for(self, client: AsyncClient, tmp_path: Path) -> None:
        ada = await make_signed_in(limits={"storage_bytes": 40})

        answers = [await upload(client, ada.headers, b"x" * size) for size in (16, 24, 1)]

        assert [answer.status_code for answer in answers] == [201, 201, 429]
        assert answers[2].json()["code"] == "quota_exceeded"
        assert await storage_used(ada) == 40
        assert len(objects(tmp_path)) == 2

    @pytest.mark.parametrize(("size", "status"), [(100_000, 201), (100_001, 429)])
    async def test_holds_for_who_does_not_say_how_much_is_to_come(
        self, client: AsyncClient, tmp_path: Path, size: int, status: int
    ) -> None:
        ada = await make_signed_in(limits={"storage_bytes": 100_000})
        body = part("file", b"x" * size, "tea.txt") + END

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 30_000):
                yield body[start : start + 30_000]

        response = await client.post("/api/v1/uploads", content=pieces(), headers=ada.headers | HEADERS)

        assert response.status_code == status
        assert await storage_used(ada) == (size if status == 201 else 0)
        assert len(objects(tmp_path)) == (1 if status == 201 else 0)

    @pytest.mark.usefixtures("patience")
    async def test_is_exact_with_many_at_once(self, serve: Serve, tmp_path: Path) -> None:
        async with serve() as client:
            ada = await make_signed_in(limits={"storage_bytes": 1000})

            answers = await asyncio.gather(*(upload(client, ada.headers, b"x" * 100) for _ in range(20)))

            statuses = sorted(answer.status_code for answer in answers)
            # What is under way counts as much as it may turn out to be: so fewer may get in, never more.
            taken = statuses.count(201)
            assert set(statuses) == {201, 429}
            assert taken <= 10
            assert await storage_used(ada) == taken * 100
            assert len(objects(tmp_path)) == taken
            assert (await upload(client, ada.headers, b"x" * (1000 - taken * 100))).status_code == (
                422 if taken == 10 else 201
            )

    async def test_is_told_with_the_usage(self, client: AsyncClient) -> None:
        ada = await make_signed_in(plan=Plan.FREE)
        await upload(client, ada.headers)

        usage = (await client.get("/api/v1/usage/me", headers=ada.headers)).json()

        assert usage["used"]["storage_bytes"] == 16
        assert usage["remaining"]["storage_bytes"] == 1024**3 - 16


class SlowBody:
    """A whole form with a pause before its end, until it is let go."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def parts(self) -> AsyncIterator[bytes]:
        yield part("file", TEXT, "tea.txt")
        self.has_begun.set()
        await self.may_end.wait()
        yield END

    def send(self, client: AsyncClient, headers: dict[str, str]) -> asyncio.Task[Response]:
        request = client.post("/api/v1/uploads", content=self.parts(), headers=headers | HEADERS)
        return asyncio.create_task(request)


class TestSlowUpload:
    async def test_is_kept_for_as_long_as_it_takes(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upload_service, "_PROLONGED_EVERY_SECONDS", 0.05)
        ada, body = await make_signed_in(), SlowBody()
        sending = body.send(client, ada.headers)
        await body.has_begun.wait()
        await Upload.find_all().set({"due_at": utc_now() + timedelta(seconds=1)})

        is_prolonged = asyncio.Event()
        prolong = crud_upload.prolong

        async def prolong_and_tell(*of: Any, **until: Any) -> None:
            await prolong(*of, **until)
            is_prolonged.set()

        monkeypatch.setattr(crud_upload, "prolong", prolong_and_tell)
        await is_prolonged.wait()
        assert await Upload.find({"due_at": {"$gt": utc_now() + timedelta(minutes=4)}}).count() == 1
        body.may_end.set()

        assert (await sending).status_code == 201

    async def test_is_told_when_it_was_deleted_meanwhile(self, client: AsyncClient, tmp_path: Path) -> None:
        ada, body = await make_signed_in(), SlowBody()
        sending = body.send(client, ada.headers)
        await body.has_begun.wait()
        pending = await Upload.find_one()
        assert pending is not None

        deleted = await client.delete(f"/api/v1/uploads/{pending.id}", headers=ada.headers)
        body.may_end.set()
        response = await sending

        assert (deleted.status_code, response.status_code, response.json()["code"]) == (204, 409, "conflict")
        assert await nothing_is_left(ada, tmp_path)

    async def test_that_is_cancelled_leaves_nothing(self, client: AsyncClient, tmp_path: Path) -> None:
        ada, body = await make_signed_in(), SlowBody()
        sending = body.send(client, ada.headers)
        await body.has_begun.wait()

        sending.cancel()
        await asyncio.wait([sending])

        assert await nothing_is_left(ada, tmp_path)

    async def test_holds_its_idempotency_key_for_as_long_as_it_takes(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prolong, is_prolonged = crud_idempotency.prolong, asyncio.Event()

        async def prolong_and_tell(*of: Any, **until: Any) -> None:
            await prolong(*of, **until)
            is_prolonged.set()

        monkeypatch.setattr(crud_idempotency, "prolong", prolong_and_tell)
        monkeypatch.setattr(idempotency_service, "_HOLD", timedelta(seconds=1))
        ada, body, other = await make_signed_in(), SlowBody(), SlowBody()
        headers = ada.headers | {"Idempotency-Key": "once"}
        sending = body.send(client, headers)
        await body.has_begun.wait()

        await IdempotencyRecord.get_pymongo_collection().update_one({}, {"$set": {"until": utc_now()}})
        is_prolonged.clear()
        await is_prolonged.wait()
        other.may_end.set()
        meanwhile = await other.send(client, headers)
        body.may_end.set()

        assert (meanwhile.status_code, meanwhile.json()["code"]) == (409, "idempotency_in_progress")
        assert (await sending).status_code == 201


class TestIdempotencyKey:
    async def test_gives_the_first_answer_again_and_stores_once(self, client: AsyncClient, tmp_path: Path) -> None:
        ada = await make_signed_in()
        headers = ada.headers | {"Idempotency-Key": "once"}

        first, second = [await upload(client, headers) for _ in range(2)]

        assert (first.status_code, second.status_code) == (201, 201)
        assert second.json() == first.json()
        assert second.headers["idempotent-replayed"] == "true"
        assert len(objects(tmp_path)) == 1
        assert await storage_used(ada) == 16

    async def test_is_not_for_another_file(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        headers = ada.headers | {"Idempotency-Key": "once"}
        await upload(client, headers)

        response = await upload(client, headers, TEXT + TEXT)

        assert (response.status_code, response.json()["code"]) == (422, "idempotency_key_reused")

    async def test_of_a_refused_one_may_be_used_again(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"storage_bytes": 10})
        headers = ada.headers | {"Idempotency-Key": "once"}

        refused = await upload(client, headers)
        await User.find({"_id": ada.id}).set({"limits": {}})
        taken = await upload(client, headers)

        assert (refused.status_code, taken.status_code) == (429, 201)

    async def test_of_one_that_was_refused_on_its_way_may_be_used_again(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        headers = ada.headers | {"Idempotency-Key": "once"}

        refused = await upload(client, headers, b"%PNG" + TEXT, "tea.png")

        assert refused.status_code == 422
        assert await IdempotencyRecord.count() == 0


class TestGet:
    async def test_shows_it_to_who_may_see_it(self, client: AsyncClient) -> None:
        ada, bob, stranger = [await make_signed_in() for _ in range(3)]
        conversation = await make_conversation(ada, bob)
        uploads = [
            await make_upload(ada),
            await make_upload(ada, conversation_id=conversation.id),
            await make_upload(ada, visibility=Visibility.PUBLIC),
            await make_upload(ada, status=UploadStatus.PENDING, visibility=Visibility.PUBLIC),
            await make_upload(ada, status=UploadStatus.PENDING, conversation_id=conversation.id),
        ]

        seen = [
            [(await client.get(f"/api/v1/uploads/{each.id}", headers=who.headers)).status_code for each in uploads]
            for who in (ada, bob, stranger)
        ]

        assert seen == [[200, 200, 200, 200, 200], [404, 200, 200, 404, 404], [404, 404, 200, 404, 404]]

    async def test_no_longer_shows_it_to_who_has_left(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        conversation = await make_conversation(ada, bob)
        shared = await make_upload(ada, conversation_id=conversation.id)
        url = f"/api/v1/conversations/{conversation.id}/participants/{bob.id}"
        assert (await client.delete(url, headers=bob.headers)).status_code == 204

        assert (await client.get(f"/api/v1/uploads/{shared.id}", headers=bob.headers)).status_code == 404

    @pytest.mark.parametrize("upload_id", ["nonsense", "6746d0a8f8f8f8f8f8f8f8f8"])
    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    async def test_or_delete_finds_none_that_is_not_there(
        self, client: AsyncClient, method: str, upload_id: str
    ) -> None:
        ada = await make_signed_in()

        response = await client.request(method, f"/api/v1/uploads/{upload_id}", headers=ada.headers)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")


class TestList:
    async def test_shows_ones_own_newest_first(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        conversation = await make_conversation(ada, bob)
        ids = [str((await make_upload(ada)).id) for _ in range(5)]
        await make_upload(bob, conversation_id=conversation.id)
        await make_upload(bob, visibility=Visibility.PUBLIC)

        pages, url = [], "/api/v1/uploads?limit=2"
        while url:
            response = await client.get(url, headers=ada.headers)
            pages.append([row["id"] for row in response.json()])
            url = response.links.get("next", {}).get("url", "")

        assert pages == [ids[:2:-1], ids[2:0:-1], ids[:1]]

    async def test_is_filtered(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        there = await make_upload(ada, conversation_id=conversation.id)
        pending = await make_upload(ada, status=UploadStatus.PENDING)

        for query, expected in (
            ({"status": "pending"}, [pending]),
            ({"status": "clean"}, [there]),
            ({"conversation_id": str(conversation.id)}, [there]),
            ({"conversation_id": str(ObjectId())}, []),
        ):
            rows = (await client.get("/api/v1/uploads", params=query, headers=ada.headers)).json()
            assert [row["id"] for row in rows] == [str(each.id) for each in expected]
        for bad in ({"status": "x"}, {"conversation_id": "x"}, {"limit": 0}):
            assert (await client.get("/api/v1/uploads", params=bad, headers=ada.headers)).status_code == 422

    async def test_shows_all_to_services_and_administrators(self, client: AsyncClient) -> None:
        for owner in (await make_user(), await make_user(), None):
            await make_upload(owner)
        admin, service = await make_signed_in(role=Role.ADMIN), await make_api_key("read")

        counts = [len((await client.get("/api/v1/uploads", headers=who.headers)).json()) for who in (admin, service)]

        assert counts == [3, 3]


class TestDelete:
    async def test_removes_the_bytes_and_gives_back_what_they_counted(
        self, client: AsyncClient, tmp_path: Path
    ) -> None:
        ada = await make_signed_in()
        upload_id = (await upload(client, ada.headers)).json()["id"]

        response = await client.delete(f"/api/v1/uploads/{upload_id}", headers=ada.headers)

        assert response.status_code == 204
        assert await nothing_is_left(ada, tmp_path)
        event = await AuditEvent.find_one({"action": "upload:deleted"})
        assert event is not None
        assert (event.actor.id, event.target.id) == (ada.id, ObjectId(upload_id))

    async def test_is_for_the_owner_alone(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        conversation = await make_conversation(bob, ada)
        shared = await make_upload(ada, conversation_id=conversation.id, visibility=Visibility.PUBLIC)

        response = await client.delete(f"/api/v1/uploads/{shared.id}", headers=bob.headers)

        assert response.status_code == 404
        assert await Upload.count() == 1

    async def test_of_the_conversation_takes_them_along(self, client: AsyncClient, tmp_path: Path) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        conversation = await make_conversation(ada, bob)
        for person in (ada, bob):
            response = await upload(client, person.headers, conversation_id=str(conversation.id))
            assert response.status_code == 201
        kept = (await upload(client, bob.headers, b"kept")).json()["id"]

        await client.delete(f"/api/v1/conversations/{conversation.id}", headers=ada.headers)
        await background.drain()
        await upload_removal_service.clean_up()

        assert [str(each.id) for each in await Upload.find_all().to_list()] == [kept]
        assert [await storage_used(person) for person in (ada, bob)] == [0, 4]
        assert [stored.read_bytes() for stored in objects(tmp_path)] == [b"kept"]
        assert await DeletedConversation.count() == 0


class TestPublicMetadata:
    async def test_are_shown_to_everybody_without_what_is_its_owners(self, client: AsyncClient) -> None:
        """As the bytes are: but a stranger does not learn whose it is, nor in which conversation it was sent."""
        ada, bob, eve = await make_signed_in(), await make_signed_in(), await make_signed_in()
        conversation = await make_conversation(ada, bob)
        public: dict[str, Any] = {"visibility": Visibility.PUBLIC, "conversation_id": conversation.id}
        upload, secret = await make_upload(ada, **public), await make_upload(ada)
        waiting = await make_upload(ada, **public, status=UploadStatus.PENDING)
        headers = {
            "nobody": {},
            "a key for items": (await make_api_key("items:read", owner=bob)).headers,
            "a stranger": eve.headers,
            "a participant": bob.headers,
            "the owner": ada.headers,
            "an administrator": (await make_signed_in(role=Role.ADMIN)).headers,
        }

        answers = {
            name: await client.get(f"/api/v1/uploads/{upload.id}", headers=shown) for name, shown in headers.items()
        }
        hidden = [await client.get(f"/api/v1/uploads/{each.id}") for each in (secret, waiting)]
        refused = await client.get(f"/api/v1/uploads/{upload.id}", headers={"Authorization": "Bearer x"})

        known = {name: answer.json() for name, answer in answers.items()}
        assert {answer.status_code for answer in answers.values()} == {200}
        assert {answer.status_code for answer in hidden} == {404}
        assert refused.status_code == 401
        whose, said = str(ada.id), str(conversation.id)
        assert {name: (shown["owner_id"], shown["conversation_id"]) for name, shown in known.items()} == {
            "nobody": (None, None),
            "a key for items": (None, None),
            "a stranger": (whose, None),
            "a participant": (whose, said),
            "the owner": (whose, said),
            "an administrator": (whose, said),
        }
        private = {"owner_id": whose, "conversation_id": said}
        assert all(shown | private == known["the owner"] for shown in known.values())
        assert known["nobody"]["filename"] == "tea.txt"
