import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId, json_util
from pymongo.asynchronous.database import AsyncDatabase

from app.core.clock import utc_now
from app.core.config import Settings, use_settings
from app.core.principal import Principal
from app.crud import crud_conversation, crud_deleted_user, crud_message, crud_purge
from app.db.mongo import connected, get_database
from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from app.models.conversation import Conversation
from app.models.deleted_user import DeletedUser
from app.models.message import Message
from app.services import audit_service, deleted_user_service, purge_service, user_service
from app.services.purge_service import Round
from tests.factories import (
    StoredUser,
    make_api_key,
    make_conversation,
    make_message_log,
    make_messages,
    make_signed_in,
    make_upload,
    make_user,
)

Database = AsyncDatabase[dict[str, Any]]
OPERATOR = Principal.system("test")
# What an estate holds: of each kind more than one batch of two.
REMOVED = {
    "sessions": 1,
    "one_time_tokens": 3,
    "api_keys": 1,
    "items": 3,
    "uploads": 3,
    "usage_counters": 3,
    "message_logs": 3,
    "credit_holds": 3,
    "conversations": 2,
    "conversation_events": 5,  # three, and that it left two conversations
    "conversation_events_unsigned": 3,
    "conversations_left": 2,
    "conversations_unsigned": 2,
    "messages": 7,
    "messages_emptied": 4,
    "api_keys_unsigned": 1,
    "deleted_users_unsigned": 1,
}


class Killed(BaseException):
    """The end of a process: nothing of it catches this."""


@pytest.fixture(autouse=True)
async def database(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Database]:
    """The database without the application, which purges by itself. A deleted account is due at once."""
    use_settings(make_settings(deleted_retention_days=0))
    async with connected(database_url) as database:
        yield database


async def make_estate(user: StoredUser, friend: StoredUser) -> None:
    """Something of every kind that a user leaves behind, beside the same of a friend."""
    for person in (user, friend):
        await make_api_key("read", owner=person)
        for _ in range(3):
            await _insert("items", owner_id=person.id, title="Milk", created_at=utc_now())
            await _insert("usage_counters", user_id=person.id, day=utc_now(), messages=1)
            await make_upload(person)
            await make_message_log(person, tokens=7)
            await _insert("credit_holds", user_id=person.id, amount=1, expires_at=utc_now() + timedelta(days=1))
            await _insert("one_time_tokens", user_id=person.id, purpose="verify")
    for _ in range(2):
        alone = await make_conversation(user)
        await make_messages(alone, 3, by=user)
    await make_messages(alone, 1)  # the assistant's
    owned, joined = await make_conversation(user, friend), await make_conversation(friend, user)
    for conversation in (owned, joined):
        await make_messages(conversation, 1, by=friend, content="From the friend")
        await make_messages(conversation, 1, by=user)
    left = await make_conversation(friend)
    await make_messages(left, 2, by=user)
    for name in ("user_id", "owner_id"):
        for _ in range(3):
            await _insert(
                "conversation_events", conversation_id=left.id, type="participant.removed", data={name: user.id}
            )
    await Conversation.find({"_id": left.id}).set({"created_by": user.id})
    await make_api_key("admin", name="service", created_by=user.id)
    await _insert("sessions", user_id=user.id, created_at=utc_now(), expires_at=utc_now() + timedelta(days=1))
    other = await delete(await make_user())
    await DeletedUser.find({"_id": other}).set({"deleted_by": user.id, "purge_at": datetime(2099, 1, 1, tzinfo=UTC)})


async def _insert(collection: str, **fields: Any) -> None:
    await get_database()[collection].insert_one(fields)


async def delete(user: StoredUser) -> ObjectId:
    await user_service.delete(user.id, current_password=None, reason=None, versions=None, by=OPERATOR)
    return user.id


async def delete_with_estate(friend: StoredUser) -> StoredUser:
    user = await make_user()
    await make_estate(user, friend)
    sessions = await get_database()["sessions"].find({"user_id": user.id}).to_list()
    await delete(user)
    await get_database()["sessions"].insert_many(sessions)  # as one whose removal was lost
    return user


async def places_of(user: StoredUser, database: Database) -> set[str]:
    """Every collection in which the user is still named, but for the audit trail."""
    marks = (str(user.id), user.document.email, user.document.username or "")
    found = set()
    for name in await database.list_collection_names():
        async for document in database[name].find():
            text = json_util.dumps(document)
            if name != "audit_events" and any(mark in text for mark in marks):
                found.add(name)
    return found


async def contents(database: Database) -> dict[str, list[dict[str, Any]]]:
    names = set(await database.list_collection_names()) - {"audit_events", "installation"}
    return {name: await database[name].find().sort("_id").to_list() for name in sorted(names)}


async def purge_events() -> list[AuditEvent]:
    return await AuditEvent.find({"action": "user:purged"}).to_list()


async def forget_claims() -> None:
    """As when the time of whoever held them is over."""
    past = utc_now() - timedelta(seconds=1)
    await DeletedUser.get_pymongo_collection().update_many({}, {"$set": {"claimed_until": past}})


class TestPurge:
    @pytest.mark.parametrize("batch", [2, 200])
    async def test_leaves_nothing_that_names_the_user_but_the_audit_trail(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, batch: int
    ) -> None:
        monkeypatch.setattr(purge_service, "_BATCH", batch)
        user = await delete_with_estate(await make_signed_in())
        before = await places_of(user, database)

        outcome = await purge_service.purge_due()

        assert before == {
            *("deleted_users", "sessions", "one_time_tokens", "api_keys", "items", "usage_counters"),
            *("conversations", "conversation_events", "messages", "message_logs", "uploads", "credit_holds"),
        }
        assert outcome == Round(purged=1, interrupted=0)
        assert await places_of(user, database) == set()
        assert await database["deleted_conversations"].count_documents({}) == 0

    async def test_touches_nothing_of_others(self, database: Database) -> None:
        friend, ben = await make_signed_in(), await make_signed_in()
        stranger = await delete_with_estate(ben)
        await DeletedUser.find({"_id": stranger.id}).set({"purge_at": datetime(2099, 1, 1, tzinfo=UTC)})
        before = await contents(database)
        user = await delete_with_estate(friend)
        known = {row["_id"] for rows in before.values() for row in rows}

        assert await purge_service.purge_due() == Round(1, 0)

        after = await contents(database)
        untouched = {name: [row for row in rows if row["_id"] in known] for name, rows in after.items()}
        assert {name: rows for name, rows in untouched.items() if rows} == {
            n: rows for n, rows in before.items() if rows
        }
        fields = {"items": "owner_id", "usage_counters": "user_id", "one_time_tokens": "user_id"}
        for name, field in {**fields, "message_logs": "user_id"}.items():
            assert await database[name].count_documents({field: friend.id}) == 3
        assert await ApiKey.find({"owner_id": friend.id}).count() == 1
        assert await Message.find({"user_id": friend.id, "content": {"$regex": "^From the friend"}}).count() == 2
        assert user.id not in known

    async def test_leaves_conversations_to_the_others_who_take_part(self) -> None:
        user, friend, ben = await make_user(), await make_user(), await make_user()
        conversation = await make_conversation(user, friend, ben)
        await make_messages(conversation, 2, by=user, content="Mine")
        await make_messages(conversation, 1, by=friend, content="Hers")
        before = await Message.find({"conversation_id": conversation.id}).sort("seq").to_list()
        await delete(user)

        await purge_service.purge_due()

        stays = await Conversation.get(conversation.id)
        messages = await Message.find({"conversation_id": conversation.id}).sort("seq").to_list()
        assert stays is not None
        assert [(entry.user_id, entry.role) for entry in stays.participants] == [
            (friend.id, "owner"),
            (ben.id, "member"),
        ]
        assert (stays.version, stays.message_count, stays.last_seq) == (conversation.version + 1, 3, 3)
        assert [(message.id, message.seq) for message in messages] == [(row.id, row.seq) for row in before]
        assert [message.content for message in messages] == ["", "", "Hers 3"]
        assert [message.user_id for message in messages] == [None, None, friend.id]
        assert [message.deleted_at is None for message in messages] == [False, False, True]

    async def test_keeps_when_a_message_was_deleted_before(self) -> None:
        user = await make_user()
        [message] = await make_messages(await make_conversation(await make_user()), by=user)
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        await Message.find({"_id": message.id}).set({"deleted_at": moment})
        await delete(user)

        await purge_service.purge_due()

        stays = await Message.get(message.id)
        assert stays is not None
        assert (stays.deleted_at, stays.user_id) == (moment, None)

    async def test_is_recorded_with_how_much_there_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(purge_service, "_BATCH", 2)
        user = await delete_with_estate(await make_signed_in())

        await purge_service.purge_due()

        (event,) = await purge_events()
        assert event.details == {"removed": REMOVED}
        assert (event.target.kind, event.target.id) == ("user", user.id)
        assert (event.actor.kind, event.actor.name) == ("system", "purge")
        assert user.document.email not in event.model_dump_json()

    async def test_records_what_became_of_conversations(self) -> None:
        user, friend = await make_user(), await make_user()
        alone, shared = await make_conversation(user), await make_conversation(user, friend)
        await delete(user)

        await purge_service.purge_due()

        events = await AuditEvent.find({"target.kind": "conversation"}).to_list()
        assert {(event.action.value, event.target.id) for event in events} == {
            ("conversation:deleted", alone.id),
            ("participant:removed", shared.id),
        }

    async def test_never_touches_the_audit_trail(self, database: Database) -> None:
        user = await delete_with_estate(await make_signed_in())
        before = await database["audit_events"].find().sort("_id").to_list()
        assert [row for row in before if row["target"]["id"] == user.id]

        await purge_service.purge_due()

        ids = [row["_id"] for row in before]
        assert await database["audit_events"].find({"_id": {"$in": ids}}).sort("_id").to_list() == before

    async def test_of_an_account_without_anything_is_a_purge_too(self) -> None:
        user_id = await delete(await make_user())

        assert await purge_service.purge_due() == Round(1, 0)

        (event,) = await purge_events()
        assert (event.target.id, event.details) == (user_id, {"removed": {}})
        assert await DeletedUser.count() == 0


class TestWhatIsDue:
    async def test_is_nothing_before_its_time(self, database: Database, make_settings: Callable[..., Settings]) -> None:
        use_settings(make_settings(deleted_retention_days=1))
        user = await delete_with_estate(await make_signed_in())
        before = await contents(database)

        assert await purge_service.purge_due() == Round(0, 0)

        assert await contents(database) == before
        assert await DeletedUser.find({"_id": user.id, "purge_started_at": None}).count() == 1

    async def test_is_everything_whose_time_has_come(self) -> None:
        for _ in range(3):
            await delete(await make_user())

        assert await purge_service.purge_due() == Round(3, 0)

        assert await DeletedUser.count() == 0

    async def test_is_nothing_that_was_restored(self, database: Database) -> None:
        user = await delete_with_estate(await make_signed_in())
        await deleted_user_service.restore(user.id, by=OPERATOR)
        before = await contents(database)

        assert await purge_service.purge_due() == Round(0, 0)

        assert await contents(database) == before

    async def test_is_found_by_its_index(self, database: Database) -> None:
        for _ in range(30):
            await delete(await make_user())
        where = {"purge_at": {"$lte": utc_now()}, "claimed_until": {"$not": {"$gt": utc_now()}}}

        plan = await database["deleted_users"].find(where).sort("purge_at").limit(1).explain()

        assert "purge_due" in json_util.dumps(plan["queryPlanner"]["winningPlan"])
        assert plan["executionStats"]["totalDocsExamined"] == 1


class TestKilling:
    """Wherever a purge ends, the next one finishes it, and the count is that of one."""

    def arm(self, monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], bool]:
        """Be killed at the call with that number of what a purge does; says whether it was."""
        calls = 0

        def armed(work: Callable[..., Any]) -> Callable[..., Any]:
            async def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == at:
                    raise Killed
                return await work(*args, **kwargs)

            return run

        for module, names in (
            (crud_purge, ("some", "remove", "forget", "empty", "remove_if_alone", "remove_note")),
            (crud_deleted_user, ("note_progress", "remove_claimed")),
            (crud_conversation, ("remove_participant",)),
            (audit_service, ("record",)),
        ):
            for name in names:
                monkeypatch.setattr(module, name, armed(getattr(module, name)))
        return lambda: calls >= at

    async def test_anywhere_leaves_what_the_next_purge_finishes(self, database: Database) -> None:
        friend = await make_signed_in()
        at, was_killed = 0, True
        while was_killed:
            at += 5 if at > 15 else 1
            user = await delete_with_estate(friend)
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(purge_service, "_BATCH", 2)
                has_reached = self.arm(monkeypatch, at)
                try:
                    await purge_service.purge_due()
                except Killed:
                    assert await places_of(user, database) >= {"deleted_users"}
                was_killed = has_reached()
            if was_killed:
                assert await purge_service.purge_due() == Round(0, 0)  # it is held by who was killed
                await forget_claims()
                assert await purge_service.purge_due() == Round(1, 0)
            assert await places_of(user, database) == set(), at
            assert await database["deleted_conversations"].count_documents({}) == 0
            (event,) = await AuditEvent.find({"action": "user:purged", "target.id": user.id}).to_list()
            assert event.details["removed"] == REMOVED, at
        assert at > 60

    async def test_that_is_a_stop_lets_the_next_one_begin_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        user = await delete_with_estate(await make_signed_in())
        reached = asyncio.Event()

        async def wait(*_: Any, **__: Any) -> int:
            reached.set()
            await asyncio.Event().wait()
            return 0

        with monkeypatch.context() as patched:
            patched.setattr(crud_purge, "empty", wait)
            task = asyncio.create_task(purge_service.purge_due())
            await asyncio.wait_for(reached.wait(), 5)
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()

        assert await purge_service.purge_due() == Round(1, 0)

        assert await places_of(user, get_database()) == set()

    async def test_of_the_removal_of_messages_survives_that_another_finishes_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = await make_user()
        conversation = await make_conversation(user)
        await make_messages(conversation, 5, by=user)
        await delete(user)

        async def die(*_: Any, **__: Any) -> int:
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(crud_purge, "remove", die)
            with pytest.raises(Killed):
                await purge_service.purge_due()
        assert await crud_conversation.deleted_ids() == [conversation.id]
        assert await crud_message.purge(conversation.id)  # as the start of a process does
        await forget_claims()

        assert await purge_service.purge_due() == Round(1, 0)

        assert await Message.count() == 0

    async def test_one_does_not_hold_up_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first, *rest = [await delete(await make_user()) for _ in range(3)]
        end = crud_deleted_user.remove_claimed

        async def refuse_first(claim: DeletedUser) -> DeletedUser | None:
            if claim.id == first:
                raise ValueError("something about this one")
            return await end(claim)

        monkeypatch.setattr(crud_deleted_user, "remove_claimed", refuse_first)

        assert await purge_service.purge_due() == Round(purged=2, interrupted=1)

        assert {event.target.id for event in await purge_events()} == set(rest)
        assert [row.id for row in await DeletedUser.find().to_list()] == [first]


class TestTwoPurgers:
    async def test_at_once_do_everything_once(self, database: Database) -> None:
        friend = await make_signed_in()
        users = [await delete_with_estate(friend) for _ in range(4)]

        rounds = await asyncio.gather(*(purge_service.purge_due() for _ in range(3)))

        assert sum(outcome.purged for outcome in rounds) == 4
        assert sum(outcome.interrupted for outcome in rounds) == 0
        events = await purge_events()
        assert sorted(str(event.target.id) for event in events) == sorted(str(user.id) for user in users)
        assert [event.details["removed"] for event in events] == [REMOVED] * 4
        for user in users:
            assert await places_of(user, database) == set()

    async def test_share_one_account_without_doing_anything_twice(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first is so slow that its time runs out, and wakes when the second is done."""
        user = await delete_with_estate(await make_signed_in())
        reached, gate = asyncio.Event(), asyncio.Event()
        some = crud_purge.some

        async def wait_once(place: crud_purge.Place, named: ObjectId, *, limit: int) -> list[ObjectId]:
            found = await some(place, named, limit=limit)
            if place.collection == "items" and not reached.is_set():
                reached.set()
                await gate.wait()
            return found

        monkeypatch.setattr(crud_purge, "some", wait_once)
        slow = asyncio.create_task(purge_service.purge_due())
        await asyncio.wait_for(reached.wait(), 5)
        await forget_claims()
        assert await purge_service.purge_due() == Round(1, 0)
        before = await contents(database)
        gate.set()

        assert await slow == Round(purged=0, interrupted=1)

        assert await contents(database) == before
        (event,) = await purge_events()
        assert event.details == {"removed": REMOVED}
        assert await places_of(user, database) == set()

    async def test_do_not_share_while_the_first_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every batch holds the claim for longer."""
        user = await make_user()
        for _ in range(3):
            await _insert("items", owner_id=user.id, created_at=utc_now())
        await delete(user)
        held: list[float] = []
        note = crud_deleted_user.note_progress

        async def look(claim: DeletedUser, removed: dict[str, int], **changes: Any) -> bool:
            is_held = await note(claim, removed, **changes)
            held.append((changes["until"] - utc_now()).total_seconds())
            return is_held

        monkeypatch.setattr(purge_service, "_BATCH", 1)
        monkeypatch.setattr(crud_deleted_user, "note_progress", look)

        await purge_service.purge_due()

        assert len(held) == 3
        assert min(held) > 50


class TestStop:
    """Where the driver swallows a cancellation."""

    @pytest.fixture
    def swallowed(self, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
        """Set while a batch waits, whose cancellation is lost."""
        reached, some = asyncio.Event(), crud_purge.some

        async def swallow(place: crud_purge.Place, named: ObjectId, *, limit: int) -> list[ObjectId]:
            if place.collection == "items" and not reached.is_set():
                reached.set()
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            return await some(place, named, limit=limit)

        monkeypatch.setattr(crud_purge, "some", swallow)
        return reached

    @pytest.mark.parametrize("is_last", [False, True])
    async def test_comes_all_the_same(self, swallowed: asyncio.Event, *, is_last: bool) -> None:
        user = await make_user()
        if not is_last:
            await _insert("items", owner_id=user.id, created_at=utc_now())
        await delete(user)
        task = asyncio.create_task(purge_service.purge_due())
        await asyncio.wait_for(swallowed.wait(), 5)
        task.cancel()

        await asyncio.wait_for(asyncio.wait([task]), 2)

        assert task.done()
        await purge_service.purge_due()
        assert await DeletedUser.count() == 0
