"""Links that need no credentials, to this service or to the storage itself; and downloads that are sent there."""

from datetime import datetime, timedelta
from io import BytesIO
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pytest
from httpx import AsyncClient
from PIL import Image

from app.core import signed_link
from app.core.clock import utc_now
from app.core.stored_object import key_of
from app.models.audit_event import AuditEvent
from app.models.enums import UploadStatus, Visibility
from app.models.upload import Upload
from app.services.storage import get_storage
from tests.azure_app import HOME, ServeStorage, azurite, client, follow, home, serve_azure, serve_either
from tests.conftest import Serve
from tests.factories import SignedInUser, make_api_key, make_conversation, make_signed_in
from tests.hostile_files import picture
from tests.stored_uploads import store_upload

__all__ = ["azurite", "client", "home", "serve_azure", "serve_either"]  # fixtures

PICTURE = picture(size=(400, 200))


@pytest.fixture
async def ada(client: AsyncClient) -> SignedInUser:  # noqa: ARG001 - the application runs
    return await make_signed_in()


async def make_link(client: AsyncClient, upload: Upload, user: SignedInUser, **body: object) -> str:
    answer = await client.post(f"/api/v1/uploads/{upload.id}/url", headers=user.headers, json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["url"])


def changed(url: str, **query: str | None) -> str:
    parts = urlsplit(url)
    pairs = {name: value for name, value in {**dict(parse_qsl(parts.query)), **query}.items() if value is not None}
    return urlunsplit(parts._replace(query=urlencode(pairs)))


def moved(url: str, old: str, new: str) -> str:
    assert old in url
    return url.replace(old, new)


class TestLink:
    async def test_gives_the_file_to_whoever_has_it(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_upload(ada, PICTURE, content_type="image/png", filename="tea.png")

        url = await make_link(client, upload, ada)
        answer = await follow(client, url)
        part = await follow(client, url, Range="bytes=1-3")

        assert (answer.status_code, answer.content) == (200, PICTURE)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"] == 'inline; filename="tea.png"'
        assert (part.status_code, part.content) == (206, b"PNG")

    async def test_may_be_one_to_save_the_file(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_upload(ada, PICTURE, content_type="image/png", filename="tea.png")

        answer = await follow(client, await make_link(client, upload, ada, download=True))

        assert answer.headers["content-disposition"] == 'attachment; filename="tea.png"'

    async def test_to_what_a_browser_might_run_is_one_to_save_it(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_upload(ada, b"<svg/>", content_type="image/svg+xml", filename="tea.svg")

        answer = await follow(client, await make_link(client, upload, ada))

        assert answer.headers["content-disposition"] == 'attachment; filename="tea.svg"'
        assert answer.headers["content-type"] == "application/octet-stream" or "nosniff" in str(answer.headers)

    @pytest.mark.parametrize("size", [64, 256])
    async def test_may_be_to_a_thumbnail(self, client: AsyncClient, ada: SignedInUser, size: int) -> None:
        upload = await store_upload(ada, PICTURE, content_type="image/png")

        answer = await follow(client, await make_link(client, upload, ada, thumbnail=size))

        assert answer.headers["content-type"] == "image/webp"
        assert Image.open(BytesIO(answer.content)).size == (size, size // 2)

    async def test_to_a_thumbnail_that_can_not_be_is_refused(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_upload(ada, b"Hello")

        answer = await client.post(f"/api/v1/uploads/{upload.id}/url", headers=ada.headers, json={"thumbnail": 64})

        assert (answer.status_code, answer.json()["code"]) == (422, "file_rejected")

    async def test_ends_with_the_upload(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_upload(ada, PICTURE, content_type="image/png")
        url = await make_link(client, upload, ada)

        await get_storage().delete(key_of(upload.stem))
        await upload.delete()

        assert (await follow(client, url)).status_code == 404

    async def test_says_when_it_ends(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_upload(ada)
        url = f"/api/v1/uploads/{upload.id}/url"

        lives = []
        for body in ({}, {"expires_in": 1}, {"expires_in": 7 * 24 * 3600}):
            answer = await client.post(url, headers=ada.headers, json=body)
            lives.append(datetime.fromisoformat(answer.json()["expires_at"]) - utc_now())

        for life, seconds in zip(lives, (3600, 1, 604800), strict=True):
            assert timedelta(seconds=seconds - 10) < life <= timedelta(seconds=seconds)

    @pytest.mark.parametrize(
        "body",
        [
            {"expires_in": 0},
            {"expires_in": 604801},
            {"expires_in": 1.5},
            {"thumbnail": 65},
            {"download": "x"},
            {"tea": 1},
        ],
    )
    async def test_is_not_made_of_nonsense(
        self, client: AsyncClient, ada: SignedInUser, body: dict[str, object]
    ) -> None:
        upload = await store_upload(ada, PICTURE, content_type="image/png")

        answer = await client.post(f"/api/v1/uploads/{upload.id}/url", headers=ada.headers, json=body)

        assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")

    async def test_is_made_by_whoever_may_read(self, client: AsyncClient, ada: SignedInUser) -> None:
        bob, eve = await make_signed_in(), await make_signed_in()
        conversation = await make_conversation(ada, bob)
        upload = await store_upload(ada, conversation_id=conversation.id)
        weak = await make_api_key("items:read")
        url = f"/api/v1/uploads/{upload.id}/url"

        codes = [
            (await client.post(url, headers=who, json={})).status_code
            for who in (bob.headers, eve.headers, weak.headers, {})
        ]

        assert codes == [200, 404, 403, 401]

    @pytest.mark.parametrize(("status", "code"), [(UploadStatus.PENDING, 409), (UploadStatus.FAILED, 404)])
    async def test_is_made_only_to_what_is_clean(
        self, client: AsyncClient, ada: SignedInUser, status: UploadStatus, code: int
    ) -> None:
        upload = await store_upload(ada, status=status)

        answer = await client.post(f"/api/v1/uploads/{upload.id}/url", headers=ada.headers, json={})

        assert answer.status_code == code

    async def test_is_in_the_audit_trail(self, client: AsyncClient, ada: SignedInUser) -> None:
        upload = await store_upload(ada)
        await make_link(client, upload, ada)

        [event] = await AuditEvent.find(AuditEvent.action == "upload:linked").to_list()

        assert (event.actor.id, event.target.id) == (ada.id, upload.id)
        assert event.details["part"] == "content"


class TestOwnLink:
    async def test_is_good_for_nothing_else(self, home: AsyncClient) -> None:
        ada = await make_signed_in()
        upload, other = [await store_upload(ada, PICTURE, content_type="image/png") for _ in range(2)]
        url = await make_link(home, upload, ada, thumbnail=64)
        late = str(int(dict(parse_qsl(urlsplit(url).query))["expires"]) + 1)

        others = [
            changed(url, size="256"),
            changed(url, size=None),
            changed(url, size="064"),
            changed(url, download="1"),
            changed(url, expires=late),
            changed(url, expires="never"),
            changed(url, expires=None),
            changed(url, signature="A" * 43),
            changed(url, signature=""),
            moved(url, "/thumbnail", "/content"),
            moved(url, "/thumbnail", "/text"),
            moved(url, str(upload.id), str(other.id)),
            moved(url, str(upload.id), "tea"),
        ]
        answers = [await follow(home, each) for each in others]

        assert (await follow(home, url)).status_code == 200
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(403, "forbidden")] * 13

    async def test_opens_nothing_else_for_who_is_signed_in(self, home: AsyncClient) -> None:
        ada = await make_signed_in()
        upload = await store_upload(ada)
        url = changed(await make_link(home, upload, ada), signature="A" * 43)

        answer = await follow(home, url, **ada.headers)

        assert answer.status_code == 403

    async def test_ends(self, home: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await make_signed_in()
        upload = await store_upload(ada)
        url = await make_link(home, upload, ada, expires_in=60)

        codes = []
        for seconds in (59, 62):
            later = utc_now() + timedelta(seconds=seconds)
            monkeypatch.setattr(signed_link, "utc_now", lambda later=later: later)
            codes.append((await follow(home, url)).status_code)

        assert codes == [200, 403]

    async def test_ends_when_the_upload_is_no_longer_clean(self, home: AsyncClient) -> None:
        ada = await make_signed_in()
        upload = await store_upload(ada)
        url = await make_link(home, upload, ada)
        await upload.set({"status": UploadStatus.INFECTED})

        assert (await follow(home, url)).status_code == 404

    async def test_is_not_held_to_the_rate_of_strangers(self, serve: Serve) -> None:
        async with serve(public_url=HOME, rate_limit_anonymous="1/minute", rate_limit_authenticated="4/minute") as home:
            ada = await make_signed_in()
            upload = await store_upload(ada)
            url = await make_link(home, upload, ada)
            good = [(await follow(home, url)).status_code for _ in range(5)]
            bad = [(await follow(home, changed(url, expires="1"))).status_code for _ in range(2)]

        assert good == [200, 200, 200, 200, 429]
        assert bad == [403, 429]


class TestRedirect:
    async def test_leads_to_the_storage(self, serve_azure: ServeStorage) -> None:
        async with serve_azure(upload_redirect=True) as client:
            ada, bob = await make_signed_in(), await make_signed_in()
            upload = await store_upload(ada, PICTURE, content_type="image/png", filename="tea.png")
            url = f"/api/v1/uploads/{upload.id}/content"

            answer = await client.get(url, headers=ada.headers)
            saved = await client.get(f"{url}?download=1", headers=ada.headers)
            small = await client.get(f"/api/v1/uploads/{upload.id}/thumbnail?size=64", headers=ada.headers)
            same = await client.get(url, headers=ada.headers | {"If-None-Match": "*"})
            strange = await client.get(url, headers=bob.headers)
            given = [await follow(client, each.headers["location"]) for each in (answer, saved, small)]

        assert [each.status_code for each in (answer, same, strange)] == [302, 304, 404]
        assert answer.headers["cache-control"] == "no-store"
        assert [each.status_code for each in given] == [200, 200, 200]
        assert given[0].content == PICTURE
        assert [each.headers["content-type"] for each in given] == ["image/png", "image/png", "image/webp"]
        assert [each.headers["content-disposition"] for each in given[:2]] == [
            'inline; filename="tea.png"',
            'attachment; filename="tea.png"',
        ]

    async def test_does_not_say_that_a_page_is_one(self, serve_azure: ServeStorage) -> None:
        async with serve_azure(upload_redirect=True) as client:
            upload = await store_upload(
                None, b"<script>", content_type="text/html", filename="tea.html", visibility=Visibility.PUBLIC
            )

            answer = await client.get(f"/api/v1/uploads/{upload.id}/content")
            given = await follow(client, answer.headers["location"])

        assert given.headers["content-type"] == "application/octet-stream"
        assert given.headers["content-disposition"] == 'attachment; filename="tea.html"'

    async def test_is_not_made_unless_it_is_asked_for(self, serve_azure: ServeStorage) -> None:
        async with serve_azure() as client:
            ada = await make_signed_in()
            upload = await store_upload(ada, PICTURE * 1000, content_type="image/png")

            answer = await client.get(f"/api/v1/uploads/{upload.id}/content", headers=ada.headers)
            part = await client.get(
                f"/api/v1/uploads/{upload.id}/content", headers=ada.headers | {"Range": "bytes=400000-400009"}
            )

        assert (answer.status_code, answer.content) == (200, PICTURE * 1000)
        assert (part.status_code, part.content) == (206, (PICTURE * 1000)[400000:400010])
