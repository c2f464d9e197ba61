"""A request that is sent again under its `Idempotency-Key`."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response
from pymongo.errors import ServerSelectionTimeoutError

from app.core import background
from app.core.clock import utc_now
from app.core.scopes import Role
from app.crud import crud_idempotency
from app.models.api_key import ApiKey
from app.models.idempotency_record import IdempotencyRecord
from app.models.item import Item
from app.models.message import Message
from app.models.user import User
from app.services import idempotency_service, item_service
from app.services.idempotency_service import Attempt
from tests.commands import Commands
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import SignedInUser, make_api_key, make_conversation, make_signed_in

ITEMS = "/api/v1/items"
TEA = {"title": "Buy tea"}


async def post(
    client: AsyncClient,
    who: dict[str, str],
    key: str = "key-1",
    *,
    url: str = ITEMS,
    body: Any = TEA,
    method: str = "POST",
) -> Response:
    return await client.request(method, url, json=body, headers={**who, "Idempotency-Key": key})


def verdict(response: Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def records() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await IdempotencyRecord.get_pymongo_collection().find().to_list()
    return found


async def change_records(**changes: Any) -> None:
    await IdempotencyRecord.get_pymongo_collection().update_many({}, {"$set": changes})


@pytest.fixture
async def ada(client: AsyncClient) -> SignedInUser:
    del client  # opens the database
    return await make_signed_in(username="ada")


class TestRepetition:
    async def test_gets_the_first_answer_and_makes_nothing(self, client: AsyncClient, ada: SignedInUser) -> None:
        first = await post(client, ada.headers)

        again = await post(client, ada.headers)

        assert (first.status_code, "idempotent-replayed" in first.headers) == (201, False)
        assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
        assert again.content == first.content
        for name in ("etag", "content-type", "content-length", "cache-control"):
            assert again.headers[name] == first.headers[name]
        assert await Item.count() == 1

    async def test_has_a_request_id_and_limits_of_its_own(self, client: AsyncClient, ada: SignedInUser) -> None:
        first = await post(client, ada.headers)

        again = await post(client, {**ada.headers, "X-Request-ID": "again"})

        assert again.headers.get_list("x-request-id") == ["again"]
        remaining = [int(response.headers["x-ratelimit-remaining"]) for response in (first, again)]
        assert remaining[1] == remaining[0] - 1
        assert len(again.headers.get_list("x-ratelimit-remaining")) == 1

    async def test_gives_an_answer_that_has_no_body(self, client: AsyncClient, ada: SignedInUser) -> None:
        url = "/api/v1/auth/password/change"
        body = {"current_password": ada.password, "password": "lantern-Orbit-77-turnip"}

        first, again = [await post(client, ada.headers, url=url, body=body) for _ in range(2)]

        assert (first.status_code, again.status_code, again.content) == (204, 204, b"")
        assert again.headers["idempotent-replayed"] == "true"

    async def test_of_a_form_is_known_by_its_fields(self, client: AsyncClient) -> None:
        key, service = await make_api_key("read"), await make_api_key("admin")
        url, headers = "/api/v1/auth/introspect", {**service.headers, "Idempotency-Key": "key-1"}

        first, again, other = [
            await client.post(url, data={"token": token}, headers=headers) for token in (key.text, key.text, "other")
        ]

        assert (first.json()["active"], again.headers["idempotent-replayed"]) == (True, "true")
        assert verdict(other) == (422, "idempotency_key_reused")

    async def test_draws_nothing_on_the_quota_of_a_key(self, client: AsyncClient, ada: SignedInUser) -> None:
        key = await make_api_key("write", owner=ada, quota={"limit": 1, "period": "day"})
        await post(client, key.headers)

        again = await post(client, key.headers)
        other = await post(client, key.headers, "key-2")

        assert (again.status_code, verdict(other)) == (201, (429, "quota_exceeded"))

    async def test_counts_a_message_once(self, client: AsyncClient, ada: SignedInUser) -> None:
        conversation = await make_conversation(ada)
        url = f"/api/v1/conversations/{conversation.id}/messages"

        answers = [await post(client, ada.headers, url=url, body={"content": "Tea?"}) for _ in range(3)]

        assert len({answer.json()["id"] for answer in answers}) == 1
        assert await Message.count() == 1
        usage = (await client.get("/api/v1/usage/me", headers=ada.headers)).json()
        assert usage["used"]["messages_today"] == 1

    async def test_of_many_at_once_makes_one_thing(self, client: AsyncClient, ada: SignedInUser) -> None:
        answers = await asyncio.gather(*(post(client, ada.headers) for _ in range(20)))

        assert await Item.count() == 1
        made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
        refused = {verdict(answer) for answer in answers if answer.status_code != 201}
        assert len(made) == 1
        assert refused <= {(409, "idempotency_in_progress")}

    async def test_after_a_day_is_a_new_request(self, client: AsyncClient, ada: SignedInUser) -> None:
        first = await post(client, ada.headers)
        (record,) = await records()
        assert timedelta(hours=23, minutes=59) < record["expires_at"] - utc_now() <= timedelta(hours=24)
        await change_records(expires_at=utc_now() - timedelta(seconds=1))

        later = await post(client, ada.headers)

        assert (later.status_code, later.json()["id"] != first.json()["id"]) == (201, True)

    async def test_of_somebody_who_makes_an_account(self, client: AsyncClient) -> None:
        body = {"email": "eve@example.com", "password": "turnip-Lantern-42-orbit"}

        first, again = [await post(client, {}, url="/api/v1/users", body=body) for _ in range(2)]

        assert (again.status_code, again.json()) == (201, first.json())
        assert await User.count() == 1

    async def test_is_remembered_under_the_next_secret(self, serve: Serve) -> None:
        async with serve() as client:
            ada = await make_signed_in()
            key = await make_api_key("write", owner=ada)
            first = await post(client, key.headers)
        old, new = "kJ2vN8qLx4TzR7wYc1MfHs6BpD3gUaE9", "Zq8Lw3Nf6Tc1Vb9Xk5Jr2Md7Hp4Sg0Ye"

        async with serve(secret_key=new, previous_secret_keys=[old]) as client:
            again = await post(client, key.headers)

        assert (again.status_code, again.json()) == (201, first.json())


class TestKey:
    async def test_belongs_to_its_caller(self, client: AsyncClient, ada: SignedInUser) -> None:
        ben = await make_signed_in()

        answers = [await post(client, who.headers) for who in (ada, ben)]

        assert [answer.status_code for answer in answers] == [201, 201]
        assert await Item.count() == 2

    @pytest.mark.parametrize(
        ("url", "body"), [(ITEMS, {"title": "Buy coffee"}), (f"{ITEMS}?a=1", TEA), ("/api/v1/conversations", TEA)]
    )
    async def test_is_for_one_request(
        self, client: AsyncClient, ada: SignedInUser, url: str, body: dict[str, str]
    ) -> None:
        await post(client, ada.headers)

        other = await post(client, ada.headers, url=url, body=body)

        assert verdict(other) == (422, "idempotency_key_reused")
        assert await Item.count() == 1

    @pytest.mark.parametrize("key", ["", "two words", "é".encode("latin-1"), "k" * 256, "a\tb"])
    async def test_is_visible_ascii_of_bounded_length(
        self, client: AsyncClient, ada: SignedInUser, key: str | bytes
    ) -> None:
        headers = [(name.encode(), value.encode()) for name, value in ada.headers.items()]
        headers.append((b"idempotency-key", key.encode() if isinstance(key, str) else key))

        response = await client.post(ITEMS, json=TEA, headers=headers)

        assert verdict(response) == (400, "invalid_request")
        assert await Item.count() == 0

    async def test_may_have_255_characters(self, client: AsyncClient, ada: SignedInUser) -> None:
        assert (await post(client, ada.headers, "~" * 255)).status_code == 201

    async def test_is_sent_once(self, client: AsyncClient, ada: SignedInUser) -> None:
        twice = [*ada.headers.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "a")]

        assert verdict(await client.post(ITEMS, json=TEA, headers=twice)) == (400, "invalid_request")

    async def test_means_nothing_to_other_methods(self, client: AsyncClient, ada: SignedInUser) -> None:
        item = (await post(client, ada.headers)).json()
        url = f"{ITEMS}/{item['id']}"

        for title in ("Drink tea", "Brew tea"):
            answer = await post(client, ada.headers, url=url, body={"title": title}, method="PATCH")
            assert (answer.status_code, answer.json()["title"]) == (200, title)

    async def test_is_no_way_around_the_credential(self, client: AsyncClient, ada: SignedInUser) -> None:
        await post(client, ada.headers)

        response = await post(client, {"Authorization": f"{ada.headers['Authorization']}x"})

        assert verdict(response) == (401, "invalid_token")

    async def test_is_no_way_around_a_scope_that_was_lost(self, client: AsyncClient, ada: SignedInUser) -> None:
        key = await make_api_key("write", owner=ada)
        assert (await post(client, key.headers)).status_code == 201
        await client.patch(f"/api/v1/api-keys/{key.document.id}", json={"scopes": ["read"]}, headers=ada.headers)

        assert verdict(await post(client, key.headers)) == (403, "insufficient_scope")

    async def test_costs_a_request_without_it_nothing(self, serve: Serve, commands: Commands) -> None:
        async with serve() as client:
            ada = await make_signed_in()
            await client.get(ITEMS, headers=ada.headers)
            commands.taken()
            await client.post(ITEMS, json=TEA, headers=ada.headers)
            assert "idempotency_records" not in {command.collection for command in commands.taken()}

            await post(client, ada.headers)

            asked = [command.name for command in commands.taken() if command.collection == "idempotency_records"]
        assert asked == ["update", "update", "update"]  # claimed, committed with the item, answered


class TestRefusal:
    async def test_that_changed_nothing_leaves_the_key_free(self, client: AsyncClient, ada: SignedInUser) -> None:
        refused = await post(client, ada.headers, body={"title": ""})

        mended = await post(client, ada.headers)

        assert (refused.status_code, mended.status_code) == (422, 201)
        assert await Item.count() == 1

    async def test_for_a_rate_leaves_the_key_free(self, serve: Serve) -> None:
        async with serve(rate_limit_key_create="1/minute") as client:
            ada = await make_signed_in()
            body = {"name": "bot", "scopes": ["read"]}
            await post(client, ada.headers, "first", url="/api/v1/api-keys", body=body)

            refused = await post(client, ada.headers, "second", url="/api/v1/api-keys", body=body)

            assert verdict(refused) == (429, "rate_limited")
            assert await ApiKey.count() == 1
            assert [record["state"] for record in await records()] == ["answered"]  # the first

    async def test_that_was_recorded_leaves_the_key_free(self, client: AsyncClient, ada: SignedInUser) -> None:
        key = await make_api_key("read", owner=ada)
        conversation = await make_conversation(ada)
        url = f"/api/v1/conversations/{conversation.id}/messages"
        body = {"content": "Tea?", "role": "system"}

        refused = await post(client, ada.headers, url=url, body=body)
        lacking = await post(client, key.headers)

        assert [refused.status_code, lacking.status_code] == [403, 403]
        assert await records() == []

    async def test_by_a_fault_leaves_the_key_free(self, client: AsyncClient, ada: SignedInUser) -> None:
        async with no_event_can_be_written():
            failed = await post(client, ada.headers)

        mended = await post(client, ada.headers)

        assert (failed.status_code, mended.status_code) == (500, 201)
        assert await Item.count() == 1


class TestAnswer:
    async def test_that_nobody_can_read_any_more_is_said_to_be_lost(
        self, serve: Serve, client: AsyncClient, ada: SignedInUser
    ) -> None:
        assert (await post(client, ada.headers)).status_code == 201

        async with serve(encryption_keys=["q0Jc2lVbY8nZ5tR7uW1xE3sD6fG9hK4mP0aQ2wS5dF8="]) as other:
            again = await post(other, ada.headers)
            items = (await other.get(ITEMS, headers=ada.headers)).json()

        assert verdict(again) == (409, "conflict")
        assert "idempotent-replayed" not in again.headers
        assert len(items) == 1

    async def test_that_holds_a_new_key_is_kept_encrypted(self, client: AsyncClient, ada: SignedInUser) -> None:
        body = {"name": "bot", "scopes": ["read"]}
        first = await post(client, ada.headers, url="/api/v1/api-keys", body=body)
        key = first.json()["key"]

        again = await post(client, ada.headers, url="/api/v1/api-keys", body=body)

        assert again.json()["key"] == key
        (record,) = await records()
        assert key.encode() not in record["answer"]
        assert record["answer"].startswith(b"gAAAA")

    async def test_of_which_nobody_knows_whether_it_got_there_is_kept(
        self, client: AsyncClient, ada: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The process dies after the commit: another one finds that it is done, and does not do it again."""

        async def die(*_: object) -> None:
            raise ConnectionResetError

        monkeypatch.setattr(crud_idempotency, "keep_answer", die)
        with pytest.raises(ConnectionResetError):
            await post(client, ada.headers)
        monkeypatch.undo()

        soon = await post(client, ada.headers)
        await change_records(until=utc_now() - timedelta(seconds=1))
        later = await post(client, ada.headers)

        assert verdict(soon) == (409, "idempotency_in_progress")
        assert verdict(later) == (409, "conflict")
        assert "answer was lost" in later.json()["detail"]
        assert await Item.count() == 1

    async def test_of_a_fault_after_the_change_is_none(
        self, client: AsyncClient, ada: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create = item_service.create

        async def create_and_fail(*arguments: Any, **named: Any) -> Item:
            await create(*arguments, **named)
            raise KeyError

        monkeypatch.setattr(item_service, "create", create_and_fail)
        failed = await post(client, ada.headers)
        monkeypatch.undo()

        again = await post(client, ada.headers)

        assert (failed.status_code, verdict(again)) == (500, (409, "conflict"))
        assert await Item.count() == 1


class TestHolder:
    async def test_that_ended_before_it_changed_anything_is_succeeded(
        self, client: AsyncClient, ada: SignedInUser
    ) -> None:
        await post(client, ada.headers)
        await Item.delete_all()
        await change_records(state="running", answer=None)

        assert verdict(await post(client, ada.headers)) == (409, "idempotency_in_progress")
        await change_records(until=utc_now() - timedelta(seconds=1))

        assert (await post(client, ada.headers)).status_code == 201

    async def test_that_was_succeeded_commits_nothing(
        self, client: AsyncClient, ada: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It slept through its time, and another took its place: only one of them makes the item."""
        create, is_asleep, may_wake = item_service.create, asyncio.Event(), asyncio.Event()

        async def create_slowly(*arguments: Any, **named: Any) -> Item:
            is_asleep.set()
            await may_wake.wait()
            return await create(*arguments, **named)

        monkeypatch.setattr(item_service, "create", create_slowly)
        slow = asyncio.create_task(post(client, ada.headers))
        await is_asleep.wait()
        monkeypatch.undo()
        await change_records(until=utc_now() - timedelta(seconds=1))
        second = await post(client, ada.headers)
        may_wake.set()

        assert second.status_code == 201
        assert verdict(await slow) == (409, "idempotency_in_progress")
        assert [item.id for item in await Item.find().to_list()] == [ObjectId(second.json()["id"])]
        assert (await post(client, ada.headers)).json() == second.json()

    async def test_whose_caller_hangs_up_lets_go(
        self, client: AsyncClient, ada: SignedInUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        is_asleep = asyncio.Event()

        async def never(*_: object, **__: object) -> None:
            is_asleep.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(item_service, "create", never)
        waiting = asyncio.create_task(post(client, ada.headers))
        await is_asleep.wait()
        monkeypatch.undo()
        waiting.cancel()
        await asyncio.wait([waiting])
        await background.drain()

        assert (await post(client, ada.headers)).status_code == 201

    async def test_holds_nothing_any_more_once_it_has_answered(self, client: AsyncClient, ada: SignedInUser) -> None:
        await post(client, ada.headers)
        await post(client, ada.headers, "key-2", body={"title": ""})
        await asyncio.sleep(0)

        assert "hold_idempotency_key" not in {task.get_name() for task in asyncio.all_tasks()}

    async def test_is_let_go_by_the_background_for_no_longer_than_it_holds(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = []

        async def fail(*_: object) -> None:
            tries.append(1)
            await asyncio.sleep(0.1)  # as the driver looks for a server
            raise ServerSelectionTimeoutError

        monkeypatch.setattr(crud_idempotency, "release", fail)
        monkeypatch.setattr(idempotency_service, "_HOLD", timedelta(seconds=0.2))
        monkeypatch.setattr(idempotency_service, "_END_EVERY_SECONDS", 0.01)

        await asyncio.wait_for(idempotency_service.end_at_last(Attempt(b"key", ObjectId()), None), 5)

        assert len(tries) > 1

    async def test_that_died_is_succeeded_under_the_next_secret(self, serve: Serve) -> None:
        async with serve() as client:
            key = await make_api_key("write", owner=await make_signed_in())
            await post(client, key.headers)
            await Item.delete_all()
            await change_records(state="running", answer=None, until=utc_now() - timedelta(seconds=1))
        old, new = "kJ2vN8qLx4TzR7wYc1MfHs6BpD3gUaE9", "Zq8Lw3Nf6Tc1Vb9Xk5Jr2Md7Hp4Sg0Ye"

        async with serve(secret_key=new, previous_secret_keys=[old]) as client:
            assert (await post(client, key.headers)).status_code == 201

    async def test_is_nobody_while_the_body_does_not_come_whole(self, client: AsyncClient, ada: SignedInUser) -> None:
        """At an endpoint that would read none: a caller who hangs up is no fault of ours."""
        headers = [(name.lower().encode(), value.encode()) for name, value in ada.headers.items()]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/v1/auth/logout-all",
            "query_string": b"",
            "headers": [*headers, (b"idempotency-key", b"key-1"), (b"content-length", b"9")],
        }
        coming: list[dict[str, Any]] = [
            {"type": "http.request", "body": b"{", "more_body": True},
            {"type": "http.disconnect"},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return coming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await client._transport.app(scope, receive, send)  # type: ignore[attr-defined]

        assert sent[0]["status"] == 400
        assert await records() == []


class TestDocument:
    async def test_names_the_header_wherever_something_is_made(self, client: AsyncClient) -> None:
        document = (await client.get("/openapi.json")).json()
        posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
        taking = {
            path
            for path, operation in posts.items()
            if any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", []))
        }

        making = {path for path, operation in posts.items() if "201" in operation["responses"]}
        # The one thing there is only once: asked for again it is refused, and its answer is kept nowhere.
        assert making - taking == {"/bootstrap"}
        assert {"/api/v1/api-keys/{api_key_id}/rotate", "/api/v1/staff/users/{user_id}/credits"} <= taking
        assert not {path for path in taking if path.endswith(("/login", "/token", "/refresh"))}

    async def test_credits_are_added_once(self, client: AsyncClient, ada: SignedInUser) -> None:
        chief = await make_signed_in(role=Role.SUPPORT, staff_level=3)
        url, body = f"/api/v1/staff/users/{ada.id}/credits", {"amount": 5}

        answers = [await post(client, chief.headers, url=url, body=body) for _ in range(2)]

        assert [answer.status_code for answer in answers] == [200, 200]
        stored = await User.get(ada.id)
        assert stored is not None
        assert stored.credits == 5
