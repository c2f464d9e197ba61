"""What is left of uploads goes, whoever died on the way."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core import background
from app.core.clock import utc_now
from app.core.config import Settings, use_settings
from app.core.exceptions import StorageUnavailableError
from app.core.principal import Principal
from app.core.stored_object import key_of, new_stem
from app.crud import crud_purge, crud_usage
from app.db.mongo import connected
from app.models.enums import UploadStatus
from app.models.upload import DeletedUpload, Upload
from app.models.usage_counter import UsageTotal
from app.services import purge_service, upload_orphan_service, upload_removal_service, user_service
from app.services.storage import Storage, open_storage
from app.services.upload_orphan_service import Orphans
from app.services.upload_removal_service import CleanUp
from tests.api.test_uploads import objects, storage_used
from tests.factories import StoredUser, make_upload, make_user

OPERATOR = Principal.system("test")


@pytest.fixture(autouse=True)
async def storage(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Storage]:
    """Database and storage without the application, whose jobs would do it by themselves."""
    settings = make_settings(deleted_retention_days=0)
    use_settings(settings)
    async with connected(database_url), open_storage(settings) as storage:
        yield storage
        await background.drain()


async def store(storage: Storage, stem: str, content: bytes = b"Hello, world", part: str = "original") -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    await storage.write(key_of(stem, part), chunks())


async def make_stored(storage: Storage, owner: StoredUser | None, **more: Any) -> Upload:
    """With its bytes, and a thumbnail, and counted."""
    upload = await make_upload(owner, **more)
    await store(storage, upload.stem)
    await store(storage, upload.stem, b"small", "thumbnail-64")
    if owner is not None:
        await crud_usage.open_totals(owner.id)
        await crud_usage.count_storage(owner.id, upload.size, limit=None)
    return upload


def ago(**time: float) -> dict[str, Any]:
    return {"due_at": utc_now() - timedelta(**time), "status": UploadStatus.PENDING}


class TestLinks:
    async def test_of_what_is_gone_leave_no_bytes_behind(
        self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody can take back a link of Azure: who has one may put the bytes again until it ends."""
        now, ada = utc_now(), await make_user()
        link = {"is_direct": True, "link_ends_at": now + timedelta(minutes=50)}
        deleted, purged = await make_stored(storage, ada, **link), await make_stored(storage, ada, **link)
        await upload_removal_service.delete(deleted.id, by=OPERATOR)
        await crud_purge.remove_uploads(crud_purge.UPLOADED, ada.id, [purged.id])
        await background.drain()

        assert (await upload_removal_service.clean_up()).removed == 1
        assert objects(tmp_path) == []
        for upload in (deleted, purged):
            await store(storage, upload.stem)
        seen = []
        for minutes in (49, 109, 110):
            monkeypatch.setattr("app.crud.crud_upload.utc_now", lambda later=minutes: now + timedelta(minutes=later))
            done = await upload_removal_service.clean_up()
            seen.append((done.removed, len(objects(tmp_path)), await DeletedUpload.count()))

        assert seen == [(0, 2, 2), (0, 2, 2), (2, 0, 0)]


class TestCleanUp:
    async def test_gives_up_what_is_due(self, storage: Storage, tmp_path: Path) -> None:
        ada = await make_user()
        await make_stored(storage, ada, **ago(seconds=1))
        await make_stored(storage, None, **ago(seconds=1))
        kept = [await make_stored(storage, ada, **ago(seconds=-60)), await make_stored(storage, ada)]

        done = await upload_removal_service.clean_up()

        assert done == CleanUp(given_up=2, removed=2, swept=0)
        assert {each.id for each in await Upload.find_all().to_list()} == {each.id for each in kept}
        assert await storage_used(ada) == 22
        assert len(objects(tmp_path)) == 4
        assert await DeletedUpload.count() == 0

    async def test_leaves_alone_what_is_prolonged_or_taken_meanwhile(self, storage: Storage) -> None:
        ada = await make_user()
        upload = await make_stored(storage, ada, **ago(seconds=1))
        await Upload.find({"_id": upload.id}).set({"status": "clean", "due_at": None})

        assert not await upload_removal_service._give_up_due(upload.id)
        assert await storage_used(ada) == 11

    async def test_goes_on_where_another_has_ended(
        self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_user()
        uploads = [await make_stored(storage, ada) for _ in range(3)]
        removed = 0
        delete_all = storage.delete_all

        async def away(_: str) -> None:
            raise StorageUnavailableError

        async def away_after_one(stem: str) -> None:
            nonlocal removed
            if removed:
                raise StorageUnavailableError
            removed += 1
            await delete_all(stem)

        monkeypatch.setattr(storage, "delete_all", away)
        for upload in uploads:
            await upload_removal_service.delete(upload.id, by=OPERATOR)
        await background.drain()
        assert (await DeletedUpload.count(), await storage_used(ada), len(objects(tmp_path))) == (3, 0, 6)

        monkeypatch.setattr(storage, "delete_all", away_after_one)
        with pytest.raises(StorageUnavailableError):
            await upload_removal_service.clean_up()
        assert (await DeletedUpload.count(), len(objects(tmp_path))) == (2, 4)

        monkeypatch.setattr(storage, "delete_all", delete_all)
        assert await upload_removal_service.clean_up() == CleanUp(given_up=0, removed=2, swept=0)
        assert (await DeletedUpload.count(), objects(tmp_path)) == (0, [])

    async def test_goes_on_past_what_can_not_be_removed(
        self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uploads = [await make_stored(storage, None, **ago(seconds=1)) for _ in range(3)]
        delete_all = storage.delete_all

        async def stuck(stem: str) -> None:
            if stem == uploads[0].stem:
                raise StorageUnavailableError
            await delete_all(stem)

        monkeypatch.setattr(storage, "delete_all", stuck)
        with pytest.raises(StorageUnavailableError):
            await upload_removal_service.clean_up()

        assert [note.stem for note in await DeletedUpload.find_all().to_list()] == [uploads[0].stem]
        assert len(objects(tmp_path)) == 2

    async def test_works_through_many(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upload_removal_service, "_BATCH", 2)
        ada = await make_user()
        for _ in range(5):
            await make_stored(storage, ada, **ago(seconds=1))

        assert await upload_removal_service.clean_up() == CleanUp(given_up=5, removed=5, swept=0)
        assert await storage_used(ada) == 0


class TestPurge:
    async def test_takes_the_bytes_along(self, storage: Storage, tmp_path: Path) -> None:
        ada, friend = await make_user(), await make_user()
        await make_stored(storage, ada)
        await make_stored(storage, ada, **ago(seconds=-60))
        kept = await make_stored(storage, friend)
        await user_service.delete(ada.id, current_password=None, reason=None, versions=None, by=OPERATOR)

        await purge_service.purge_due()
        await upload_removal_service.clean_up()

        assert [each.id for each in await Upload.find_all().to_list()] == [kept.id]
        assert await UsageTotal.get(ada.id) is None
        assert len(objects(tmp_path)) == 2


class TestFindOrphans:
    async def test_tells_of_both_sides_and_removes_nothing(
        self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upload_orphan_service, "_BATCH", 3)
        monkeypatch.setattr(upload_orphan_service, "_OLD", timedelta(0))
        for at in range(7):
            await make_stored(storage, None)
            await make_upload(None)  # without bytes
            if at < 4:
                await store(storage, new_stem(), b"12345")

        found = await upload_orphan_service.find_orphans()

        assert found == Orphans(objects=18, unowned=4, unowned_bytes=20, missing=7)
        assert (await Upload.count(), len(objects(tmp_path))) == (14, 18)

    async def test_leaves_alone_what_is_young_or_not_yet_taken(self, storage: Storage) -> None:
        await make_upload(None)
        await store(storage, new_stem())
        await make_upload(None, status=UploadStatus.PENDING, updated_at=utc_now() - timedelta(days=2))

        assert await upload_orphan_service.find_orphans() == Orphans(1, 0, 0, 0)

    async def test_of_nothing_is_nothing(self) -> None:
        assert await upload_orphan_service.find_orphans() == Orphans(0, 0, 0, 0)
