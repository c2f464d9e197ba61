"""Lists of what is rare, such as the archived conversations or what the system has said: they read little else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bson import ObjectId
from httpx import AsyncClient

from app.core.clock import utc_now
from app.models.conversation import Conversation
from app.models.message import Message
from tests.factories import make_api_key, make_conversation, make_signed_in

BASE = "/api/v1/conversations"
MANY = 300


@asynccontextmanager
async def documents_read(collection: str) -> AsyncIterator[list[int]]:
    """How many documents of the collection each command read meanwhile, once the block has ended."""
    database, found = Message.get_pymongo_collection().database, list[int]()
    await database.drop_collection("system.profile")
    await database.command("profile", 2)
    try:
        yield found
    finally:
        await database.command("profile", 0)
    rows = database["system.profile"].find({"ns": f"{database.name}.{collection}", "docsExamined": {"$exists": True}})
    found += [row["docsExamined"] async for row in rows]
    await database.drop_collection("system.profile")


async def test_archived_conversations_are_found_among_many(client: AsyncClient) -> None:
    ada, service = await make_signed_in(), await make_api_key("read")
    old = await make_conversation(ada, title="Old", archived=True, last_activity_at=utc_now().replace(year=2020))
    template = (await make_conversation(ada)).model_dump(exclude={"id"})
    conversations = Conversation.get_pymongo_collection()
    await conversations.insert_many([{**template, "_id": ObjectId()} for _ in range(MANY)])

    for headers in (ada.headers, service.headers):
        async with documents_read("conversations") as read:
            response = await client.get(BASE, params={"archived": "true"}, headers=headers)

        assert [row["id"] for row in response.json()] == [str(old.id)]
        assert 1 <= max(read) <= 2


async def test_messages_of_a_role_are_found_among_many(client: AsyncClient) -> None:
    ada = await make_signed_in()
    tea = await make_conversation(ada, last_seq=MANY + 2, message_count=MANY + 2)
    template: dict[str, Any] = {"conversation_id": tea.id, "user_id": None, "model": None, "tokens": None, "block": 0}
    template |= {"attachment_ids": [], "edited_at": None, "deleted_at": None, "created_at": utc_now(), "content": "Tea"}
    roles = ["system", *["user"] * MANY, "system"]
    await Message.get_pymongo_collection().insert_many(
        [{**template, "seq": seq, "version": seq + 1, "role": role} for seq, role in enumerate(roles, start=1)]
    )
    url = f"{BASE}/{tea.id}/messages"

    for order, places in (("asc", [1, MANY + 2]), ("desc", [MANY + 2, 1])):
        async with documents_read("conversations") as read:  # of which the messages are looked up
            response = await client.get(url, params={"role": "system", "order": order}, headers=ada.headers)

        assert [row["seq"] for row in response.json()] == places
        assert 2 <= max(read) <= 4
