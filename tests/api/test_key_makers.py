"""What a key or a session makes while it is itself rotated, narrowed or shortened is no wider than it is then."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from beanie import Document
from bson import ObjectId
from httpx import AsyncClient, Response
from pymongo import MongoClient

from app.core import live_cache
from app.core.scopes import Role
from app.crud import crud_api_key, crud_session
from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from tests.api.test_api_keys import API_KEYS, create, url_of, verdict
from tests.factories import StoredKey, make_api_key, make_signed_in, make_user

NEXT_YEAR = datetime(2031, 1, 1, tzinfo=UTC)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
CHANGED = (409, "conflict")
# What becomes of a key.
CHANGES: list[dict[str, Any]] = [
    {"expires_at": NEXT_YEAR, "grace_until": NEXT_YEAR},
    {"scopes": ["api_keys:*"]},
    {"allowed_ips": ["127.0.0.1"]},
    {"rate_limit": "60/minute"},
    {"quota": {"limit": 9, "period": "day"}},
]
MAKING = {
    "create": ("POST", "", {"name": "heir", "scopes": ["items:read"]}),
    "rotate": ("POST", "/{id}/rotate", None),
    "activate": ("POST", "/{id}/activate", None),
    "give scopes": ("PATCH", "/{id}", {"scopes": ["items:read", "users:read"]}),
    "lift a limit": ("PATCH", "/{id}", {"expires_at": None}),
}


Change = Callable[[Document, dict[str, Any]], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch, mongodb: MongoClient[dict[str, Any]], database_url: str) -> Change:
    """Have a document changed elsewhere while a request relies on its credential: after it was let in."""
    database = mongodb[database_url.rpartition("/")[2].partition("?")[0]]

    def arrange(document: Document, change: dict[str, Any]) -> None:
        pending = [{"$set": change}]
        for crud in (crud_api_key, crud_session):
            monkeypatch.setattr(crud, "hold", holding(crud.hold, document, pending))

    def holding(hold: Callable[[ObjectId], Any], document: Document, pending: list[dict[str, Any]]) -> Any:
        async def change_and_hold(credential_id: ObjectId) -> Any:
            if pending:
                database[document.get_collection_name()].update_one({"_id": document.id}, pending.pop())
            return await hold(credential_id)

        return change_and_hold

    return arrange


async def make(client: AsyncClient, act: str, other: StoredKey, headers: dict[str, str]) -> Response:
    method, path, body = MAKING[act]
    return await client.request(method, API_KEYS + path.format(id=other.document.id), json=body, headers=headers)


async def maker_of(*, other_is_active: bool = True) -> tuple[StoredKey, StoredKey]:
    owner = await make_user()
    maker = await make_api_key("api_keys:*", "items:read", "users:read", owner=owner)
    return maker, await make_api_key("items:read", owner=owner, is_active=other_is_active, expires_at=NEXT_YEAR)


async def all_keys() -> list[dict[str, Any]]:
    return await ApiKey.get_pymongo_collection().find({}, {"held_at": 0}).sort("_id").to_list()


class TestKeyThatIsChangedMeanwhile:
    @pytest.mark.parametrize("act", MAKING)
    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
    async def test_makes_and_widens_nothing(
        self, client: AsyncClient, meanwhile: Change, act: str, change: dict[str, Any]
    ) -> None:
        maker, other = await maker_of(other_is_active=act != "activate")
        before = await all_keys()
        meanwhile(maker.document, change)

        answer = await make(client, act, other, maker.headers)

        assert verdict(answer) == CHANGED
        assert "changed meanwhile" in answer.json()["detail"]
        assert await all_keys() == [before[0] | change, before[1]]
        assert await AuditEvent.find({"outcome": "success"}).count() == 0

    async def test_goes_on_within_what_it_is_then(self, client: AsyncClient, meanwhile: Change) -> None:
        maker, _ = await maker_of()
        meanwhile(maker.document, {"expires_at": NEXT_YEAR})
        assert verdict(await create(client, maker.headers, scopes=["items:read"])) == CHANGED

        live_cache.forget(maker.document.id)  # as the change feed does
        made = await create(client, maker.headers, scopes=["items:read"])

        assert (made.status_code, made.json()["expires_at"]) == (201, "2031-01-01T00:00:00Z")

    @pytest.mark.parametrize("change", [{"is_active": False}, {"expires_at": LONG_AGO}], ids=str)
    @pytest.mark.parametrize("act", MAKING)
    async def test_so_that_it_is_over_makes_nothing(
        self, client: AsyncClient, meanwhile: Change, act: str, change: dict[str, Any]
    ) -> None:
        maker, other = await maker_of(other_is_active=act != "activate")
        meanwhile(maker.document, change)

        assert verdict(await make(client, act, other, maker.headers)) == (401, "invalid_api_key")
        assert await ApiKey.count() == 2

    async def test_by_a_change_of_its_owner_makes_nothing(self, client: AsyncClient, meanwhile: Change) -> None:
        owner = await make_user(role=Role.ADMIN)
        maker = await make_api_key("admin", owner=owner)
        meanwhile(owner.document, {"role": "user"})

        assert verdict(await create(client, maker.headers)) == CHANGED
        assert await ApiKey.count() == 1

    async def test_may_still_end_what_it_reaches(self, client: AsyncClient, meanwhile: Change) -> None:
        maker, other = await maker_of()
        meanwhile(maker.document, {"rate_limit": "60/minute"})

        assert (await client.post(f"{url_of(other)}/deactivate", headers=maker.headers)).status_code == 200


class TestSessionThatIsChangedMeanwhile:
    @pytest.mark.parametrize("change", [{"role": "user"}, {"staff_level": 3}, {"rate_limit": "7/minute"}], ids=str)
    async def test_makes_nothing(self, client: AsyncClient, meanwhile: Change, change: dict[str, Any]) -> None:
        ada = await make_signed_in(role=Role.SUPPORT, staff_level=1)
        meanwhile(ada.session, change)

        assert verdict(await create(client, ada.headers)) == CHANGED
        assert await ApiKey.count() == 0

    async def test_so_that_it_is_over_makes_nothing(self, client: AsyncClient, meanwhile: Change) -> None:
        ada = await make_signed_in()
        meanwhile(ada.session, {"expires_at": LONG_AGO})

        assert verdict(await create(client, ada.headers)) == (401, "token_revoked")
        assert await ApiKey.count() == 0
