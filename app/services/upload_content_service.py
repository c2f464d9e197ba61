"""Who may read a file, and how it goes out: nothing is readable before it is clean."""

from typing import Final

from bson import ObjectId

from app.core.exceptions import ConflictError, InsufficientScopeError, NotFoundError
from app.core.file_name import content_disposition
from app.core.file_type import FileType
from app.core.principal import Principal, PrincipalKind
from app.core.scopes import Grant, Scope
from app.core.stored_file import StoredFile
from app.core.stored_object import key_of
from app.crud import crud_conversation, crud_upload
from app.models.enums import UploadStatus, Visibility
from app.models.upload import Upload
from app.schemas.upload import UploadRead

# Whoever has a signed link, for the one upload that it names.
LINK_HOLDER: Final = Principal(
    PrincipalKind.ANONYMOUS, "signed link", Grant(own=frozenset(), others=frozenset({Scope.UPLOADS_READ}))
)


async def require_readable(upload_id: ObjectId, *, by: Principal) -> Upload:
    """A clean upload that the caller may see. `ConflictError` when that is still being found out."""
    upload = await _find(upload_id, by=by)
    if upload is None:
        raise NotFoundError("There is no such upload.")
    if upload.status is UploadStatus.PENDING:
        raise ConflictError("This upload is still being received or checked.")
    if upload.status is not UploadStatus.CLEAN:
        raise NotFoundError("This upload was not accepted: nothing of it was kept.")
    return upload


async def known_of(upload_id: ObjectId, *, by: Principal) -> UploadRead:
    """What the caller may know of an upload that it may see.

    Of a public one a stranger learns what the file itself would tell: not in which conversation it was said, and
    whoever shows no right to read uploads not even whose it is.
    """
    upload = await _find(upload_id, by=by)
    if upload is None:
        raise NotFoundError("There is no such upload.")
    shown = UploadRead.model_validate(upload)
    if Scope.UPLOADS_READ not in by.scopes:
        return shown.model_copy(update={"owner_id": None, "conversation_id": None})
    return shown if await _is_shared_with(upload, by) else shown.model_copy(update={"conversation_id": None})


async def _is_shared_with(upload: Upload, by: Principal) -> bool:
    """Whether it is in the caller's reach by more than being public."""
    if upload.conversation_id is None or by.owner_filter(Scope.UPLOADS_READ) in {None, upload.owner_id}:
        return True
    return await crud_conversation.exists(upload.conversation_id, user_id=by.user_id)


async def _find(upload_id: ObjectId, *, by: Principal) -> Upload | None:
    """A public one needs no scope."""
    scope = Scope.UPLOADS_READ
    if scope in by.scopes:
        return await crud_upload.find(upload_id, seen_by=by.owner_filter(scope))
    upload = await crud_upload.find_public(upload_id)
    if upload is None and by.kind is not PrincipalKind.ANONYMOUS:
        raise InsufficientScopeError(f"This needs the scope {scope}.", needed=scope)
    return upload


async def original(upload_id: ObjectId, *, download: bool, by: Principal) -> StoredFile:
    """The file as it came. What a browser might run is only ever to be saved."""
    upload = await require_readable(upload_id, by=by)
    kind = FileType(upload.content_type, "")
    return StoredFile(
        key=key_of(upload.stem),
        size=upload.size,
        tag=f'"{upload.sha256}"',
        modified_at=upload.created_at,
        content_type=upload.content_type,
        disposition=content_disposition(upload.filename, inline=kind.may_be_inline and not download),
        is_public=upload.visibility is Visibility.PUBLIC,
        is_harmless=kind.may_be_inline,
    )
