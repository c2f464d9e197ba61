"""Files go out whole and in ranges, to those who may see them, with what browsers must heed."""

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient, Response
from structlog.testing import capture_logs

from app.core.stored_object import key_of
from app.models.enums import UploadStatus, Visibility
from app.models.upload import Upload
from app.services.storage import get_storage
from tests.conftest import Serve
from tests.factories import SignedInUser, make_api_key, make_conversation, make_signed_in
from tests.stored_uploads import store_upload

TEXT = b"0123456789"
DIGEST = hashlib.sha256(TEXT).hexdigest()
MADE_AT = datetime(2026, 11, 21, 10, 30, 15, 123000, UTC)
# What differs from answer to answer.
VARYING = {"x-request-id": "", "x-ratelimit-remaining": "", "x-ratelimit-reset": ""}
MADE = "Sat, 21 Nov 2026 10:30:15 GMT"


def content_of(upload: Upload) -> str:
    return f"/api/v1/uploads/{upload.id}/content"


class Reader:
    def __init__(self, client: AsyncClient, user: SignedInUser, upload: Upload) -> None:
        self.client = client
        self.user = user
        self.upload = upload

    async def get(self, **headers: str) -> Response:
        return await self.ask("GET", **headers)

    async def ask(self, method: str, **headers: str) -> Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.request(method, content_of(self.upload), headers=self.user.headers | sent)


@pytest.fixture
async def ada(client: AsyncClient) -> Reader:
    user = await make_signed_in()
    return Reader(client, user, await store_upload(user, TEXT, filename="Tea.txt", created_at=MADE_AT))


class TestContent:
    async def test_goes_out_with_what_clients_need_to_know(self, ada: Reader) -> None:
        answer = await ada.get()

        assert answer.status_code == 200
        assert answer.content == TEXT
        shown = (
            *("content-type", "content-length", "content-disposition", "accept-ranges", "etag", "last-modified"),
            *("cache-control", "x-content-type-options", "content-security-policy"),
        )
        assert {name: answer.headers.get(name) for name in shown} == {
            "content-type": "text/plain",
            "content-length": "10",
            "content-disposition": 'inline; filename="Tea.txt"',
            "accept-ranges": "bytes",
            "etag": f'"{DIGEST}"',
            "last-modified": MADE,
            "cache-control": "private, no-cache",
            "x-content-type-options": "nosniff",
            "content-security-policy": "sandbox; default-src 'none'",
        }
        assert len(answer.headers.get_list("content-security-policy")) == 1

    async def test_is_the_same_when_it_has_many_blocks(self, client: AsyncClient) -> None:
        user, content = await make_signed_in(), bytes(range(256)) * 20_000
        upload = await store_upload(user, content, content_type="image/png")

        answer = await client.get(content_of(upload), headers=user.headers)
        middle = await client.get(content_of(upload), headers=user.headers | {"Range": "bytes=1048570-2097160"})

        assert answer.content == content
        assert middle.content == content[1048570:2097161]

    async def test_of_head_has_all_but_the_bytes(self, ada: Reader) -> None:
        whole, head = await ada.get(), await ada.ask("HEAD", range="bytes=1-2")

        assert (head.status_code, head.content) == (200, b"")
        assert dict(head.headers) | VARYING == dict(whole.headers) | VARYING

    @pytest.mark.parametrize(
        ("name", "content_type", "header"),
        [
            ("tea.png", "image/png", 'inline; filename="tea.png"'),
            ("tea.pdf", "application/pdf", 'inline; filename="tea.pdf"'),
            ("tea.svg", "image/svg+xml", 'attachment; filename="tea.svg"'),
            ("tea.html", "text/html", 'attachment; filename="tea.html"'),
            ("tea.zip", "application/zip", 'attachment; filename="tea.zip"'),
            ("tea", "application/x-unheard-of", 'attachment; filename="tea"'),
            ("Tür.png", "image/png", "inline; filename=\"Tur.png\"; filename*=UTF-8''T%C3%BCr.png"),
            ('a"b\\c.png', "image/png", "inline; filename=\"a_b_c.png\"; filename*=UTF-8''a%22b%5Cc.png"),
        ],
    )
    async def test_is_shown_only_when_that_does_no_harm(
        self, client: AsyncClient, name: str, content_type: str, header: str
    ) -> None:
        user = await make_signed_in()
        upload = await store_upload(user, filename=name, content_type=content_type)

        answer = await client.get(content_of(upload), headers=user.headers)
        saved = await client.get(content_of(upload) + "?download=1", headers=user.headers)

        assert answer.headers["content-disposition"] == header
        assert saved.headers["content-disposition"] == header.replace("inline", "attachment")

    @pytest.mark.parametrize("name", ["content", "thumbnail", "text"])
    async def test_refuses_a_parameter_that_makes_no_sense(self, ada: Reader, name: str) -> None:
        url = f"/api/v1/uploads/{ada.upload.id}/{name}"

        answers = [
            await ada.client.get(f"{url}?{query}", headers=ada.user.headers) for query in ("download=tea", "size=65")
        ]

        refused = {"content": [422, 200], "thumbnail": [422, 422], "text": [200, 200]}
        assert [answer.status_code for answer in answers] == refused[name]


class TestRange:
    @pytest.mark.parametrize(
        ("wanted", "content", "header"),
        [
            ("bytes=0-3", b"0123", "bytes 0-3/10"),
            ("bytes=4-", b"456789", "bytes 4-9/10"),
            ("bytes=-2", b"89", "bytes 8-9/10"),
            ("bytes=8-100", b"89", "bytes 8-9/10"),
        ],
    )
    async def test_gives_just_that_part(self, ada: Reader, wanted: str, content: bytes, header: str) -> None:
        answer = await ada.get(range=wanted)

        assert (answer.status_code, answer.content) == (206, content)
        assert answer.headers["content-range"] == header
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["etag"] == f'"{DIGEST}"'

    async def test_behind_the_end_is_refused_with_the_size(self, ada: Reader) -> None:
        answer = await ada.get(range="bytes=10-")

        assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
        assert answer.headers["content-range"] == "bytes */10"

    @pytest.mark.parametrize("wanted", ["bytes=0-1,4-5", "bytes=5-2", "lines=1-2"])
    async def test_that_is_no_single_one_gives_the_whole(self, ada: Reader, wanted: str) -> None:
        answer = await ada.get(range=wanted)

        assert (answer.status_code, answer.content) == (200, TEXT)

    @pytest.mark.parametrize(
        ("condition", "status"),
        [
            (f'"{DIGEST}"', 206),
            (MADE, 206),
            ('"another"', 200),
            (f'W/"{DIGEST}"', 200),
            ("Sat, 21 Nov 2026 10:30:14 GMT", 200),
            ("Sat, 21 Nov 2026 10:30:16 GMT", 200),
        ],
    )
    async def test_counts_only_for_the_file_that_the_client_has(self, ada: Reader, condition: str, status: int) -> None:
        answer = await ada.get(range="bytes=1-2", if_range=condition)

        assert answer.status_code == status


class TestConditions:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"if_none_match": f'"{DIGEST}"'}, 304),
            ({"if_none_match": f'"x", W/"{DIGEST}"'}, 304),
            ({"if_none_match": "*"}, 304),
            ({"if_none_match": '"x"'}, 200),
            ({"if_none_match": '"x"', "if_modified_since": MADE}, 200),
            ({"if_modified_since": MADE}, 304),
            ({"if_modified_since": "Sat, 21 Nov 2026 10:30:14 GMT"}, 200),
            ({"if_modified_since": "at tea time"}, 200),
            ({"if_modified_since": "Sat, 21 Nov 99999999999999999999 10:30:14 GMT"}, 200),
            ({"if_unmodified_since": "Sat, 21 Nov 2026 10:30:14 +99999999999999999999"}, 200),
            ({"if_none_match": f'"{DIGEST}"', "range": "bytes=1-2"}, 304),
            ({"if_match": f'"{DIGEST}"'}, 200),
            ({"if_match": "*"}, 200),
            ({"if_match": f'W/"{DIGEST}"'}, 412),
            ({"if_match": '"x"'}, 412),
            ({"if_unmodified_since": MADE}, 200),
            ({"if_unmodified_since": "Sat, 21 Nov 2026 10:30:14 GMT"}, 412),
        ],
    )
    async def test_are_kept(self, ada: Reader, headers: dict[str, str], status: int) -> None:
        got, head = await ada.get(**headers), await ada.ask("HEAD", **headers)

        assert (got.status_code, head.status_code) == (status, status)
        if status == 304:
            assert got.content == b""
            assert got.headers["etag"] == f'"{DIGEST}"'
            assert got.headers["last-modified"] == MADE
            assert got.headers["cache-control"] == "private, no-cache"


class TestReaders:
    async def test_of_what_is_private_are_its_owner_and_administrators(self, ada: Reader) -> None:
        bob, key = await make_signed_in(), await make_api_key("uploads:read")
        weak = await make_api_key("items:read")
        url = content_of(ada.upload)

        answers = [await ada.client.get(url, headers=who) for who in ({}, bob.headers, weak.headers, key.headers)]

        assert [answer.status_code for answer in answers] == [404, 404, 403, 200]

    async def test_of_what_is_public_is_everybody(self, client: AsyncClient) -> None:
        user = await make_signed_in()
        upload = await store_upload(user, TEXT, visibility=Visibility.PUBLIC)
        weak = await make_api_key("items:read")

        answers = [await client.get(content_of(upload), headers=who) for who in ({}, weak.headers, user.headers)]

        assert [answer.content for answer in answers] == [TEXT] * 3
        assert {answer.headers["cache-control"] for answer in answers} == {"public, max-age=300"}

    async def test_of_a_public_one_without_credentials_spend_the_rate_of_strangers(self, serve: Serve) -> None:
        async with serve(rate_limit_anonymous="2/minute") as client:
            upload = await store_upload(None, TEXT, visibility=Visibility.PUBLIC)
            codes = [(await client.get(content_of(upload))).status_code for _ in range(3)]

        assert codes == [200, 200, 429]

    async def test_of_what_is_in_a_conversation_are_those_who_take_part(self, client: AsyncClient) -> None:
        user, bob, eve = await make_signed_in(), await make_signed_in(), await make_signed_in()
        conversation = await make_conversation(user, bob)
        upload = await store_upload(user, TEXT, conversation_id=conversation.id)

        codes = [(await client.get(content_of(upload), headers=who.headers)).status_code for who in (bob, eve)]

        assert codes == [200, 404]

    @pytest.mark.parametrize(
        ("status", "own", "others"),
        [
            (UploadStatus.PENDING, (409, "conflict"), (404, "not_found")),
            (UploadStatus.INFECTED, (404, "not_found"), (404, "not_found")),
            (UploadStatus.FAILED, (404, "not_found"), (404, "not_found")),
        ],
    )
    @pytest.mark.parametrize("part", ["content", "thumbnail", "text"])
    async def test_get_nothing_before_it_is_clean(
        self, client: AsyncClient, part: str, status: UploadStatus, own: tuple[int, str], others: tuple[int, str]
    ) -> None:
        user, bob = await make_signed_in(), await make_signed_in()
        upload = await store_upload(user, status=status, visibility=Visibility.PUBLIC)
        url = f"/api/v1/uploads/{upload.id}/{part}"

        answers = [await client.get(url, headers=who) for who in (user.headers, bob.headers, {})]

        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [own, others, others]

    @pytest.mark.parametrize("part", ["content", "thumbnail", "text"])
    @pytest.mark.parametrize("upload_id", ["6b01811098ac8cb6e718c104", "tea"])
    async def test_find_nothing_under_other_ids(self, ada: Reader, part: str, upload_id: str) -> None:
        answer = await ada.client.get(f"/api/v1/uploads/{upload_id}/{part}", headers=ada.user.headers)

        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


class TestLostBytes:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_are_told_as_not_found_and_logged(self, ada: Reader, method: str) -> None:
        await get_storage().delete(key_of(ada.upload.stem))

        with capture_logs() as logs:
            answer = await ada.ask(method)

        assert answer.status_code == 404
        lost = [line for line in logs if line["event"] == "stored_object_missing"]
        assert [(line["log_level"], line["stored"]) for line in lost] == [("error", f"{ada.upload.stem}.original")]


class Asked:
    """One request spoken to the application itself, so that a test sees what it does between chunks."""

    def __init__(self, app: Any, upload: Upload, user: SignedInUser) -> None:
        self.taken = 0
        self.is_over = asyncio.Event()
        self.has_hung_up = asyncio.Event()
        self._app = app
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "path": content_of(upload),
            "raw_path": content_of(upload).encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(b"authorization", user.headers["Authorization"].encode())],
            "client": ("127.0.0.1", 50000),
            "server": ("test", 80),
        }
        self._is_asked = False
        self.room = asyncio.Semaphore(0)
        self._has_taken = asyncio.Condition()

    async def run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self.is_over.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.has_hung_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and message.get("body"):
            await self.room.acquire()
            async with self._has_taken:
                self.taken += len(message["body"])
                self._has_taken.notify_all()

    async def has_taken(self, size: int) -> None:
        async with asyncio.timeout(5), self._has_taken:
            await self._has_taken.wait_for(lambda: self.taken >= size)


def app_of(client: AsyncClient) -> Any:
    assert isinstance(client._transport, ASGITransport)
    return client._transport.app


class Reads:
    """Counts what the storage was asked for, and whether it was told that this is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given = 0
        self.is_closed = False
        storage = get_storage()
        read = storage.read

        async def counted(key: str, **bounds: Any) -> Any:
            try:
                async for chunk in read(key, **bounds):
                    self.given += len(chunk)
                    yield chunk
            finally:
                self.is_closed = True

        monkeypatch.setattr(storage, "read", counted)


class TestStreaming:
    async def test_reads_no_further_than_the_client_takes(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = await make_signed_in()
        upload = await store_upload(user, bytes(16 * 1024 * 1024), content_type="image/png")
        asked, reads = Asked(app_of(client), upload, user), Reads(monkeypatch)

        task = asyncio.create_task(asked.run())
        for number in range(1, 4):
            asked.room.release()
            await asked.has_taken(number * 1024 * 1024)
            assert reads.given <= (number + 1) * 1024 * 1024
        asked.has_hung_up.set()
        await asyncio.wait_for(asked.is_over.wait(), 5)
        await task

        assert reads.is_closed
        assert reads.given <= 5 * 1024 * 1024

    async def test_ends_at_once_when_the_client_hangs_up(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = await make_signed_in()
        upload = await store_upload(user, bytes(16 * 1024 * 1024), content_type="image/png")
        asked, reads = Asked(app_of(client), upload, user), Reads(monkeypatch)
        asked.has_hung_up.set()

        await asyncio.wait_for(asked.run(), 5)

        assert reads.is_closed
        assert reads.given <= 1024 * 1024
