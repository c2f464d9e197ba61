"""Writing while processes die: the service as it is run, killed in the middle of it."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import httpx
from pymongo import MongoClient

from tests.test_server import ADA, Server, Start, bearer, processes_of, sign_up, start, until

__all__ = ["start"]  # the fixture
WRITERS = 6
BOB = ADA | {"email": "bob@example.com"}


class Chat(NamedTuple):
    """A conversation of Ada and Bob, and what each shows to write there."""

    path: str
    tokens: tuple[str, str]


def open_chat(server: Server) -> Chat:
    ada, bob_id = sign_up(server), server.post("/api/v1/users", BOB).json()["id"]
    bob = server.post("/api/v1/auth/login", BOB).json()["access_token"]
    body = {"title": "Tea", "participant_ids": [bob_id]}
    return Chat(f"/api/v1/conversations/{server.post('/api/v1/conversations', body, ada).json()['id']}", (ada, bob))


class Crowd:
    """Writers that post, batch and mark as read until nothing answers, and what they were told is stored."""

    def __init__(self, server: Server, chat: Chat) -> None:
        self.url = str(server.client.base_url)
        self.chat = chat
        self.acknowledged: list[dict[str, Any]] = []
        self.is_busy = Event()

    def write(self, writer: int) -> None:
        with httpx.Client(base_url=self.url, timeout=30, headers=bearer(self.chat.tokens[writer % 2])) as client:
            for number in count():
                batch = {"messages": [{"content": f"{writer}-{number}-{part}"} for part in range(3)]}
                single = {"content": f"{writer}-{number}"}
                try:
                    response = (
                        client.post(f"{self.chat.path}/messages/batch", json=batch)
                        if number % 2
                        else client.post(f"{self.chat.path}/messages", json=single)
                    )
                    if response.status_code == 503:
                        return
                    assert response.status_code == 201, response.text
                    rows = response.json() if number % 2 else [response.json()]
                    self.acknowledged += rows
                    client.post(f"{self.chat.path}/read", json={"message_id": rows[-1]["id"]})
                except httpx.TransportError:
                    return
                if len(self.acknowledged) > 80:
                    self.is_busy.set()


def all_messages(server: Server, chat: Chat) -> list[dict[str, Any]]:
    rows, url = [], f"{chat.path}/messages?limit=200"
    while url:
        response = server.get(url, chat.tokens[0])
        rows += response.json()
        url = response.links.get("next", {}).get("url", "")
    return rows


def write_until(server: Server, chat: Chat, kill: Callable[[], None]) -> list[dict[str, Any]]:
    """What was acknowledged before everything ended."""
    crowd = Crowd(server, chat)
    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [pool.submit(crowd.write, writer) for writer in range(WRITERS)]
        assert crowd.is_busy.wait(60)
        kill()
    for writer in writing:
        writer.result()
    return crowd.acknowledged


def check(server: Server, chat: Chat, acknowledged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """That the counters are the true ones, and that nothing that was acknowledged is lost or changed."""
    there = all_messages(server, chat)
    shown = [server.get(chat.path, token).json() for token in chat.tokens]
    assert [row["seq"] for row in there] == list(range(1, len(there) + 1))
    assert [conversation["message_count"] for conversation in shown] == [len(there)] * 2
    stored = {row["id"]: row for row in there}
    assert [row for row in acknowledged if stored.get(row["id"]) != row] == []
    for conversation, mine in zip(shown, conversation_members(shown[0]), strict=True):
        unread = [row for row in there[mine["last_read_seq"] :] if row["user"]["id"] != mine["id"]]
        assert conversation["unread_count"] == len(unread)
    batches: dict[str, list[int]] = {}
    for row in there:
        if row["content"].count("-") == 2:
            batches.setdefault(row["content"].rpartition("-")[0], []).append(row["seq"])
    assert [seqs for seqs in batches.values() if seqs != list(range(seqs[0], seqs[0] + 3))] == []
    return there


def conversation_members(shown: dict[str, Any]) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = shown["participants"]
    return members


class TestKill:
    def test_in_the_middle_of_writes_leaves_counters_and_messages_in_step(
        self, start: Start, database_url: str, mongodb: MongoClient[dict[str, Any]]
    ) -> None:
        database = mongodb[database_url.rpartition("/")[2].partition("?")[0]]
        server = start("--workers", "2", DATABASE_URL=database_url).ready()
        chat = open_chat(server)

        acknowledged = write_until(server, chat, server.kill)

        again = start("--workers", "2", DATABASE_URL=database_url).ready()
        there = check(again, chat, acknowledged)
        [conversation] = database["conversations"].find()
        versions = [row["version"] for kind in ("messages", "conversation_events") for row in database[kind].find()]
        assert sorted(versions) == list(range(2, conversation["version"] + 1))
        assert conversation["last_seq"] == len(there)
        assert sum(row["messages"] for row in database["usage_counters"].find()) == len(there)
        for token in chat.tokens:  # whatever the dead have left locked is soon free again
            until(partial(self.can_write, again, chat, token))

    def test_of_the_database_too_leaves_counters_and_messages_in_step(self, start: Start, short_folder: Path) -> None:
        server = start("--workers", "2").ready()
        chat = open_chat(server)

        def kill() -> None:
            for pid in processes_of(short_folder):
                os.kill(pid, signal.SIGKILL)
            server.kill()

        acknowledged = write_until(server, chat, kill)

        again = start("--workers", "2").ready()
        there = check(again, chat, acknowledged)
        until(partial(self.can_write, again, chat, chat.tokens[0]))
        assert all_messages(again, chat)[-1]["seq"] == len(there) + 1

    def can_write(self, server: Server, chat: Chat, token: str) -> bool:
        return server.post(f"{chat.path}/messages", {"content": "On"}, token).status_code == 201
