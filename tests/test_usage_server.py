"""Counting by several processes at once: the service as it is run, with two workers."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx
from pymongo import MongoClient

from tests.test_server import Start, bearer, sign_up, start

__all__ = ["start"]  # the fixture
AT_ONCE = 100


class TestDailyMessages:
    def test_of_which_ten_are_left_are_ten_of_a_hundred_at_once(
        self, start: Start, database_url: str, mongodb: MongoClient[dict[str, Any]]
    ) -> None:
        server = start(WORKERS="2", DATABASE_URL=database_url).ready()
        database = mongodb[database_url.rpartition("/")[2].partition("?")[0]]
        token = sign_up(server)
        database["users"].update_one({}, {"$set": {"limits": {"daily_messages": 13}}})
        chats = [server.post("/api/v1/conversations", {"title": "Tea"}, token).json()["id"] for _ in range(4)]
        paths = [f"/api/v1/conversations/{chat}/messages" for chat in chats]
        assert [server.post(path, {"content": "Before"}, token).status_code for path in paths[:3]] == [201] * 3
        all_are_connected = Barrier(AT_ONCE)

        def say(number: int) -> tuple[int, str | None]:
            with httpx.Client(base_url=str(server.client.base_url), timeout=30, headers=bearer(token)) as client:
                assert client.get("/health/live").status_code == 200
                all_are_connected.wait(30)
                # As a client does: on a busy machine some of a hundred transactions are given up, and said to be so.
                key = {"Idempotency-Key": f"message-{number}"}
                response = client.post(paths[number % 4], json={"content": "Now"}, headers=key)
                while response.status_code == 503:
                    response = client.post(paths[number % 4], json={"content": "Now"}, headers=key)
            return response.status_code, response.json().get("code")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = sorted(pool.map(say, range(AT_ONCE)))

        assert answers == [(201, None)] * 10 + [(429, "daily_limit_reached")] * 90
        assert database["messages"].count_documents({"content": "Now"}) == 10
        assert [row["messages"] for row in database["usage_counters"].find()] == [13]
        usage = server.get("/api/v1/usage/me", token).json()
        assert (usage["used"]["messages_today"], usage["remaining"]["messages_today"]) == (13, 0)
