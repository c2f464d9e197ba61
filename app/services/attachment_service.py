"""Files that messages show: their writers' own, and readable from then on by everybody in the conversation."""

from collections import defaultdict
from collections.abc import Sequence

from bson import ObjectId

from app.core.exceptions import InvalidContentError
from app.core.principal import Principal
from app.crud import crud_upload
from app.crud.crud_message import Draft
from app.crud.crud_upload import Reach


async def attach(conversation_id: ObjectId, drafts: Sequence[Draft], *, by: Principal) -> None:
    """Let the files of the drafts belong to the conversation, inside of the transaction that writes the messages.

    They are clean, and belong to it or to no other. They are the writer's own; a service also attaches its own, and
    what belongs to the conversation already. Otherwise `InvalidContentError` naming each place.
    """
    ids_of_writer: defaultdict[ObjectId | None, set[ObjectId]] = defaultdict(set)
    for draft in drafts:
        ids_of_writer[draft.user_id].update(draft.attachment_ids)
    is_service = by.user_id is None
    reaches = [Reach(writer_id, ids, is_service=is_service) for writer_id, ids in ids_of_writer.items() if ids]
    wanted = {upload_id for reach in reaches for upload_id in reach.upload_ids}
    if await crud_upload.attach(conversation_id, reaches) == len(wanted) and len(reaches) == 1:
        return
    found = {reach.writer_id: await crud_upload.attached(conversation_id, reach) for reach in reaches}
    errors = [
        {"loc": _place(at, nth, len(drafts)), "msg": "there is no such upload to attach", "type": "unknown_upload"}
        for at, draft in enumerate(drafts)
        for nth, upload_id in enumerate(draft.attachment_ids)
        if upload_id not in found[draft.user_id]
    ]
    if errors:
        raise InvalidContentError("Some attachments can't be attached.", errors=errors)


def _place(at: int, nth: int, count: int) -> list[str | int]:
    """In a batch, as in the body that was sent. A batch of one is told as a message."""
    message: list[str | int] = [] if count == 1 else ["messages", at]
    return ["body", *message, "attachment_ids", nth]
