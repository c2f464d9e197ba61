"""Thumbnails and texts are made once, stored beside the file, and refused for good where the file can't be read."""

import asyncio
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient, Response
from PIL import Image

from app.core.file_work import Fault
from app.core.stored_object import key_of
from app.models.enums import UploadStatus, Visibility
from app.models.upload import Upload
from app.services import upload_variant_service
from app.services.file_worker import Failure, FileWorkers, file_workers
from app.services.storage import get_storage
from tests.factories import SignedInUser, make_signed_in, make_upload
from tests.hostile_files import pdf, photo, picture, png_bomb, word
from tests.scraping import scrape
from tests.stored_uploads import chunks, store_upload

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


@pytest.fixture
async def ada(client: AsyncClient) -> SignedInUser:  # noqa: ARG001 - the application runs
    return await make_signed_in()


async def store_picture(owner: SignedInUser, **more: Any) -> Upload:
    content = picture(size=(400, 200))
    return await store_upload(owner, content, content_type="image/png", filename="tea.png", **more)


def thumbnail_of(upload: Upload, size: int) -> str:
    return f"/api/v1/uploads/{upload.id}/thumbnail?size={size}"


def text_of(upload: Upload) -> str:
    return f"/api/v1/uploads/{upload.id}/text"


def opened(answer: Response) -> Image.Image:
    return Image.open(BytesIO(answer.content))


class Works:
    """Counts what file workers are asked for, and can keep them from going on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.has_begun = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        work = FileWorkers.work

        async def counted(workers: FileWorkers, *arguments: Any) -> Any:
            self.count += 1
            self.has_begun.set()
            await self.may_go_on.wait()
            return await work(workers, *arguments)

        monkeypatch.setattr(FileWorkers, "work", counted)


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Works:
    return Works(monkeypatch)


class TestThumbnail:
    async def test_is_a_small_picture_in_webp(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_picture(ada)

        answer = await client.get(thumbnail_of(upload, 64), headers=ada.headers)

        assert answer.status_code == 200
        assert (opened(answer).format, opened(answer).size) == ("WEBP", (64, 32))
        shown = ("content-type", "content-disposition", "cache-control", "content-length", "accept-ranges")
        assert {name: answer.headers[name] for name in shown} == {
            "content-type": "image/webp",
            "content-disposition": 'inline; filename="tea-64.webp"',
            "cache-control": "private, no-cache",
            "content-length": str(len(answer.content)),
            "accept-ranges": "bytes",
        }

    async def test_has_256_pixels_unless_another_size_is_asked_for(
        self, client: AsyncClient, ada: SignedInUser
    ) -> None:
        upload = await store_picture(ada)

        answer = await client.get(f"/api/v1/uploads/{upload.id}/thumbnail", headers=ada.headers)

        assert opened(answer).size == (256, 128)

    async def test_is_upright_and_says_nothing_of_where_it_was_taken(
        self, client: AsyncClient, ada: SignedInUser
    ) -> None:
        upload = await store_upload(ada, photo(size=(400, 200), orientation=6), content_type="image/jpeg")

        answer = await client.get(thumbnail_of(upload, 64), headers=ada.headers)

        assert opened(answer).size == (32, 64)
        assert "exif" not in opened(answer).info

    async def test_is_made_in_all_sizes_at_once(self, client: AsyncClient, ada: SignedInUser, works: Works) -> None:
        upload = await store_picture(ada)

        sizes = [
            opened(await client.get(thumbnail_of(upload, size), headers=ada.headers)).size for size in (64, 256, 1024)
        ]
        known = await client.get(f"/api/v1/uploads/{upload.id}", headers=ada.headers)

        assert sizes == [(64, 32), (256, 128), (400, 200)]
        assert works.count == 1
        assert known.json()["variants"] == [64, 256, 1024]

    async def test_is_made_once_for_a_crowd(self, client: AsyncClient, ada: SignedInUser, works: Works) -> None:
        upload = await store_picture(ada)

        answers = await asyncio.gather(*(client.get(thumbnail_of(upload, 256), headers=ada.headers) for _ in range(10)))

        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert works.count == 1

    async def test_is_the_one_of_whoever_was_first(self, client: AsyncClient, ada: SignedInUser, works: Works) -> None:
        upload = await store_picture(ada)
        works.may_go_on.clear()
        task = asyncio.create_task(client.get(thumbnail_of(upload, 64), headers=ada.headers))
        await asyncio.wait_for(works.has_begun.wait(), 5)
        await get_storage().write(key_of(upload.stem, "thumbnail-64"), chunks(b"of another process"))

        works.may_go_on.set()
        answer = await task

        assert (answer.status_code, answer.content) == (200, b"of another process")

    async def test_can_be_asked_for_conditionally_and_in_ranges(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_picture(ada)
        url = thumbnail_of(upload, 64)
        whole = await client.get(url, headers=ada.headers)

        same = await client.get(url, headers=ada.headers | {"If-None-Match": whole.headers["etag"]})
        other = await client.get(thumbnail_of(upload, 256), headers=ada.headers)
        part = await client.get(url, headers=ada.headers | {"Range": "bytes=0-3"})
        head = await client.head(url, headers=ada.headers)

        assert (same.status_code, part.status_code, head.status_code) == (304, 206, 200)
        assert part.content == b"RIFF"
        assert other.headers["etag"] != whole.headers["etag"]
        assert head.headers["content-length"] == str(len(whole.content))

    async def test_that_was_lost_is_made_again(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_picture(ada)
        await client.get(thumbnail_of(upload, 64), headers=ada.headers)
        await get_storage().delete(key_of(upload.stem, "thumbnail-64"))

        answer = await client.get(thumbnail_of(upload, 64), headers=ada.headers)

        assert opened(answer).size == (64, 32)

    async def test_of_a_public_one_is_everybodys(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload, secret = await store_picture(ada, visibility=Visibility.PUBLIC), await store_picture(ada)

        answers = [await client.get(thumbnail_of(each, 64)) for each in (upload, secret)]

        assert [answer.status_code for answer in answers] == [200, 404]
        assert answers[0].headers["cache-control"] == "public, max-age=300"


class TestRefusedThumbnail:
    @pytest.mark.parametrize(("content", "content_type"), [(b"Hello", "text/plain"), (pdf("Hello"), "application/pdf")])
    async def test_of_what_is_no_picture(
        self, client: AsyncClient, ada: SignedInUser, works: Works, content: bytes, content_type: str
    ) -> None:
        upload = await store_upload(ada, content, content_type=content_type)

        answer = await client.get(thumbnail_of(upload, 64), headers=ada.headers)

        assert (answer.status_code, answer.json()["code"]) == (422, "file_rejected")
        assert works.count == 0

    async def test_of_a_picture_that_is_a_bomb_is_tried_once(
        self, client: AsyncClient, ada: SignedInUser, works: Works
    ) -> None:
        upload = await store_upload(ada, png_bomb(), content_type="image/png")

        answers = [await client.get(thumbnail_of(upload, size), headers=ada.headers) for size in (64, 64, 256)]

        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(422, "file_rejected")] * 3
        assert len({answer.json()["detail"] for answer in answers}) == 1
        assert works.count == 1
        assert (await client.get(f"/api/v1/uploads/{upload.id}/content", headers=ada.headers)).status_code == 200

    async def test_of_a_picture_that_is_too_large(
        self, client: AsyncClient, ada: SignedInUser, works: Works, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload = await store_picture(ada)
        monkeypatch.setattr(upload_variant_service, "MOST_BYTES", upload.size - 1)

        answer = await client.get(thumbnail_of(upload, 64), headers=ada.headers)

        assert (answer.status_code, answer.json()["code"]) == (422, "file_rejected")
        assert works.count == 0

    async def test_when_there_is_too_much_to_do_is_no_refusal_for_good(
        self, client: AsyncClient, ada: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload = await store_picture(ada)

        async def busy(*_: Any) -> Failure:
            return Failure(Fault.BUSY, "Later.")

        with monkeypatch.context() as patch:
            patch.setattr(FileWorkers, "work", busy)
            answer = await client.get(thumbnail_of(upload, 64), headers=ada.headers)
        again = await client.get(thumbnail_of(upload, 64), headers=ada.headers)

        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert int(answer.headers["retry-after"]) > 0
        assert again.status_code == 200

    async def test_when_too_many_wait_already(
        self, client: AsyncClient, ada: SignedInUser, works: Works, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upload_variant_service, "_MOST_AT_ONCE", 1)
        first, second = await store_picture(ada), await store_picture(ada)
        works.may_go_on.clear()
        task = asyncio.create_task(client.get(thumbnail_of(first, 64), headers=ada.headers))
        await asyncio.wait_for(works.has_begun.wait(), 5)

        answer = await client.get(thumbnail_of(second, 64), headers=ada.headers)
        works.may_go_on.set()

        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert (await task).status_code == 200
        assert (await client.get(thumbnail_of(second, 64), headers=ada.headers)).status_code == 200

    async def test_leaves_no_copy_behind_even_by_a_process_that_is_killed(
        self, client: AsyncClient, ada: SignedInUser, works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        upload = await store_picture(ada)
        works.may_go_on.clear()
        task = asyncio.create_task(client.get(thumbnail_of(upload, 64), headers=ada.headers))
        await asyncio.wait_for(works.has_begun.wait(), 5)

        names = os.listdir(tmp_path)  # noqa: PTH208
        works.may_go_on.set()

        assert not any("octopus-" in name for name in names)
        assert (await task).status_code == 200

    async def test_copies_no_more_files_than_are_worked_on(
        self, client: AsyncClient, ada: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(file_workers(), "_places", asyncio.Semaphore(2))
        uploads, copies, most = [await store_picture(ada) for _ in range(4)], [], 0
        make = tempfile.TemporaryFile

        def counted(**options: Any) -> Any:
            nonlocal most
            copies.append(make(**options))
            most = max(most, sum(not copy.closed for copy in copies))
            return copies[-1]

        monkeypatch.setattr("tempfile.TemporaryFile", counted)
        asked = [client.get(thumbnail_of(upload, 64), headers=ada.headers) for upload in uploads]
        answers = await asyncio.gather(*asked)

        assert [answer.status_code for answer in answers] == [200] * 4
        assert (len(copies), most) == (4, 2)

    async def test_is_seen_in_the_metrics_while_it_waits(
        self, client: AsyncClient, ada: SignedInUser, works: Works, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(file_workers(), "_places", asyncio.Semaphore(1))
        uploads = [await store_picture(ada) for _ in range(4)]
        works.may_go_on.clear()
        asked = [asyncio.create_task(client.get(thumbnail_of(each, 64), headers=ada.headers)) for each in uploads]

        async with asyncio.timeout(10):
            while (await scrape(client)).value("octopus_file_work_waiting") != 3:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
        works.may_go_on.set()

        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 4
        assert (await scrape(client)).value("octopus_file_work_waiting") == 0


class TestDeletedMeanwhile:
    async def test_leaves_no_thumbnail_behind(self, client: AsyncClient, ada: SignedInUser, works: Works) -> None:
        upload = await store_picture(ada)
        works.may_go_on.clear()
        task = asyncio.create_task(client.get(thumbnail_of(upload, 64), headers=ada.headers))
        await asyncio.wait_for(works.has_begun.wait(), 5)
        await upload.delete()
        await get_storage().delete_all(upload.stem)

        works.may_go_on.set()
        answer = await task

        assert answer.status_code == 404
        assert [found async for found in get_storage().objects()] == []


class TestText:
    @pytest.mark.parametrize(
        ("content", "content_type", "text"),
        [
            (b"Hello", "text/plain", "Hello"),
            (b"\xef\xbb\xbfTea \xe2\x98\x95", "text/markdown", "Tea ☕"),
            (b"a,b\n1,2\n", "text/csv", "a,b\n1,2\n"),
            (pdf("Hello tea"), "application/pdf", "Hello tea"),
            (word("Hello tea"), DOCX, "Hello tea"),
        ],
    )
    async def test_is_what_stands_in_the_document(
        self, client: AsyncClient, ada: SignedInUser, works: Works, content: bytes, content_type: str, text: str
    ) -> None:
        upload = await store_upload(ada, content, content_type=content_type, filename="tea.bin")

        answers = [await client.get(text_of(upload), headers=ada.headers) for _ in range(2)]

        assert [answer.content.decode().strip("\n") for answer in answers] == [text.strip("\n")] * 2
        assert answers[0].headers["content-type"] == "text/plain; charset=utf-8"
        assert answers[0].headers["content-disposition"] == 'inline; filename="tea.txt"'
        assert works.count == 1

    async def test_of_other_files_is_refused(self, client: AsyncClient, ada: SignedInUser, works: Works) -> None:
        upload = await store_picture(ada)

        answer = await client.get(text_of(upload), headers=ada.headers)

        assert (answer.status_code, answer.json()["code"]) == (422, "file_rejected")
        assert works.count == 0

    async def test_of_a_damaged_document_is_tried_once(
        self, client: AsyncClient, ada: SignedInUser, works: Works
    ) -> None:
        upload = await store_upload(ada, b"%PDF-1.7 and then nothing", content_type="application/pdf")

        answers = [await client.get(text_of(upload), headers=ada.headers) for _ in range(2)]

        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(422, "file_rejected")] * 2
        assert works.count == 1


class TestTextAvailable:
    """What the metadata say of it before anybody has asked, and after."""

    async def test_says_whether_text_can_be_asked_for(self, client: AsyncClient, ada: SignedInUser) -> None:
        damaged = await store_upload(ada, b"%PDF-1.7 and then nothing", content_type="application/pdf")
        uploads = {
            "text": await store_upload(ada),
            "picture": await store_picture(ada),
            "unchecked": await store_upload(ada, status=UploadStatus.PENDING),
            "large": await make_upload(ada, size=50_000_001),
            "as large as may be": await make_upload(ada, size=50_000_000),
            "damaged": damaged,
        }
        assert await self.said_of(damaged, client, ada)
        answers = {}
        for name in ("text", "damaged"):
            answers[name] = (await client.get(text_of(uploads[name]), headers=ada.headers)).status_code

        assert answers == {"text": 200, "damaged": 422}
        assert [name for name, upload in uploads.items() if await self.said_of(upload, client, ada)] == [
            "text",
            "as large as may be",
        ]

    async def said_of(self, upload: Upload, client: AsyncClient, ada: SignedInUser) -> bool:
        known = (await client.get(f"/api/v1/uploads/{upload.id}", headers=ada.headers)).json()
        assert isinstance(known["text_available"], bool)
        return known["text_available"]


class TestTakingTooLong:
    async def test_is_final_at_the_third_time(
        self, client: AsyncClient, ada: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = 0

        async def late(*_: Any) -> Failure:
            nonlocal tries
            tries += 1
            return Failure(Fault.TOO_LONG, "It takes too long.")

        lost, saved = await store_upload(ada), await store_picture(ada)
        with monkeypatch.context() as patch:
            patch.setattr(FileWorkers, "work", late)
            crowd = await asyncio.gather(*(client.get(text_of(lost), headers=ada.headers) for _ in range(6)))
            twice = [await client.get(thumbnail_of(saved, 64), headers=ada.headers) for _ in range(2)]
        again = await client.get(text_of(lost), headers=ada.headers)
        mended = await client.get(thumbnail_of(saved, 64), headers=ada.headers)

        assert sorted(answer.status_code for answer in crowd) == [422, 422, 422, 422, 503, 503]
        assert [(answer.status_code, answer.json()["code"]) for answer in twice] == [(503, "busy")] * 2
        assert tries == 3 + 2
        assert (again.status_code, again.json()["detail"]) == (422, "It takes too long.")
        assert mended.status_code == 200
        stored = await Upload.get(saved.id)
        assert stored is not None
        assert stored.thumbnail_timeouts == 0
