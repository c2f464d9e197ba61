"""What services tell of messages elsewhere: what is stored of it, what it draws, and what becomes of it."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId, json_util
from httpx import AsyncClient, Response

from app.core.scopes import Role
from app.crud import crud_message_log, crud_usage
from app.db.mongo import find_batch, get_database
from app.models.audit_event import AuditEvent
from app.models.message_log import MessageLog
from app.models.usage_counter import UsageCounter
from app.models.user import User
from tests.commands import Commands
from tests.conftest import Serve, no_event_can_be_written
from tests.factories import StoredUser, archive, make_api_key, make_message_log, make_signed_in, make_user

URL = "/api/v1/message-logs"
# So young that no log is pruned behind the back of a test.
DAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=30)
ENTRY = {"username": "ada", "model": "gpt", "messages": 1}
Headers = dict[str, str]


@pytest.fixture
async def service(client: AsyncClient) -> Headers:  # noqa: ARG001 - which serves the database
    return (await make_api_key("usage:write")).headers


@pytest.fixture
async def ada(client: AsyncClient) -> StoredUser:  # noqa: ARG001
    return await make_user(username="ada", credits=100)


async def tell(client: AsyncClient, headers: Headers, *entries: Any) -> Response:
    body = json.dumps({"entries": entries})
    return await client.post(URL, headers=headers | {"Content-Type": "application/json"}, content=body)


async def reason(client: AsyncClient, headers: Headers, entry: Any) -> str:
    """Why it is rejected, between two good ones that are not."""
    response = await tell(client, headers, ENTRY, entry, ENTRY)
    assert (response.status_code, response.json()["accepted"]) == (200, 2), response.text
    (rejected,) = response.json()["rejected"]
    assert rejected.keys() == {"index", "reason"}
    assert rejected["index"] == 1
    return str(rejected["reason"])


async def credits_of(user: StoredUser) -> int:
    stored = await User.find_one({"_id": user.id})
    assert stored is not None
    return stored.credits


async def tokens_of(user: StoredUser) -> dict[str, int]:
    return {counter.day: counter.tokens async for counter in UsageCounter.find({"user_id": user.id})}


def ago(**span: float) -> str:
    return (datetime.now(UTC) - timedelta(**span)).isoformat()


class TestStore:
    async def test_keeps_what_is_told(self, client: AsyncClient, service: Headers, ada: StoredUser) -> None:
        moment = datetime.now(UTC).replace(microsecond=123_000) - timedelta(days=2)
        told = {"username": "ADA", "model": " gpt ", "messages": 3, "tokens": 40, "timestamp": moment.isoformat()}

        response = await tell(client, service, told)

        (log,) = await MessageLog.find_all().to_list()
        assert (response.status_code, response.json()) == (200, {"accepted": 1, "rejected": []})
        assert (log.user_id, log.username, log.model, log.messages, log.tokens) == (ada.id, "ada", "gpt", 3, 40)
        assert log.timestamp == moment
        assert abs(log.created_at - datetime.now(UTC)) < timedelta(seconds=10)

    @pytest.mark.parametrize("more", [{}, {"tokens": None, "timestamp": None}], ids=["left out", "null"])
    async def test_takes_now_and_unknown_for_what_is_left_out(
        self, client: AsyncClient, service: Headers, ada: StoredUser, more: dict[str, Any]
    ) -> None:
        await tell(client, service, ENTRY | more)

        (log,) = await MessageLog.find_all().to_list()
        assert log.tokens is None
        assert abs(log.timestamp - datetime.now(UTC)) < timedelta(seconds=10)
        assert (await credits_of(ada), await tokens_of(ada)) == (100, {})

    @pytest.mark.parametrize(
        ("text", "hours"), [("T12:00:00+02:00", 10), ("T12:00:00", 12), (" 12:00:00Z", 12), ("", 0)], ids=str
    )
    async def test_reads_times_as_everywhere(
        self, client: AsyncClient, service: Headers, ada: StoredUser, text: str, hours: int
    ) -> None:
        day = f"{datetime.now(UTC) - timedelta(days=3):%Y-%m-%d}"

        await tell(client, service, ENTRY | {"timestamp": day + text})

        (log,) = await MessageLog.find({"user_id": ada.id}).to_list()
        assert log.timestamp == datetime.fromisoformat(f"{day}T{hours:02}:00:00+00:00")

    @pytest.mark.usefixtures("ada")
    async def test_takes_the_array_alone_too(self, client: AsyncClient, service: Headers) -> None:
        response = await client.post(URL, headers=service, json=[ENTRY, ENTRY | {"messages": -1}])

        assert response.status_code == 200
        assert (response.json()["accepted"], [row["index"] for row in response.json()["rejected"]]) == (1, [1])

    async def test_takes_a_thousand_at_once(self, client: AsyncClient, service: Headers, ada: StoredUser) -> None:
        others = [await make_user(username=f"user{number}") for number in range(20)]
        names = [user.document.username for user in (ada, *others)]
        entries = [
            ENTRY | {"username": names[at % 21], "tokens": at, "timestamp": ago(days=at // 21 % 7)}
            for at in range(1000)
        ]

        response = await tell(client, service, *entries)

        assert response.json() == {"accepted": 1000, "rejected": []}
        assert await MessageLog.count() == 1000
        assert sum((await tokens_of(ada)).values()) == sum(range(0, 1000, 21))
        assert len(await tokens_of(ada)) == 7

    async def test_does_not_count_against_the_messages_of_the_day(
        self, client: AsyncClient, service: Headers, ada: StoredUser
    ) -> None:
        await User.find({"_id": ada.id}).update({"$set": {"limits": {"daily_messages": 1}}})

        response = await tell(client, service, ENTRY | {"messages": 5, "tokens": 10}, ENTRY)

        counter = await UsageCounter.find_one({"user_id": ada.id})
        assert response.json()["accepted"] == 2
        assert counter is not None
        assert (counter.messages, counter.tokens) == (0, 10)

    async def test_takes_those_of_a_deactivated_user(self, client: AsyncClient, service: Headers) -> None:
        await make_user(username="ada", is_active=False)

        assert (await tell(client, service, ENTRY)).json()["accepted"] == 1

    async def test_asks_the_database_as_often_for_fifty_users_as_for_one(
        self, serve: Serve, commands: Commands
    ) -> None:
        async with serve() as client:
            names = [(await make_user(credits=10)).document.username for _ in range(50)]
            key = await make_api_key("usage:write")
            entries = [ENTRY | {"username": name, "tokens": 2000, "timestamp": ago(hours=1)} for name in names]
            await tell(client, key.headers, *entries[:1])
            asked = []
            for count in (1, 50):
                commands.taken()
                assert (await tell(client, key.headers, *entries[:count])).json()["accepted"] == count
                asked.append([(command.name, command.collection) for command in commands.taken()])

        assert asked[0] == asked[1]
        assert [command for command in asked[1] if command[1] in {"users", "message_logs"}] == [
            ("find", "users"),
            ("find", "users"),
            ("update", "users"),
            ("insert", "message_logs"),
        ]


class TestReject:
    """Each by itself, between others that are stored."""

    @pytest.fixture(autouse=True)
    async def account(self, ada: StoredUser) -> StoredUser:
        return ada

    @pytest.mark.parametrize("entry", [7, "ada", None, True, 1.5, [], [ENTRY]], ids=str)
    async def test_what_is_no_object(self, client: AsyncClient, service: Headers, entry: Any) -> None:
        assert await reason(client, service, entry) == "must be an object"

    @pytest.mark.parametrize("field", ["username", "model", "messages"])
    async def test_what_lacks_a_field(self, client: AsyncClient, service: Headers, field: str) -> None:
        entry = {name: value for name, value in ENTRY.items() if name != field}

        assert await reason(client, service, entry) == f"{field}: Field required"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("username", 7),
            ("username", ""),
            ("username", None),
            ("username", ["ada"]),
            ("username", "a" * 201),
            ("username", "\ud800"),
            ("model", 4),
            ("model", ""),
            ("model", "  "),
            ("model", "a\nb"),
            ("model", "a" * 201),
            ("messages", "3"),
            ("messages", 1.0),
            ("messages", 1.5),
            ("messages", True),
            ("messages", None),
            ("messages", -1),
            ("messages", 10**9 + 1),
            ("messages", 10**400),
            ("messages", float("nan")),
            ("tokens", "3"),
            ("tokens", -1),
            ("tokens", 10**9 + 1),
            ("tokens", {}),
            ("timestamp", 1_700_000_000),
            ("timestamp", "1700000000"),
            ("timestamp", "yesterday"),
            ("timestamp", "2026-13-01T00:00:00Z"),
            ("timestamp", "0001-01-01T00:00:00+14:00"),
            ("timestamp", "9999-12-31T23:59:59-14:00"),
            ("timestamp", True),
        ],
        ids=lambda value: str(value).encode("ascii", "backslashreplace").decode()[:30],
    )
    async def test_what_is_of_a_wrong_type_or_size(
        self, client: AsyncClient, service: Headers, field: str, value: Any
    ) -> None:
        response = await tell(client, service, ENTRY, ENTRY | {field: value}, ENTRY)

        (rejected,) = response.json()["rejected"]
        assert (response.json()["accepted"], rejected["index"]) == (2, 1)
        assert rejected["reason"].startswith(f"{field}: ")
        assert await MessageLog.count() == 2

    @pytest.mark.parametrize("field", ["tokes", "user_id", "_id", "\ud800", "x" * 5000])
    async def test_what_has_an_unknown_field(self, client: AsyncClient, service: Headers, field: str) -> None:
        told = await reason(client, service, ENTRY | {field: 1})

        named = "\\ud800" if field == "\ud800" else field[:40]
        assert told == f"{named}: is no field of an entry"

    async def test_what_has_a_hundred_thousand_of_them_as_fast(self, client: AsyncClient, service: Headers) -> None:
        started = time.process_time()

        await reason(client, service, {f"{number:x}": 1 for number in range(80_000)})

        assert time.process_time() - started < 1

    async def test_tells_of_three_faults_at_most(self, client: AsyncClient, service: Headers) -> None:
        told = await reason(client, service, {str(number): number for number in range(1000)})

        assert told.count("; ") == 3
        assert told.endswith("; and more")

    @pytest.mark.parametrize("name", ["nobody", "ada ", "ada@example.com", "$ne", "a\x00"])
    async def test_a_name_that_nobody_has(self, client: AsyncClient, service: Headers, name: str) -> None:
        assert await reason(client, service, ENTRY | {"username": name}) == "username: there is no such user"

    async def test_the_name_of_a_deleted_user(self, client: AsyncClient, service: Headers) -> None:
        gone = await archive(await make_user(username="gone"))

        assert await reason(client, service, ENTRY | {"username": "gone"}) == "username: there is no such user"
        assert await MessageLog.find({"user_id": gone.id}).count() == 0

    async def test_what_is_yet_to_come(self, client: AsyncClient, service: Headers) -> None:
        told = await reason(client, service, ENTRY | {"timestamp": ago(seconds=-30)})

        assert told == "timestamp: must not be in the future"

    async def test_nothing_for_clocks_that_differ_by_a_moment(self, client: AsyncClient, service: Headers) -> None:
        response = await tell(client, service, ENTRY | {"timestamp": ago(seconds=-3)})

        assert response.json()["accepted"] == 1

    async def test_what_is_past_the_retention(self, client: AsyncClient, service: Headers) -> None:
        told = await reason(client, service, ENTRY | {"timestamp": ago(days=90, seconds=1)})

        assert told == "timestamp: must not be older than the 90 days for which logs are kept"
        assert (await tell(client, service, ENTRY | {"timestamp": ago(days=89, hours=23)})).json()["accepted"] == 1

    async def test_nothing_for_its_age_where_logs_are_kept_for_good(self, serve: Serve) -> None:
        async with serve(message_log_retention_days=0) as client:
            key = await make_api_key("usage:write")
            response = await tell(client, key.headers, ENTRY | {"timestamp": "1999-01-01T00:00:00Z", "tokens": 5})

        assert response.json()["accepted"] == 1

    async def test_each_with_its_own_index_in_order(self, client: AsyncClient, service: Headers) -> None:
        bad = ENTRY | {"messages": -1}

        response = await tell(client, service, ENTRY | {"username": "x"}, ENTRY, bad, ENTRY | {"username": "y"}, 7)

        assert response.json()["accepted"] == 1
        assert [row["index"] for row in response.json()["rejected"]] == [0, 2, 3, 4]

    async def test_all_without_storing_or_recording_anything(self, client: AsyncClient, service: Headers) -> None:
        response = await tell(client, service, 7, ENTRY | {"username": "x", "tokens": 5})

        assert (response.status_code, response.json()["accepted"]) == (200, 0)
        assert await MessageLog.count() == await UsageCounter.count() == 0
        assert await AuditEvent.find({"action": "message_logs:stored"}).count() == 0

    async def test_without_an_echo_of_what_was_sent(self, client: AsyncClient, service: Headers) -> None:
        response = await tell(client, service, ENTRY | {"messages": "s3cret"}, ENTRY | {"username": "s3cret"}, "s3cret")

        assert len(response.json()["rejected"]) == 3
        assert "s3cret" not in response.text


class TestRefuse:
    """The call as a whole, of which nothing is stored then."""

    @pytest.mark.parametrize(
        "body",
        [[], {"entries": []}, {"entries": [ENTRY] * 1001}, [ENTRY] * 1001, {}, ENTRY, {"entries": ENTRY}, "x", None, 7],
        ids=["empty array", "empty", "1001", "array of 1001", "nothing", "entry", "no list", "text", "null", "number"],
    )
    async def test_what_is_no_list_of_one_to_a_thousand(
        self, client: AsyncClient, service: Headers, ada: StoredUser, body: Any
    ) -> None:
        response = await client.post(URL, headers=service, json=body)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
        assert await MessageLog.count() == 0
        assert await credits_of(ada) == 100

    async def test_what_has_another_field(self, client: AsyncClient, service: Headers) -> None:
        response = await client.post(URL, headers=service, json={"entries": [ENTRY], "dry_run": True})

        assert (response.status_code, response.json()["errors"][0]["loc"]) == (422, ["body", "dry_run"])

    async def test_what_is_larger_than_a_body_may_be(self, client: AsyncClient, service: Headers) -> None:
        response = await tell(client, service, ENTRY | {"model": "x" * 1_100_000})

        assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")

    async def test_a_key_without_the_scope(self, client: AsyncClient) -> None:
        key = await make_api_key("write", "read")

        response = await tell(client, key.headers, ENTRY)

        assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")

    async def test_a_personal_key_of_who_may_not(self, client: AsyncClient, ada: StoredUser) -> None:
        key = await make_api_key("usage:write", owner=ada)

        assert (await tell(client, key.headers, ENTRY)).status_code == 403


class TestCredits:
    @pytest.mark.parametrize(
        ("tokens", "left"),
        [([0], 100), ([1], 99), ([1000], 99), ([1001], 98), ([400, 400, 400], 98), ([None, 1, None], 99)],
        ids=str,
    )
    async def test_are_drawn_by_the_thousand_tokens_rounded_up_once_a_call(
        self, client: AsyncClient, service: Headers, ada: StoredUser, tokens: list[int | None], left: int
    ) -> None:
        await tell(client, service, *(ENTRY | {"tokens": count} for count in tokens))

        assert await credits_of(ada) == left

    async def test_are_each_users_own(self, client: AsyncClient, service: Headers, ada: StoredUser) -> None:
        bob, eve = await make_user(username="bob", credits=7), await make_user(username="eve", credits=7)

        await tell(client, service, ENTRY | {"tokens": 1500}, ENTRY | {"username": "Bob", "tokens": 10})

        assert [await credits_of(user) for user in (ada, bob, eve)] == [98, 6, 7]

    async def test_never_go_below_none(self, client: AsyncClient, service: Headers) -> None:
        poor, none = await make_user(username="poor", credits=2), await make_user(username="none")

        response = await tell(
            client, service, *(ENTRY | {"username": name, "tokens": 50_000} for name in ("poor", "none"))
        )

        assert response.json()["accepted"] == 2
        assert [await credits_of(user) for user in (poor, none)] == [0, 0]
        assert await MessageLog.count() == 2

    async def test_leave_the_version_of_the_account(
        self, client: AsyncClient, service: Headers, ada: StoredUser
    ) -> None:
        """Nobody edits a balance: an edit of the user under `If-Match` does not fail for what a service tells."""
        await User.get_pymongo_collection().update_one({"_id": ada.id}, {"$set": {"credits": 5}})
        for tokens in (0, 1):
            await tell(client, service, ENTRY | {"tokens": tokens})

        stored = await User.find_one({"_id": ada.id})
        assert stored is not None
        assert stored.credits == 4
        assert stored.version == ada.document.version

    async def test_are_drawn_exactly_by_calls_at_once(
        self, client: AsyncClient, service: Headers, ada: StoredUser
    ) -> None:
        bob = await make_user(username="bob", credits=5)
        entries = [ENTRY | {"tokens": 1500, "timestamp": ago(seconds=1)}, ENTRY | {"username": "bob", "tokens": 1000}]

        responses = await asyncio.gather(*(tell(client, service, *entries[:: (-1) ** at]) for at in range(12)))

        assert {response.status_code for response in responses} == {200}
        assert (await credits_of(ada), await credits_of(bob)) == (76, 0)
        assert (sum((await tokens_of(ada)).values()), sum((await tokens_of(bob)).values())) == (18_000, 12_000)
        assert await MessageLog.count() == 24


class TestTokens:
    async def test_are_counted_on_the_day_of_the_entry(
        self, client: AsyncClient, service: Headers, ada: StoredUser
    ) -> None:
        day, before = (f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}" for days in (3, 4))
        times = [f"{before}T23:59:59.999Z", f"{day}T00:00:00Z", f"{day}T01:00:00+02:00", f"{day}T23:59:59Z"]

        await tell(client, service, *(ENTRY | {"tokens": 10**at, "timestamp": time} for at, time in enumerate(times)))

        assert await tokens_of(ada) == {before: 101, day: 1010}

    async def test_are_added_to_what_was_counted_and_kept_from_their_own_day_on(
        self, client: AsyncClient, service: Headers, ada: StoredUser
    ) -> None:
        day = f"{datetime.now(UTC) - timedelta(days=3):%Y-%m-%d}"
        for tokens in (5, 7):
            await tell(client, service, ENTRY | {"tokens": tokens, "timestamp": f"{day}T12:00:00Z"})

        (counter,) = await UsageCounter.find({"user_id": ada.id}).to_list()
        assert (counter.day, counter.tokens, counter.messages) == (day, 12, 0)
        assert counter.expires_at == datetime.fromisoformat(f"{day}T00:00:00+00:00") + timedelta(days=400)


class TestWholeness:
    async def test_is_all_or_nothing(self, client: AsyncClient, service: Headers, ada: StoredUser) -> None:
        async with no_event_can_be_written():
            response = await tell(client, service, ENTRY | {"tokens": 5000})

        assert response.status_code == 500
        assert await MessageLog.count() == 0
        assert await credits_of(ada) == 100
        assert sum((await tokens_of(ada)).values()) == 0
        assert (await tell(client, service, ENTRY | {"tokens": 5000})).json()["accepted"] == 1
        assert await credits_of(ada) == 95

    async def test_is_refused_when_a_user_goes_meanwhile(
        self, client: AsyncClient, service: Headers, ada: StoredUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bob, real = await make_user(username="bob", credits=5), crud_usage.open_days

        async def gone(days: Any) -> None:
            await archive(ada)
            await real(days)

        monkeypatch.setattr(crud_usage, "open_days", gone)

        response = await tell(client, service, ENTRY, ENTRY | {"username": "bob", "tokens": 1})

        assert (response.status_code, response.json()["code"]) == (409, "conflict")
        assert await MessageLog.count() == 0
        assert await credits_of(bob) == 5

    async def test_is_on_record_as_one_event(self, client: AsyncClient, ada: StoredUser) -> None:
        key = await make_api_key("usage:write")

        await tell(client, key.headers, ENTRY | {"tokens": 5}, 7, ENTRY)

        (event,) = await AuditEvent.find({"action": "message_logs:stored"}).to_list()
        assert (event.actor.id, event.target.kind, event.target.id) == (key.document.id, "message_logs", None)
        assert event.details == {"accepted": 2, "rejected": 1, "users": 1, "tokens": 5}
        assert ada.document.username not in event.model_dump_json()


class TestList:
    @pytest.fixture
    async def admin(self, client: AsyncClient) -> Headers:  # noqa: ARG002
        return (await make_signed_in(role=Role.ADMIN)).headers

    async def listed(self, client: AsyncClient, admin: Headers, query: str = "") -> list[str]:
        response = await client.get(f"{URL}?{query}", headers=admin)
        assert response.status_code == 200, response.text
        return [row["id"] for row in response.json()]

    async def test_shows_what_was_told(
        self, client: AsyncClient, service: Headers, admin: Headers, ada: StoredUser
    ) -> None:
        await tell(client, service, ENTRY | {"tokens": 5, "timestamp": (moment := ago(hours=1))})

        (row,) = (await client.get(URL, headers=admin)).json()

        (log,) = await MessageLog.find_all().to_list()
        assert row == {
            "id": str(log.id),
            "user_id": str(ada.id),
            "username": "ada",
            "model": "gpt",
            "messages": 1,
            "tokens": 5,
            "timestamp": row["timestamp"],
            "created_at": row["created_at"],
        }
        assert abs(datetime.fromisoformat(row["timestamp"]) - datetime.fromisoformat(moment)) < timedelta(seconds=1)
        assert row["timestamp"].endswith("Z")

    async def test_has_the_latest_first(self, client: AsyncClient, admin: Headers, ada: StoredUser) -> None:
        logs = [await make_message_log(ada, timestamp=DAY + timedelta(hours=hour)) for hour in (2, 1, 3)]

        assert await self.listed(client, admin) == [str(logs[at].id) for at in (2, 0, 1)]

    async def test_pages_without_repeating_or_losing_any(
        self, client: AsyncClient, admin: Headers, ada: StoredUser
    ) -> None:
        made = [await make_message_log(ada, timestamp=DAY + timedelta(hours=number // 4)) for number in range(11)]
        await make_message_log(await make_user())

        seen, url, pages = [], f"{URL}?limit=3&username=ADA&from=2020-01-01T00:00:00Z", 0
        while url:
            page = await client.get(url, headers=admin)
            seen += [row["id"] for row in page.json()]
            await make_message_log(ada)  # the latest of all, behind one's back
            url, pages = page.links.get("next", {}).get("url", ""), pages + 1

        assert seen == [str(log.id) for log in sorted(made, key=lambda log: (log.timestamp, log.id), reverse=True)]
        assert pages == 4

    async def test_can_be_limited(self, client: AsyncClient, admin: Headers, ada: StoredUser) -> None:
        bob = await make_user(username="Bob")
        first = await make_message_log(ada, timestamp=DAY)
        second = await make_message_log(ada, model="other", timestamp=DAY + timedelta(hours=1))
        third = await make_message_log(bob, timestamp=DAY + timedelta(hours=2))
        renamed = await make_message_log(bob, username="Old", username_key="old", timestamp=DAY + timedelta(hours=3))
        day = f"{DAY:%Y-%m-%d}"
        expected = {
            "username=ada": [second, first],
            "username=BOB": [third],
            "username=old": [renamed],
            "username=nobody": [],
            f"user_id={bob.id}": [renamed, third],
            f"user_id={bob.id}&username=ada": [],
            "model=other": [second],
            "model=other&username=bob": [],
            f"from={day}T01:00:00Z": [renamed, third, second],
            f"to={day}T01:00:00Z": [first],
            f"from={day}T01:00:00Z&to={day}T03:00:00Z&model=gpt": [third],
            f"from={day}T04:00:00%2B02:00": [renamed, third],
        }

        found = {query: await self.listed(client, admin, query) for query in expected}

        assert found == {query: [str(log.id) for log in logs] for query, logs in expected.items()}

    @pytest.mark.parametrize(
        "query",
        ["limit=0", "limit=201", "user_id=x", "from=soon", "to=0001-01-01T00:00:00%2B14:00", "model=" + "x" * 201],
    )
    async def test_refuses_a_bad_query(self, client: AsyncClient, admin: Headers, query: str) -> None:
        response = await client.get(f"{URL}?{query}", headers=admin)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")

    async def test_refuses_a_cursor_of_another_filter(
        self, client: AsyncClient, admin: Headers, ada: StoredUser
    ) -> None:
        for _ in range(2):
            await make_message_log(ada)
        page = await client.get(f"{URL}?limit=1", headers=admin)

        response = await client.get(f"{page.links['next']['url']}&model=gpt", headers=admin)

        assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")

    async def test_is_for_administrators_alone(self, client: AsyncClient, service: Headers) -> None:
        user, support = await make_signed_in(), await make_signed_in(role=Role.SUPPORT, staff_level=3)
        admins = [(await make_signed_in(role=Role.SUPERUSER)).headers, (await make_api_key("admin")).headers]

        refused = [await client.get(URL, headers=headers) for headers in (user.headers, support.headers, service)]
        given = [await client.get(URL, headers=headers) for headers in admins]

        assert [response.status_code for response in refused] == [403] * 3
        assert [response.status_code for response in given] == [200] * 2

    @pytest.mark.parametrize(
        ("named", "index"),
        [
            ({}, "latest"),
            ({"username": "ada"}, "username_latest"),
            ({"user_id": ObjectId("6746d0a8f8f8f8f8f8f8f8f8")}, "user_latest"),
            ({"model": "gpt"}, "model_latest"),
        ],
        ids=["all", "username", "user", "model"],
    )
    async def test_is_read_from_an_index_page_by_page(
        self, ada: StoredUser, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any], index: str
    ) -> None:
        mine: dict[str, Any] = {"user_id": ObjectId("6746d0a8f8f8f8f8f8f8f8f8"), "username_key": "ada", "model": "gpt"}
        for number in range(200):
            others = {"user_id": ObjectId(), "username_key": f"u{number}", "model": f"m{number}"}
            fields = others if named and number % 10 else mine
            await make_message_log(ada, **fields, timestamp=DAY + timedelta(hours=number))
        asked = []

        async def find(collection: str, where: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
            asked.append({"find": collection, "filter": where, "sort": options["sort"], "limit": options["limit"]})
            return await find_batch(collection, where, **options)

        monkeypatch.setattr(crud_message_log, "find_batch", find)
        every = {"username": None, "user_id": None, "model": None, "since": DAY, "until": None} | named

        _, cursor = await crud_message_log.page(**every, limit=5, cursor=None)
        await crud_message_log.page(**every, limit=5, cursor=cursor)

        assert len(asked) == 2
        for command in asked:
            plan = await get_database().command({"explain": command, "verbosity": "executionStats"})
            winning = json_util.dumps(plan["queryPlanner"]["winningPlan"])
            assert f'"{index}"' in winning
            assert '"SORT"' not in winning
            assert plan["executionStats"]["totalDocsExamined"] <= 7


class TestPruning:
    async def test_is_a_job(self, client: AsyncClient, ada: StoredUser) -> None:
        _, young = [
            await make_message_log(ada, timestamp=datetime.now(UTC) - timedelta(days=days)) for days in (91, 89)
        ]
        key = await make_api_key("admin")

        asked = await client.post("/api/v1/admin/jobs/prune_logs/run", headers=key.headers)

        assert (asked.status_code, asked.json()["schedule"]) == (202, "every hour")
        async with asyncio.timeout(10):
            while [log.id async for log in MessageLog.find_all()] != [young.id]:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
