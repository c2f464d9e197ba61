"""What is made of files: thumbnails and text, when they are first asked for, and stored beside the file.

The storage says whether there is one. Of makers in several processes one wins, and the others use what it has made.
What lies in the file is remembered with the upload, so that a file nobody can read is not tried again and again.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from bson import ObjectId

from app.core.exceptions import AppError, BusyError, FileRejectedError, NotFoundError, ObjectExistsError
from app.core.file_name import content_disposition
from app.core.file_work import Fault
from app.core.principal import Principal
from app.core.stored_file import StoredFile
from app.core.stored_object import StoredObject, key_of
from app.core.text_types import MOST_BYTES, TEXT_TYPES
from app.crud import crud_upload, crud_upload_content
from app.models.enums import Visibility
from app.models.upload import Upload
from app.services import upload_content_service
from app.services.file_worker import IMAGE_TYPES, Failure, Text, file_workers
from app.services.storage import get_storage

_TEXT: Final = "text"
_MOST_TIMEOUTS: Final = 3
_MOST_AT_ONCE: Final = 32  # in one process, those that wait for a turn of a file worker among them


class Kind(NamedTuple):
    """What is made of files of these types, and the field that says why not."""

    types: frozenset[str]
    fault: str
    timeouts: str
    refusal: str


THUMBNAILS: Final = Kind(
    IMAGE_TYPES, "thumbnail_fault", "thumbnail_timeouts", "There are no thumbnails of files of this type."
)
TEXT: Final = Kind(TEXT_TYPES, "text_fault", "text_timeouts", "There is no text to be had from files of this type.")

_locks: WeakValueDictionary[tuple[ObjectId, Kind], asyncio.Lock] = WeakValueDictionary()


class _Makers:
    count = 0


async def thumbnail(upload_id: ObjectId, size: int, *, download: bool, by: Principal) -> StoredFile:
    """A picture in WebP of which no side is longer. All sizes are made at once."""
    upload = await upload_content_service.require_readable(upload_id, by=by)
    known = await _ensure(upload, f"thumbnail-{size}", THUMBNAILS)
    name = f"{_stem_of(upload.filename)}-{size}.webp"
    return _file(upload, known, "image/webp", content_disposition(name, inline=not download))


async def text(upload_id: ObjectId, *, by: Principal) -> StoredFile:
    """The text in UTF-8, as much as is taken of a document."""
    upload = await upload_content_service.require_readable(upload_id, by=by)
    known = await _ensure(upload, _TEXT, TEXT)
    name = f"{_stem_of(upload.filename)}.txt"
    return _file(upload, known, "text/plain; charset=utf-8", content_disposition(name, inline=True))


def _file(upload: Upload, known: StoredObject, content_type: str, disposition: str) -> StoredFile:
    part = known.key.rpartition(".")[2]
    return StoredFile(
        key=known.key,
        size=known.size,
        tag=f'"{upload.sha256}-{part}-{known.size:x}-{int(known.modified_at.timestamp()):x}"',
        modified_at=known.modified_at,
        content_type=content_type,
        disposition=disposition,
        is_public=upload.visibility is Visibility.PUBLIC,
        is_harmless=True,
    )


async def _ensure(upload: Upload, part: str, kind: Kind) -> StoredObject:
    """The part, made if there is none."""
    key, storage = key_of(upload.stem, part), get_storage()
    known = await storage.stat(key)
    if known is None:
        _require_possible(upload, kind)
        async with _turn(upload, kind):
            known = await storage.stat(key)  # somebody else may have made it meanwhile
            if known is None:
                await _make(upload.id, kind)
                known = await storage.stat(key)
    if known is None:
        raise NotFoundError("There is no such upload.")
    return known


def _require_possible(upload: Upload, kind: Kind) -> None:
    if upload.content_type not in kind.types:
        raise FileRejectedError(kind.refusal)
    if upload.size > MOST_BYTES:
        raise FileRejectedError(f"The file has more than {MOST_BYTES // 1_000_000} MB, which is too much for this.")
    fault: str | None = getattr(upload, kind.fault)
    if fault is not None:
        raise FileRejectedError(fault)


@asynccontextmanager
async def _turn(upload: Upload, kind: Kind) -> AsyncIterator[None]:
    """One maker at a time for each upload, and not too many in all. `BusyError` when there are."""
    if _Makers.count >= _MOST_AT_ONCE:
        raise BusyError
    lock = _locks.setdefault((upload.id, kind), asyncio.Lock())
    _Makers.count += 1
    try:
        async with lock:
            yield
    finally:
        _Makers.count -= 1


async def _make(upload_id: ObjectId, kind: Kind) -> None:
    upload = await crud_upload.find(upload_id, seen_by=None)  # as it is now
    if upload is None:
        raise NotFoundError("There is no such upload.")
    _require_possible(upload, kind)
    parts = await (_thumbnails_of(upload) if kind is THUMBNAILS else _text_of(upload))
    if isinstance(parts, Failure):
        raise await _noted(upload_id, parts, kind)
    for part, content in parts.items():
        with suppress(ObjectExistsError):  # another process was first
            await get_storage().write(key_of(upload.stem, part), _chunks(content))
    mark = crud_upload_content
    is_there = await (mark.mark_text(upload_id) if kind is TEXT else mark.mark_thumbnails(upload_id, _sizes(parts)))
    if not is_there:  # deleted meanwhile, perhaps before these parts were there to be deleted
        await get_storage().delete_all(upload.stem)


async def _noted(upload_id: ObjectId, failure: Failure, kind: Kind) -> AppError:
    """Why there is nothing. What lies in the file is final; taking too long is so at the last of a few tries.

    The machine may have been busy the first time, but a file that costs so much each time must not cost it for ever.
    """
    if failure.fault is Fault.TOO_LONG:
        is_last = await crud_upload_content.count_timeout(
            upload_id, kind.timeouts, kind.fault, failure.sentence, most=_MOST_TIMEOUTS
        )
        return failure.as_error() if is_last else BusyError(failure.sentence)
    if not failure.is_final:
        return BusyError(failure.sentence)
    await crud_upload_content.mark_fault(upload_id, kind.fault, failure.sentence)
    return failure.as_error()


async def _thumbnails_of(upload: Upload) -> dict[str, bytes] | Failure:
    async with _copy_of(upload) as path:
        picture = await file_workers().make_thumbnails(path, upload.content_type)
    if isinstance(picture, Failure):
        return picture
    return {f"thumbnail-{made.size}": made.content for made in picture.thumbnails}


async def _text_of(upload: Upload) -> dict[str, bytes] | Failure:
    async with _copy_of(upload) as path:
        found = await file_workers().extract_text(path, upload.content_type)
    return {_TEXT: found.content} if isinstance(found, Text) else found


@asynccontextmanager
async def _copy_of(upload: Upload) -> AsyncIterator[Path]:
    """The file as one of this machine, for as long as it is needed. Without a name it is gone even if we are killed.

    Where such files are is often memory, as in containers, so those who wait for a turn have none yet.
    """
    async with file_workers().place():
        with tempfile.TemporaryFile(prefix="octopus-") as copy:
            async for chunk in get_storage().read(key_of(upload.stem)):
                await asyncio.to_thread(copy.write, chunk)
            # Where such a path does not open the file anew (macOS), it goes on from here.
            await asyncio.to_thread(copy.seek, 0)
            yield Path(f"/dev/fd/{copy.fileno()}")


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _sizes(parts: dict[str, bytes]) -> list[int]:
    return [int(part.rpartition("-")[2]) for part in parts]


def _stem_of(filename: str) -> str:
    return filename.rpartition(".")[0] or filename
