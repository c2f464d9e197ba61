"""Search over messages and conversations."""

from collections.abc import Sequence
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.models.conversation import Conversation
from app.models.message import Message
from app.services import search_service
from tests.commands import Commands
from tests.conftest import Serve
from tests.factories import SignedInUser, make_api_key, make_conversation, make_messages, make_signed_in

CONVERSATIONS = "/api/v1/conversations"


async def say(conversation: Conversation, *contents: str, by: SignedInUser | None = None) -> None:
    for content in contents:
        (message,) = await make_messages(conversation, by=by)
        await Message.get_pymongo_collection().update_one({"_id": message.id}, {"$set": {"content": content}})


async def spread(conversation: Conversation, contents: dict[int, str]) -> None:
    """Messages far from each other: by their `seq`."""
    template: dict[str, Any] = {
        "conversation_id": conversation.id,
        "user_id": None,
        "role": "user",
        "model": None,
        "tokens": None,
    }
    template |= {"attachment_ids": [], "edited_at": None, "deleted_at": None, "created_at": conversation.created_at}
    await Message.get_pymongo_collection().insert_many(
        [
            {**template, "_id": ObjectId(), "seq": seq, "version": seq, "block": seq // 4096, "content": content}
            for seq, content in contents.items()
        ]
    )
    conversation.last_seq = conversation.message_count = max(contents)
    await conversation.save()


async def search(client: AsyncClient, who: SignedInUser, conversation: Conversation, q: str, **more: Any) -> Response:
    url = f"{CONVERSATIONS}/{conversation.id}/messages"
    return await client.get(url, params={"q": q, **more}, headers=who.headers)


async def pages(client: AsyncClient, who: SignedInUser, url: str, **query: Any) -> list[list[dict[str, Any]]]:
    """Every page, by the links from one to the next."""
    found = []
    response = await client.get(url, params=query, headers=who.headers)
    while True:
        assert response.status_code == 200
        found.append(response.json())
        if "next" not in response.links:
            return found
        response = await client.get(response.links["next"]["url"], headers=who.headers)


def titles(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["title"] for row in rows]


class TestMessages:
    @pytest.mark.parametrize(
        ("q", "found"),
        [
            ("tea", ["Green TEA, please", "Tea or coffee?"]),
            ("coffee tea", ["Tea or coffee?"]),
            ("tea coffee please", []),
            ("te", []),
            ("cafe", ["Au café"]),
            ("CAFÉ", ["Au café"]),
            ("-tea", ["Green TEA, please", "Tea or coffee?"]),
            ('"tea" coffee"', ["Tea or coffee?"]),
            ("the", ["The end"]),
            ("日本語", ["日本語 です"]),
        ],
    )
    async def test_are_found_by_all_their_words(self, client: AsyncClient, q: str, found: list[str]) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await say(conversation, "Green TEA, please", "Team", "Tea or coffee?", "Au café", "The end", "日本語 です")

        response = await search(client, ada, conversation, q)

        assert [row["content"] for row in response.json()] == found

    async def test_are_shown_as_they_are_listed(self, client: AsyncClient) -> None:
        ada = await make_signed_in(username="ada")
        conversation = await make_conversation(ada)
        await say(conversation, "Tea?", by=ada)

        response = await search(client, ada, conversation, "tea")

        listed = await client.get(f"{CONVERSATIONS}/{conversation.id}/messages", headers=ada.headers)
        assert response.json() == listed.json()
        assert response.json()[0]["user"] == {"id": str(ada.id), "username": "ada"}

    async def test_of_other_conversations_are_not_found(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        mine, other, his = await make_conversation(ada), await make_conversation(ada), await make_conversation(ben)
        for conversation in (other, his):
            await say(conversation, "Tea?")
        await say(mine, "Coffee?")

        assert (await search(client, ada, mine, "tea")).json() == []
        assert (await search(client, ada, his, "tea")).status_code == 404
        assert (await search(client, ada, Conversation(), "tea")).status_code == 404

    @pytest.mark.parametrize("q", ["", "  ", '"', "-", "a\x00b", "x" * 321])
    async def test_are_searched_for_by_a_word_at_least(self, client: AsyncClient, q: str) -> None:
        ada = await make_signed_in()

        response = await search(client, ada, await make_conversation(ada), q)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")

    async def test_are_searched_for_by_no_more_words_than_can_be_looked_up(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        words = [chr(0x4E00 + number) for number in range(33)]
        await say(conversation, " ".join(words))

        most = await search(client, ada, conversation, " ".join(words[:32]))
        more = await search(client, ada, conversation, " ".join(words))

        assert (most.status_code, len(most.json())) == (200, 1)
        assert (more.status_code, more.json()["code"]) == (422, "validation_error")

    @pytest.mark.parametrize(("order", "places"), [("asc", [7, 5000, 9000, 90000]), ("desc", [90000, 9000, 5000, 7])])
    async def test_come_page_by_page_in_the_order_of_the_conversation(
        self, client: AsyncClient, order: str, places: list[int]
    ) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await spread(conversation, {7: "tea", 8: "coffee", 5000: "tea", 9000: "tea", 90000: "tea", 90001: "milk"})
        url = f"{CONVERSATIONS}/{conversation.id}/messages"

        for limit in (1, 2, 3, 4):
            found = await pages(client, ada, url, q="tea", order=order, limit=limit)

            assert [row["seq"] for page in found for row in page] == places
            assert len(found) == -(-4 // limit)

    async def test_may_be_of_one_role_and_behind_a_message(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await say(conversation, "Tea 1", "Tea 2", "Tea 3")
        first, second, _ = await Message.find().sort("seq").to_list()
        await Message.get_pymongo_collection().update_one({"_id": second.id}, {"$set": {"role": "assistant"}})

        found = [
            [row["content"] for row in (await search(client, ada, conversation, "tea", **more)).json()]
            for more in ({"role": "user"}, {"after": str(first.id)}, {"after": str(first.id), "role": "user"})
        ]

        assert found == [["Tea 1", "Tea 3"], ["Tea 2", "Tea 3"], ["Tea 3"]]

    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_are_all_found_when_every_page_ran_out_of_time(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, order: str
    ) -> None:
        monkeypatch.setattr(search_service, "_SEARCH_SECONDS", -1)
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        places = [1, 4095, 4096, 4097, 123_456, 400_000]
        await spread(conversation, dict.fromkeys(places, "tea") | {500_000: "coffee"})
        url = f"{CONVERSATIONS}/{conversation.id}/messages"

        found = await pages(client, ada, url, q="tea", order=order, limit=3)

        assert [row["seq"] for page in found for row in page] == (places if order == "asc" else places[::-1])
        assert [] in found  # some had nothing but a next one

    async def test_are_no_cursor_of_another_search(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        conversation = await make_conversation(ada)
        await say(conversation, "Tea 1", "Tea 2")
        url = (await search(client, ada, conversation, "tea", limit=1)).links["next"]["url"]

        response = await client.get(url.replace("q=tea", "q=coffee"), headers=ada.headers)

        assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")

    async def test_cost_as_many_looks_as_they_are_rare(
        self, serve: Serve, commands: Commands, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search_service, "_SEARCH_SECONDS", 60)
        monkeypatch.setattr(search_service, "_WAVE_SECONDS", 60)
        async with serve() as client:
            ada = await make_signed_in()
            conversation = await make_conversation(ada)
            await spread(conversation, {1: "rare", 999_998: "common", 999_999: "common"})
            asked = {}
            for q in ("common", "rare"):
                commands.taken()
                response = await search(client, ada, conversation, q, order="desc", limit=1)
                assert len(response.json()) == 1
                asked[q] = [command.name for command in commands.taken()].count("aggregate")

        # A million messages are 245 blocks: 4, 16 and then 64 of them at once.
        assert asked == {"common": 1, "rare": 6}

    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_are_looked_for_in_fewer_blocks_when_that_is_slow(
        self, serve: Serve, commands: Commands, monkeypatch: pytest.MonkeyPatch, order: str
    ) -> None:
        monkeypatch.setattr(search_service, "_SEARCH_SECONDS", 60)
        monkeypatch.setattr(search_service, "_WAVE_SECONDS", 0.001)
        async with serve() as client:
            ada = await make_signed_in()
            conversation = await make_conversation(ada)
            # In each block many have one of the words, and only two have both.
            places = [20_000, 100_000]
            contents = {block * 4096 + at: "tea" if at % 2 else "milk" for block in range(30) for at in range(1, 100)}
            await spread(conversation, contents | dict.fromkeys(places, "milk tea"))
            commands.taken()

            response = await search(client, ada, conversation, "tea milk", order=order, limit=2)

            sizes = [len(sent.shape["pipeline"]) for sent in commands.taken() if sent.collection == "messages"]
        assert [row["seq"] for row in response.json()] == (places if order == "asc" else places[::-1])
        assert (sizes[0], sizes[-1]) == (4 + 3, 1 + 3)  # a stage for each block, and three of the whole


class TestConversations:
    async def test_are_found_where_looking_is_slow(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(search_service, "_WAVE_SECONDS", 0.001)
        ada = await make_signed_in()
        contents = {block * 4096 + at: "tea" if at % 2 else "milk" for block in range(8) for at in range(1, 100)}
        await spread(await make_conversation(ada, title="Both"), contents | {5: "milk tea"})
        await spread(await make_conversation(ada, title="Neither"), contents)

        response = await client.get(CONVERSATIONS, params={"q": "milk tea"}, headers=ada.headers)

        assert titles(response.json()) == ["Both"]

    async def test_that_take_too_long_to_look_at_are_no_find(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search_service, "_GROUP_SECONDS", 0.0)
        ada = await make_signed_in()
        await make_conversation(ada, title="Tea")
        await say(await make_conversation(ada, title="Long"), "tea")

        response = await client.get(CONVERSATIONS, params={"q": "tea"}, headers=ada.headers)

        assert (response.status_code, titles(response.json())) == (200, ["Tea"])

    async def test_are_found_by_title_or_by_message(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await make_conversation(ada, title="Green tea")
        await say(await make_conversation(ada, title="By message"), "Coffee?", "Tea is green")
        await say(await make_conversation(ada, title="In two messages"), "Green", "Tea")
        await make_conversation(ada, title=None)

        response = await client.get(CONVERSATIONS, params={"q": "tea green"}, headers=ada.headers)

        assert titles(response.json()) == ["By message", "Green tea"]
        listed = (await client.get(CONVERSATIONS, headers=ada.headers)).json()
        assert [row for row in listed if row["title"] in {"By message", "Green tea"}] == response.json()

    async def test_of_others_are_not_found(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(), await make_signed_in()
        shared, his = await make_conversation(ben, ada, title="Ours"), await make_conversation(ben, title="His tea")
        for conversation in (shared, his):
            await say(conversation, "Tea")
        key = await make_api_key("read")

        seen = {
            name: sorted(titles((await client.get(url, params={"q": "tea"}, headers=headers)).json()))
            for name, url, headers in (
                ("ada", CONVERSATIONS, ada.headers),
                ("ben", CONVERSATIONS, ben.headers),
                ("service", CONVERSATIONS, key.headers),
                ("service of ada", f"{CONVERSATIONS}/user/{ada.id}", key.headers),
            )
        }

        assert seen == {
            "ada": ["Ours"],
            "ben": ["His tea", "Ours"],
            "service": ["His tea", "Ours"],
            "service of ada": ["Ours"],
        }

    async def test_may_be_archived(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        await make_conversation(ada, title="Old tea", archived=True)
        await make_conversation(ada, title="New tea")

        query = {"q": "tea", "archived": "true"}
        response = await client.get(CONVERSATIONS, params=query, headers=ada.headers)

        assert titles(response.json()) == ["Old tea"]

    @pytest.mark.parametrize("seconds", [60, -1])
    async def test_come_page_by_page_by_last_activity(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, seconds: int
    ) -> None:
        monkeypatch.setattr(search_service, "_SEARCH_SECONDS", seconds)
        ada = await make_signed_in()
        for number in range(120):
            await make_conversation(ada, title=f"Tea {number}" if number % 7 == 0 else "Coffee")
        await spread(await make_conversation(ada, title="Long"), {1: "tea", 300_000: "coffee"})
        expected = ["Long", *(f"Tea {number}" for number in range(119, -1, -1) if number % 7 == 0)]

        for limit in (1, 5, 200):
            found = await pages(client, ada, CONVERSATIONS, q="tea", limit=limit)

            assert [title for page in found for title in titles(page)] == expected
            assert all(len(page) <= limit for page in found)

    async def test_are_searched_for_by_a_word_at_least(self, client: AsyncClient) -> None:
        ada = await make_signed_in()

        response = await client.get(CONVERSATIONS, params={"q": "?"}, headers=ada.headers)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
