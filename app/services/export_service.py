"""Handing a user everything that is held about it."""

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from app.core.clock import utc_now
from app.core.principal import Principal, PrincipalKind
from app.core.scopes import Scope
from app.crud import crud_export, crud_user
from app.crud.crud_export import Batches
from app.models.enums import AuditAction
from app.schemas import export
from app.schemas.export import ExportedUser
from app.services import audit_service

Rows = list[dict[str, Any]]


class Export(NamedTuple):
    """A head, and sections of any size that are read while they are sent. A section that may not be read is None."""

    head: dict[str, Any]
    sections: dict[str, AsyncIterator[Rows] | None]


async def export_all(*, by: Principal) -> Export:
    """Everything held about the account that the caller acts as, on the record before any of it is given.

    A key is given what its scopes cover.
    """
    user = await crud_user.require(by.account_id)
    await audit_service.record(AuditAction.USER_EXPORTED, by=by, target=("user", user.id))
    head = {"exported_at": utc_now(), "user": ExportedUser.model_validate(user).model_dump(mode="json")}
    sections = {
        "sessions": _rendered(crud_export.sessions(user.id), export.session_of),
        "api_keys": _rendered(crud_export.api_keys(user.id), export.api_key_of),
        "items": _rendered(crud_export.items(user.id), export.item_of),
        "uploads": _rendered(crud_export.uploads(user.id), export.upload_of),
        "conversations": _rendered(crud_export.conversations(user.id), export.conversation_of),
        "messages": _rendered(crud_export.messages(user.id), export.message_of),
        "usage": _rendered(crud_export.usage(user.id), export.usage_of),
        "message_logs": _rendered(crud_export.message_logs(user.id), export.message_log_of),
        "audit_events": _rendered(crud_export.audit_events(user.id), partial(export.event_of, user_id=user.id)),
    }
    return Export(head, {name: rows if _may_read(name, by=by) else None for name, rows in sections.items()})


_SCOPE_OF_SECTION: Mapping[str, Scope] = {
    "api_keys": Scope.API_KEYS_READ,
    "items": Scope.ITEMS_READ,
    "uploads": Scope.UPLOADS_READ,
    "conversations": Scope.CONVERSATIONS_READ,
    "messages": Scope.CONVERSATIONS_READ,
}


def _may_read(section: str, *, by: Principal) -> bool:
    """A person may read everything about itself, whatever its role lets it do."""
    needed = _SCOPE_OF_SECTION.get(section)
    return by.kind is PrincipalKind.USER or needed is None or needed in by.scopes


async def _rendered(batches: Batches, render: Callable[[Mapping[str, Any]], dict[str, Any]]) -> AsyncIterator[Rows]:
    async for batch in batches:
        yield [render(row) for row in batch]
