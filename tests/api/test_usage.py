"""What plans allow, how it is counted, and what one sees of it."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core.scopes import Role
from app.models.conversation import Conversation
from app.models.message import Message
from app.models.usage_counter import UsageCounter, UsageTotal
from app.services import usage_service
from tests.api.test_user_permissions import headers_of
from tests.conftest import no_event_can_be_written
from tests.factories import (
    SignedInUser,
    StoredUser,
    make_api_key,
    make_conversation,
    make_signed_in,
    make_user,
    sign_in,
)

MINE = "/api/v1/usage/me"
CONVERSATIONS = "/api/v1/conversations"
NO_SUCH_ID = "6746d0a8f8f8f8f8f8f8f8f8"


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


async def used_up_to(user: StoredUser, messages: int, *, day: str | None = None) -> None:
    """Have that many messages of the user counted."""
    expires_at = datetime.now(UTC) + timedelta(days=400)
    await UsageCounter(user_id=user.id, day=day or today(), messages=messages, expires_at=expires_at).insert()


async def counted(user: StoredUser, day: str | None = None) -> int | None:
    counter = await UsageCounter.find_one({"user_id": user.id, "day": day or today()})
    return counter.messages if counter else None


async def conversations_of(user: StoredUser) -> int:
    total = await UsageTotal.find_one({"_id": user.id})
    return total.conversations if total else 0


async def say(client: AsyncClient, conversation: Conversation, headers: dict[str, str], **body: Any) -> Response:
    url = f"{CONVERSATIONS}/{conversation.id}/messages"
    return await client.post(url, json={"content": "Hello"} | body, headers=headers)


async def open_one(client: AsyncClient, user: SignedInUser, **body: Any) -> Response:
    return await client.post(CONVERSATIONS, json=body, headers=user.headers)


def statuses(responses: Sequence[Response]) -> list[int]:
    return sorted(response.status_code for response in responses)


class TestDailyMessages:
    async def test_are_counted_on_the_day_of_the_writer(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        tea, coffee = await make_conversation(ada, bob), await make_conversation(ada)

        for conversation, user in ((tea, ada), (coffee, ada), (tea, bob), (tea, ada)):
            assert (await say(client, conversation, user.headers)).status_code == 201

        assert (await counted(ada), await counted(bob)) == (3, 1)

    async def test_are_refused_once_they_are_used_up(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": 2})
        conversation = await make_conversation(ada)

        responses = [await say(client, conversation, ada.headers) for _ in range(3)]

        assert [response.status_code for response in responses] == [201, 201, 429]
        assert responses[2].json()["code"] == "daily_limit_reached"
        assert await counted(ada) == await Message.count() == 2

    async def test_say_when_there_are_some_again(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": 0})
        conversation = await make_conversation(ada)

        now = datetime.now(UTC)
        response = await say(client, conversation, ada.headers)

        midnight = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
        left = (midnight - now).total_seconds()
        assert left - 10 < int(response.headers["retry-after"]) <= left + 1
        assert midnight.strftime("%Y-%m-%dT00:00:00Z") in response.json()["detail"]

    @pytest.mark.parametrize(("plan", "used", "expected"), [("free", 499, [201, 429]), ("pro", 9_999, [201, 429])])
    async def test_are_as_many_as_the_plan_says(
        self, client: AsyncClient, plan: str, used: int, expected: list[int]
    ) -> None:
        ada = await make_signed_in(plan=plan)
        conversation = await make_conversation(ada)
        await used_up_to(ada, used)

        responses = [await say(client, conversation, ada.headers) for _ in range(2)]

        assert [response.status_code for response in responses] == expected

    @pytest.mark.parametrize("account", [{"plan": "enterprise"}, {"limits": {"daily_messages": None}}])
    async def test_without_limit_are_counted_too(self, client: AsyncClient, account: dict[str, Any]) -> None:
        ada = await make_signed_in(**account)
        conversation = await make_conversation(ada)
        await used_up_to(ada, 1_000_000)

        assert (await say(client, conversation, ada.headers)).status_code == 201

        assert await counted(ada) == 1_000_001

    async def test_of_another_day_are_none_of_today(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": 1})
        conversation = await make_conversation(ada)
        yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
        await used_up_to(ada, 1, day=yesterday)

        assert (await say(client, conversation, ada.headers)).status_code == 201

        assert (await counted(ada, yesterday), await counted(ada)) == (1, 1)

    async def test_begin_anew_at_midnight(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        ada = await make_signed_in(limits={"daily_messages": 1})
        conversation = await make_conversation(ada)
        times = [datetime(2031, 5, 1, 23, 59, 59, 999_000, tzinfo=UTC), datetime(2031, 5, 2, tzinfo=UTC)]

        outcomes = []
        for time in (times[0], times[0], times[1], times[1]):
            monkeypatch.setattr(usage_service, "utc_now", lambda at=time: at)
            response = await say(client, conversation, ada.headers)
            outcomes.append((response.status_code, response.headers.get("retry-after")))

        assert outcomes == [(201, None), (429, "1"), (201, None), (429, "86400")]
        assert (await counted(ada, "2031-05-01"), await counted(ada, "2031-05-02")) == (1, 1)

    async def test_are_kept_for_four_hundred_days(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        await say(client, await make_conversation(ada), ada.headers)

        counter = await UsageCounter.find_one({"user_id": ada.id})
        assert counter is not None
        assert (counter.expires_at - datetime.fromisoformat(f"{today()}T00:00:00+00:00")).days == 400

    @pytest.mark.usefixtures("patience")
    async def test_are_counted_exactly_by_a_hundred_at_once(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": 60})
        conversations = [await make_conversation(ada) for _ in range(4)]
        await used_up_to(ada, 50)

        responses = await asyncio.gather(
            *(say(client, conversations[number % 4], ada.headers) for number in range(100))
        )

        assert statuses(responses) == [201] * 10 + [429] * 90
        assert {response.json()["code"] for response in responses if response.is_error} == {"daily_limit_reached"}
        assert (await Message.count(), await counted(ada)) == (10, 60)

    @pytest.mark.usefixtures("patience")
    async def test_that_are_the_first_of_the_day_may_be_many_at_once(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": 3})
        conversations = [await make_conversation(ada) for _ in range(8)]

        responses = await asyncio.gather(*(say(client, conversation, ada.headers) for conversation in conversations))

        assert statuses(responses) == [201] * 3 + [429] * 5
        assert await UsageCounter.find({"user_id": ada.id}).count() == 1

    @pytest.mark.usefixtures("patience")
    async def test_of_two_crossing_conversations_hold_up_nobody(self, client: AsyncClient) -> None:
        ada, bob = await make_signed_in(), await make_signed_in()
        both = [await make_conversation(ada, bob) for _ in range(2)]

        async with asyncio.timeout(10):
            responses = await asyncio.gather(
                *(say(client, both[number % 2], (ada, bob)[number // 2 % 2].headers) for number in range(40))
            )

        assert statuses(responses) == [201] * 40
        assert (await counted(ada), await counted(bob)) == (20, 20)

    async def test_that_could_not_be_stored_are_not_counted(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": 1})
        conversation, strange = await make_conversation(ada), await make_conversation()
        database = Message.get_pymongo_collection().database
        await database.command("collMod", "messages", validator={"content": {"$ne": "Hello"}})
        try:
            broken = await say(client, conversation, ada.headers)
        finally:
            await database.command("collMod", "messages", validator={})
        hidden = await say(client, strange, ada.headers)

        assert broken.status_code >= 500
        assert hidden.status_code == 404
        assert await counted(ada) == 0
        assert (await say(client, conversation, ada.headers)).status_code == 201

    async def test_are_counted_again_after_their_counter_was_removed(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await say(client, conversation, ada.headers)
        await UsageCounter.find({"user_id": ada.id}).delete()

        responses = [await say(client, conversation, ada.headers) for _ in range(2)]

        assert responses[1].status_code == 201
        assert await counted(ada) == 1


class TestWhoseMessageCounts:
    async def test_is_the_owner_of_a_personal_key(self, client: AsyncClient) -> None:
        ada = await make_user(limits={"daily_messages": 1})
        key = await make_api_key("conversations:write", owner=ada)
        conversation = await make_conversation(ada)

        responses = [await say(client, conversation, key.headers) for _ in range(2)]

        assert [response.status_code for response in responses] == [201, 429]

    async def test_is_the_participant_that_a_service_writes_for(self, client: AsyncClient) -> None:
        ada, bob = await make_user(limits={"daily_messages": 1}), await make_user()
        key = await make_api_key("conversations:write")
        conversation = await make_conversation(ada, bob)

        responses = [await say(client, conversation, key.headers, user_id=str(user.id)) for user in (ada, ada, bob)]

        assert [response.status_code for response in responses] == [201, 429, 201]
        assert (await counted(ada), await counted(bob)) == (1, 1)

    @pytest.mark.parametrize("role", ["assistant", "system"])
    async def test_is_nobody_where_no_user_speaks(self, client: AsyncClient, role: str) -> None:
        ada = await make_user(limits={"daily_messages": 0})
        key = await make_api_key("conversations:write")
        conversation = await make_conversation(ada)

        for body in ({"role": role}, {"role": role, "user_id": str(ada.id)}, {"role": "user"}):
            assert (await say(client, conversation, key.headers, **body)).status_code == 201

        assert await UsageCounter.count() == 0

    async def test_is_nobody_that_does_not_take_part(self, client: AsyncClient) -> None:
        ada, bob = await make_user(), await make_user()
        key = await make_api_key("conversations:write")
        conversation = await make_conversation(ada)

        responses = [
            await say(client, conversation, key.headers, user_id=str(user_id)) for user_id in (bob.id, ObjectId())
        ]

        assert [response.status_code for response in responses] == [403, 403]
        assert await UsageCounter.find({"messages": {"$gt": 0}}).count() == 0


class TestConversations:
    async def test_are_refused_when_the_plan_has_no_room(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"max_conversations": 2})

        responses = [await open_one(client, ada) for _ in range(3)]

        assert [response.status_code for response in responses] == [201, 201, 429]
        assert responses[2].json()["code"] == "quota_exceeded"
        assert "retry-after" not in responses[2].headers
        assert (await Conversation.count(), await conversations_of(ada)) == (2, 2)

    async def test_are_as_many_as_the_plan_says(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await UsageTotal(id=ada.id, conversations=199).insert()

        responses = [await open_one(client, ada) for _ in range(2)]

        assert [response.status_code for response in responses] == [201, 429]

    @pytest.mark.usefixtures("patience")
    async def test_are_counted_exactly_when_opened_at_once(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"max_conversations": 10})
        again = await sign_in(ada)

        responses = await asyncio.gather(
            *(open_one(client, user, title=f"Tea {number}") for number in range(20) for user in (ada, again))
        )

        assert statuses(responses) == [201] * 10 + [429] * 30
        assert (await Conversation.count(), await conversations_of(ada)) == (10, 10)

    async def test_count_for_the_owner_of_a_personal_key_and_for_nobody_else(self, client: AsyncClient) -> None:
        ada, bob = await make_user(limits={"max_conversations": 1}), await make_user(limits={"max_conversations": 0})
        personal = await make_api_key("conversations:write", owner=ada)
        service = await make_api_key("conversations:write")
        with_both = {"participant_ids": [str(ada.id), str(bob.id)]}

        responses = [
            await client.post(CONVERSATIONS, json={"participant_ids": [str(bob.id)]}, headers=personal.headers),
            await client.post(CONVERSATIONS, json={}, headers=personal.headers),
            await client.post(CONVERSATIONS, json=with_both, headers=service.headers),
        ]

        assert [response.status_code for response in responses] == [201, 429, 201]
        assert (await conversations_of(ada), await conversations_of(bob)) == (1, 0)

    @pytest.mark.parametrize("by", ["owner", "admin", "service"])
    async def test_make_room_when_they_are_deleted_whoever_deletes(self, client: AsyncClient, by: str) -> None:
        ada, admin = await make_signed_in(limits={"max_conversations": 1}), await make_signed_in(role=Role.ADMIN)
        key = await make_api_key("admin")
        url = f"{CONVERSATIONS}/{(await open_one(client, ada)).json()['id']}"

        headers = {"owner": ada.headers, "admin": admin.headers, "service": key.headers}[by]
        assert (await client.delete(url, headers=headers)).status_code == 204
        assert (await client.delete(url, headers=headers)).status_code == 404

        assert await conversations_of(ada) == 0
        assert statuses([await open_one(client, ada), await open_one(client, ada)]) == [201, 429]

    async def test_never_count_below_nothing(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        before_counting = await make_conversation(ada)
        await UsageTotal(id=ada.id).insert()

        await client.delete(f"{CONVERSATIONS}/{before_counting.id}", headers=ada.headers)

        assert await conversations_of(ada) == 0

    async def test_count_only_when_they_were_opened_and_deleted(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        kept = (await open_one(client, ada)).json()["id"]

        async with no_event_can_be_written():
            for method, url in (("POST", CONVERSATIONS), ("DELETE", f"{CONVERSATIONS}/{kept}")):
                response = await client.request(method, url, json={} if method == "POST" else None, headers=ada.headers)
                assert response.status_code >= 500
        unknown = await open_one(client, ada, participant_ids=[NO_SUCH_ID])

        assert unknown.status_code == 422
        assert await conversations_of(ada) == 1


class TestRead:
    async def test_shows_what_is_used_and_left(self, client: AsyncClient) -> None:
        ada = await make_signed_in(credits=7, limits={"daily_messages": 5})
        conversation = (await open_one(client, ada)).json()
        for _ in range(2):
            await client.post(
                f"{CONVERSATIONS}/{conversation['id']}/messages", json={"content": "Hello"}, headers=ada.headers
            )

        response = await client.get(MINE, headers=ada.headers)

        assert response.status_code == 200
        shown = response.json()
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        assert shown.pop("resets_at") == tomorrow.strftime("%Y-%m-%dT00:00:00Z")
        assert shown == {
            "plan": "free",
            "limits": {
                "daily_messages": 5,
                "max_conversations": 200,
                "storage_bytes": 1_073_741_824,
                "requests_per_minute": None,
            },
            "used": {"messages_today": 2, "conversations": 1, "storage_bytes": 0},
            "remaining": {"messages_today": 3, "conversations": 199, "storage_bytes": 1_073_741_824},
            "credits": 7,
        }

    async def test_shows_what_has_no_limit_as_null(self, client: AsyncClient) -> None:
        ada = await make_signed_in(plan="enterprise")

        shown = (await client.get(MINE, headers=ada.headers)).json()

        assert (shown["plan"], shown["limits"]["requests_per_minute"]) == ("enterprise", 10_000)
        assert shown["limits"]["daily_messages"] is None
        assert shown["remaining"] == {"messages_today": None, "conversations": None, "storage_bytes": None}

    async def test_shows_nothing_left_where_the_limit_was_lowered_since(self, client: AsyncClient) -> None:
        ada = await make_signed_in(limits={"daily_messages": 5, "max_conversations": 1})
        await used_up_to(ada, 9)
        await UsageTotal(id=ada.id, conversations=4).insert()

        shown = (await client.get(MINE, headers=ada.headers)).json()

        assert (shown["remaining"]["messages_today"], shown["remaining"]["conversations"]) == (0, 0)
        assert (shown["used"]["messages_today"], shown["used"]["conversations"]) == (9, 4)

    @pytest.mark.parametrize(
        ("caller", "mine", "theirs"),
        [
            ("nobody", 401, 401),
            ("guest", 200, 403),
            ("user", 200, 403),
            ("support", 200, 200),
            ("admin", 200, 200),
            ("superuser", 200, 200),
            ("key users:read", 403, 200),
            ("key admin", 403, 200),
            ("key users:write", 403, 403),
            ("key usage:write", 403, 403),
            ("personal user users:read", 200, 403),
            ("personal user conversations:read", 403, 403),
            ("personal support users:read", 200, 200),
        ],
    )
    async def test_is_for_oneself_and_for_who_may_read_users(
        self, client: AsyncClient, caller: str, mine: int, theirs: int
    ) -> None:
        ada, headers = await make_user(credits=7), await headers_of(caller)

        answers = [await client.get(url, headers=headers) for url in (MINE, f"/api/v1/users/{ada.id}/usage")]

        assert [answer.status_code for answer in answers] == [mine, theirs]
        assert answers[1].json().get("credits") == (7 if theirs == 200 else None)

    async def test_is_for_oneself_also_by_id(self, client: AsyncClient) -> None:
        ada = await make_signed_in(credits=3)

        response = await client.get(f"/api/v1/users/{ada.id}/usage", headers=ada.headers)

        assert (response.status_code, response.json()["credits"]) == (200, 3)

    @pytest.mark.parametrize("user_id", [NO_SUCH_ID, "zebra"])
    async def test_of_nobody_is_not_found(self, client: AsyncClient, user_id: str) -> None:
        response = await client.get(f"/api/v1/users/{user_id}/usage", headers=await headers_of("admin"))

        assert (response.status_code, response.json()["code"]) == (404, "not_found")
