import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from httpx import AsyncClient, Response

from app.core.scopes import Role
from app.models.audit_event import AuditEvent
from app.models.item import Item
from tests.conftest import no_event_can_be_written
from tests.factories import make_api_key, make_item, make_signed_in

ITEMS = "/api/v1/items"
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


class Act(NamedTuple):
    """A request about one item, or for one more."""

    method: str
    body: dict[str, Any] | None = None

    async def on(self, item: Item, client: AsyncClient, headers: dict[str, str] | None = None) -> Response:
        url = ITEMS if self.method == "POST" else url_of(item)
        return await client.request(self.method, url, json=self.body, headers=headers)


GET, DELETE, POST = Act("GET"), Act("DELETE"), Act("POST", {"title": "Drink tea"})
PUT, PATCH = [Act(method, {"is_completed": True}) for method in ("PUT", "PATCH")]


def url_of(item: Item) -> str:
    return f"{ITEMS}/{item.id}"


async def stored() -> list[dict[str, Any]]:
    """Every item there is, as it is in the database."""
    found: list[dict[str, Any]] = await Item.get_pymongo_collection().find().sort("_id").to_list()
    return found


async def events() -> list[AuditEvent]:
    return await AuditEvent.find().sort("_id").to_list()


def verdict(response: Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def titles_in(response: Response) -> list[str]:
    assert response.status_code == 200
    return [row["title"] for row in response.json()]


class TestCreate:
    async def test_makes_it_the_callers_own(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        body = {"title": " Buy tea ", "description": "Green,\nloose", "is_completed": True}
        created = await client.post(ITEMS, json=body, headers=ada.headers)

        assert created.status_code == 201
        shown = created.json()
        assert (shown["owner_id"], shown["title"]) == (str(ada.id), "Buy tea")
        assert (shown["description"], shown["is_completed"]) == ("Green,\nloose", True)
        read = await client.get(f"{ITEMS}/{shown['id']}", headers=ada.headers)
        assert (read.json(), read.headers["etag"]) == (shown, created.headers["etag"])

    async def test_needs_no_more_than_a_title(self, client: AsyncClient) -> None:
        created = await client.post(ITEMS, json={"title": "x" * 200}, headers=(await make_signed_in()).headers)

        assert created.status_code == 201
        assert (created.json()["description"], created.json()["is_completed"]) == (None, False)

    async def test_makes_it_the_owners_with_a_personal_key_that_may_only_write(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("items:write", owner=ada)

        created = await client.post(ITEMS, json={"title": "Buy tea"}, headers=key.headers)

        assert created.status_code == 201
        assert created.json()["owner_id"] == str(ada.id)

    @pytest.mark.parametrize("scope", ["items:*", "admin"])
    async def test_is_refused_to_a_service_key_because_it_acts_for_nobody(
        self, client: AsyncClient, scope: str
    ) -> None:
        service = await make_api_key(scope)

        response = await client.post(ITEMS, json={"title": "Buy tea"}, headers=service.headers)

        assert verdict(response) == (403, "forbidden")
        assert await stored() == []

    @pytest.mark.parametrize(
        "body",
        [
            {"title": None},
            {"title": ""},
            {"title": "  "},
            {"title": "x" * 201},
            {"title": "a\nb"},
            {"title": 7},
            {"title": {"$ne": None}},
            {"description": "x" * 2001},
            {"description": "\x00"},
            {"description": 7},
            {"is_completed": None},
            {"is_completed": "perhaps"},
            {"owner_id": "6746d0a8f8f8f8f8f8f8f8f8"},
            {"version": 7},
        ],
        ids=lambda body: str(body)[:40],
    )
    async def test_refuses_a_bad_body(self, client: AsyncClient, body: dict[str, Any]) -> None:
        response = await client.post(ITEMS, json={"title": "Buy tea"} | body, headers=(await make_signed_in()).headers)

        assert verdict(response) == (422, "validation_error")
        assert [error["loc"] for error in response.json()["errors"]] == [["body", next(iter(body))]]
        assert await stored() == []

    async def test_refuses_a_body_without_a_title(self, client: AsyncClient) -> None:
        response = await client.post(ITEMS, json={}, headers=(await make_signed_in()).headers)

        assert verdict(response) == (422, "validation_error")


class TestGet:
    async def test_is_answered_304_until_it_changes(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        item = await make_item(ada)
        known = {**ada.headers, "If-None-Match": (await GET.on(item, client, ada.headers)).headers["etag"]}

        unchanged = await GET.on(item, client, known)
        await PATCH.on(item, client, ada.headers)
        changed = await GET.on(item, client, known)

        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == known["If-None-Match"]
        assert (changed.status_code, changed.json()["is_completed"]) == (200, True)

    @pytest.mark.parametrize("item_id", ["6746d0a8f8f8f8f8f8f8f8f8", "nothing"])
    @pytest.mark.parametrize("act", [GET, PUT, PATCH, DELETE], ids=lambda act: act.method)
    async def test_does_not_find_what_does_not_exist(self, client: AsyncClient, act: Act, item_id: str) -> None:
        ada = await make_signed_in()

        response = await client.request(act.method, f"{ITEMS}/{item_id}", json=act.body, headers=ada.headers)

        assert verdict(response) == (404, "not_found")


class TestList:
    async def test_shows_ones_own_newest_first(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        for owner, title, days in ((ada, "new", 2), (ada, "old", 0), (bob, "his", 1)):
            await make_item(owner, title=title, created_at=LONG_AGO + timedelta(days=days))

        answers = [await client.get(ITEMS, headers=user.headers) for user in (ada, bob)]

        assert [titles_in(answer) for answer in answers] == [["new", "old"], ["his"]]
        assert "link" not in answers[0].headers

    async def test_shows_an_item_as_it_is_shown_alone(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        item = await make_item(ada, description="Green")

        listed = await client.get(ITEMS, headers=ada.headers)

        assert listed.json() == [(await GET.on(item, client, ada.headers)).json()]

    async def test_pages_without_repeating_or_losing_any(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        for number in range(5):  # two moments, so that pages end between items of the same one
            await make_item(ada, title=str(number), created_at=LONG_AGO + timedelta(days=number // 3))
        everything = titles_in(await client.get(ITEMS, headers=ada.headers))

        page = await client.get(f"{ITEMS}?limit=2", headers=ada.headers)
        seen = [titles_in(page)]
        while "next" in page.links:
            await make_item(ada, title="new")
            page = await client.get(page.links["next"]["url"], headers=ada.headers)
            seen.append(titles_in(page))

        assert everything == ["4", "3", "2", "1", "0"]
        assert seen == [["4", "3"], ["2", "1"], ["0"]]

    @pytest.mark.parametrize(
        ("query", "titles"),
        [("is_completed=true", ["done"]), ("is_completed=false", ["open 2", "open 1"])],
    )
    async def test_can_be_limited_to_the_completed_or_the_others(
        self, client: AsyncClient, query: str, titles: list[str]
    ) -> None:
        ada = await make_signed_in()
        for number, title in enumerate(("open 1", "done", "open 2")):
            created_at = LONG_AGO + timedelta(days=number)
            await make_item(ada, title=title, is_completed=title == "done", created_at=created_at)

        assert titles_in(await client.get(f"{ITEMS}?{query}", headers=ada.headers)) == titles

    async def test_keeps_the_filter_from_page_to_page(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        for number in range(3):
            await make_item(ada, title=str(number), is_completed=number != 1)

        page = await client.get(f"{ITEMS}?is_completed=true&limit=1", headers=ada.headers)
        following = await client.get(page.links["next"]["url"], headers=ada.headers)

        assert titles_in(page) + titles_in(following) == ["2", "0"]
        assert "next" not in following.links

    @pytest.mark.parametrize("query", ["is_completed=perhaps", "limit=0", "limit=201", "limit=many"])
    async def test_refuses_a_bad_query(self, client: AsyncClient, query: str) -> None:
        response = await client.get(f"{ITEMS}?{query}", headers=(await make_signed_in()).headers)

        assert verdict(response) == (422, "validation_error")
        assert [error["loc"] for error in response.json()["errors"]] == [["query", query.partition("=")[0]]]

    async def test_refuses_a_cursor_of_another_list(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        for _ in range(2):
            await make_item(ada)
        link = (await client.get(f"{ITEMS}?limit=1", headers=ada.headers)).links["next"]["url"]

        of_another = await client.get(link, headers=bob.headers)
        filtered = await client.get(f"{link}&is_completed=true", headers=ada.headers)
        made_up = await client.get(f"{ITEMS}?cursor=made-up", headers=ada.headers)

        assert [verdict(answer) for answer in (of_another, filtered, made_up)] == [(400, "invalid_cursor")] * 3


class TestUpdate:
    @pytest.mark.parametrize("method", ["PUT", "PATCH"])
    async def test_changes_what_is_named_and_keeps_the_rest(self, client: AsyncClient, method: str) -> None:
        ada = await make_signed_in()
        item = await make_item(ada, title="Buy tea", description="Green", updated_at=LONG_AGO)
        before = (await GET.on(item, client, ada.headers)).json()

        changed = await Act(method, {"title": " Drink tea "}).on(item, client, ada.headers)

        assert changed.status_code == 200
        after = changed.json()
        assert after == before | {"title": "Drink tea", "updated_at": after["updated_at"]}
        assert after["updated_at"] > before["updated_at"]
        read = await GET.on(item, client, ada.headers)
        assert (read.json(), read.headers["etag"]) == (after, changed.headers["etag"])

    async def test_clears_the_description_with_null(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        item = await make_item(ada, description="Green")

        changed = await Act("PATCH", {"description": None}).on(item, client, ada.headers)

        assert (changed.status_code, changed.json()["description"]) == (200, None)

    @pytest.mark.parametrize("method", ["PUT", "PATCH"])
    @pytest.mark.parametrize(
        "body",
        [
            {"title": None},
            {"title": ""},
            {"is_completed": None},
            {"owner_id": "6746d0a8f8f8f8f8f8f8f8f8"},
            {"titel": "x"},
            [],
        ],
        ids=str,
    )
    async def test_refuses_a_bad_body(self, client: AsyncClient, method: str, body: Any) -> None:
        ada = await make_signed_in()
        item = await make_item(ada)
        before = await stored()

        response = await Act(method, body).on(item, client, ada.headers)

        assert verdict(response) == (422, "validation_error")
        assert await stored() == before

    async def test_happens_once_of_two_at_the_same_time_with_one_tag(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        item = await make_item(ada)
        known = {**ada.headers, "If-Match": (await GET.on(item, client, ada.headers)).headers["etag"]}

        asked = [Act("PATCH", {"title": title}).on(item, client, known) for title in ("Green", "Black")]
        won, lost = sorted(await asyncio.gather(*asked), key=lambda answer: answer.status_code)

        assert (won.status_code, verdict(lost)) == (200, (412, "precondition_failed"))
        assert (await GET.on(item, client, ada.headers)).json() == won.json()
        assert [event.action for event in await events()] == ["item:updated"]


class TestDelete:
    async def test_takes_it_away_once_of_many_at_the_same_time(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        gone, kept = await make_item(ada), await make_item(ada)

        answers = await asyncio.gather(*(DELETE.on(gone, client, ada.headers) for _ in range(5)))

        assert sorted(answer.status_code for answer in answers) == [204, 404, 404, 404, 404]
        assert [row["_id"] for row in await stored()] == [kept.id]
        assert [event.action for event in await events()] == ["item:deleted"]


class TestConditions:
    @pytest.mark.parametrize("act", [PUT, PATCH, DELETE], ids=lambda act: act.method)
    async def test_a_write_meant_for_another_version_is_refused(self, client: AsyncClient, act: Act) -> None:
        ada = await make_signed_in()
        item = await make_item(ada)
        tag = (await GET.on(item, client, ada.headers)).headers["etag"]
        await Act("PATCH", {"title": "Drink tea"}).on(item, client, ada.headers)
        before = await stored()

        answers = [
            await act.on(item, client, {**ada.headers, "If-Match": header}) for header in (tag, '"foreign"', "broken")
        ]

        assert [verdict(answer) for answer in answers] == [(412, "precondition_failed")] * 3
        assert await stored() == before

    @pytest.mark.parametrize("act", [PUT, PATCH, DELETE], ids=lambda act: act.method)
    @pytest.mark.parametrize("header", ["the tag", "*"])
    async def test_a_write_meant_for_this_version_happens(self, client: AsyncClient, act: Act, header: str) -> None:
        ada = await make_signed_in()
        item = await make_item(ada)
        tag = (await GET.on(item, client, ada.headers)).headers["etag"]

        answer = await act.on(item, client, {**ada.headers, "If-Match": tag if header == "the tag" else "*"})

        assert answer.is_success
        assert [row["is_completed"] for row in await stored()] == ([] if act == DELETE else [True])

    async def test_a_stranger_is_not_told_that_there_are_versions(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        item = await make_item(ada)

        answer = await PATCH.on(item, client, {**bob.headers, "If-Match": '"7"'})

        assert verdict(answer) == (404, "not_found")


class TestCallers:
    @pytest.mark.parametrize("act", [POST, GET, PUT, PATCH, DELETE], ids=lambda act: act.method)
    async def test_nobody_is_refused(self, client: AsyncClient, act: Act) -> None:
        item = await make_item(await make_signed_in())

        assert verdict(await act.on(item, client)) == (401, "not_authenticated")
        assert verdict(await client.get(ITEMS)) == (401, "not_authenticated")
        assert [row["is_completed"] for row in await stored()] == [False]

    @pytest.mark.parametrize("role", [Role.GUEST, Role.USER, Role.SUPPORT])
    @pytest.mark.parametrize("act", [GET, PUT, PATCH, DELETE], ids=lambda act: act.method)
    async def test_a_stranger_does_not_find_it(self, client: AsyncClient, act: Act, role: Role) -> None:
        stranger = await make_signed_in(role=role)
        item = await make_item(await make_signed_in())
        before = await stored()

        answer = await act.on(item, client, stranger.headers)

        may_not_write_at_all = role is Role.GUEST and act != GET
        assert verdict(answer) == ((403, "insufficient_scope") if may_not_write_at_all else (404, "not_found"))
        assert (await client.get(ITEMS, headers=stranger.headers)).json() == []
        assert await stored() == before

    async def test_a_guest_reads_its_own_and_writes_nothing(self, client: AsyncClient) -> None:
        guest = await make_signed_in(role=Role.GUEST)
        item = await make_item(guest)

        written = [await act.on(item, client, guest.headers) for act in (POST, PUT, PATCH, DELETE)]

        assert [verdict(answer) for answer in written] == [(403, "insufficient_scope")] * 4
        assert (await GET.on(item, client, guest.headers)).status_code == 200
        assert titles_in(await client.get(ITEMS, headers=guest.headers)) == ["Buy tea"]

    @pytest.mark.parametrize("caller", ["admin", "superuser", "service"])
    @pytest.mark.parametrize("act", [GET, PUT, PATCH, DELETE], ids=lambda act: act.method)
    async def test_an_administrator_and_a_service_reach_everybodys(
        self, client: AsyncClient, act: Act, caller: str
    ) -> None:
        item = await make_item(await make_signed_in())
        headers = await headers_of(caller)

        listed = await client.get(ITEMS, headers=headers)
        answer = await act.on(item, client, headers)

        assert titles_in(listed) == ["Buy tea"]
        assert answer.is_success

    @pytest.mark.parametrize(
        ("scope", "acts"),
        [
            ("items:read", [POST, PUT, PATCH, DELETE]),
            ("items:write", [GET]),
            ("users:*", [POST, GET, PUT, PATCH, DELETE]),
        ],
    )
    @pytest.mark.parametrize("is_personal", [False, True], ids=["service", "personal"])
    async def test_a_key_without_the_scope_is_refused(
        self, client: AsyncClient, scope: str, acts: list[Act], *, is_personal: bool
    ) -> None:
        ada = await make_signed_in()
        item = await make_item(ada)
        key = await make_api_key(scope, owner=ada if is_personal else None)

        answers = [await act.on(item, client, key.headers) for act in acts]

        assert [verdict(answer) for answer in answers] == [(403, "insufficient_scope")] * len(acts)
        assert [row["is_completed"] for row in await stored()] == [False]

    async def test_a_personal_key_finds_what_its_owner_finds(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        mine, his = await make_item(ada, title="mine"), await make_item(bob, title="his")
        key = await make_api_key("items:*", owner=ada)

        answers = [await act.on(item, client, key.headers) for item in (mine, his) for act in (GET, PATCH)]

        assert [answer.status_code for answer in answers] == [200, 200, 404, 404]
        assert titles_in(await client.get(ITEMS, headers=key.headers)) == ["mine"]


async def headers_of(caller: str) -> dict[str, str]:
    if caller == "service":
        return (await make_api_key("items:*")).headers
    return (await make_signed_in(role=Role(caller))).headers


class TestAudit:
    async def test_records_who_did_what(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        item_id = (await client.post(ITEMS, json={"title": "Buy tea"}, headers=ada.headers)).json()["id"]
        change = {"title": "Drink tea", "is_completed": True}
        await client.patch(f"{ITEMS}/{item_id}", json=change, headers=ada.headers)
        await client.delete(f"{ITEMS}/{item_id}", headers=ada.headers)

        recorded = await events()
        assert [event.action for event in recorded] == ["item:created", "item:updated", "item:deleted"]
        assert {(event.actor.id, event.target.kind, str(event.target.id)) for event in recorded} == {
            (ada.id, "item", item_id)
        }
        assert [event.details for event in recorded] == [{}, {"fields": ["is_completed", "title"]}, {}]

    @pytest.mark.parametrize("act", [POST, PUT, PATCH, DELETE], ids=lambda act: act.method)
    async def test_what_can_not_be_recorded_does_not_happen(self, client: AsyncClient, act: Act) -> None:
        ada = await make_signed_in()
        item = await make_item(ada)
        before = await stored()

        async with no_event_can_be_written():
            answer = await act.on(item, client, ada.headers)

        assert verdict(answer) == (500, "internal_error")
        assert await stored() == before
        assert (await act.on(item, client, ada.headers)).is_success
