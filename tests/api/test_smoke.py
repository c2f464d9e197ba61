from httpx import AsyncClient

from tests.factories import make_conversation, make_messages, make_signed_in


async def test_conversation_is_shown_with_its_messages(client: AsyncClient) -> None:
    ada = await make_signed_in()
    conversation = await make_conversation(ada)
    await make_messages(conversation, 3, by=ada)

    response = await client.get(f"/api/v1/conversations/{conversation.id}", headers=ada.headers)

    assert response.status_code == 200
    assert [message["seq"] for message in response.json()["messages"]] == [1, 2, 3]
