import asyncio
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient

from tests.factories import make_conversation, make_signed_in
from tests.streams import opened

BASE = "/api/v1/conversations"


class TestStream:
    async def test_tells_of_a_message(self, client: AsyncClient) -> None:
        ada, ben = await make_signed_in(username="ada"), await make_signed_in()
        tea = await make_conversation(ada, ben)
        async with opened(client, tea.id, ben.headers) as stream:
            ready = await stream.next()
            said = await client.post(f"{BASE}/{tea.id}/messages", headers=ada.headers, json={"content": "Hello\nyou"})
            created = await stream.next()

        assert ready == ("1-0", "ready", {"conversation_id": str(tea.id)})
        assert created == ("2-1", "message.created", said.json())
        assert created.data["user"]["username"] == "ada"
        assert stream.status == 200
        print(stream.headers)
