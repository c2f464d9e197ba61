"""One request sent by many at once to the service as it is run, with two workers."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx
from pymongo import MongoClient

from tests.test_server import Start, bearer, sign_up, start

__all__ = ["start"]  # the fixture
AT_ONCE = 16
ROUNDS = 5


class TestIdempotencyKey:
    def test_stores_one_message_of_many_at_the_same_instant(
        self, start: Start, database_url: str, mongodb: MongoClient[dict[str, Any]]
    ) -> None:
        server = start(WORKERS="2", DATABASE_URL=database_url).ready()
        database = mongodb[database_url.rpartition("/")[2].partition("?")[0]]
        token = sign_up(server)
        chat = server.post("/api/v1/conversations", {"title": "Tea"}, token).json()["id"]
        path = f"/api/v1/conversations/{chat}/messages"
        all_are_ready = Barrier(AT_ONCE)

        def say(_: int) -> list[httpx.Response]:
            with httpx.Client(base_url=str(server.client.base_url), timeout=30, headers=bearer(token)) as client:
                answers = []
                for turn in range(ROUNDS):
                    all_are_ready.wait(30)
                    headers = {"Idempotency-Key": f"turn-{turn}"}
                    answers.append(client.post(path, json={"content": f"Tea {turn}?"}, headers=headers))
            return answers

        with ThreadPoolExecutor(AT_ONCE) as pool:
            turns = list(zip(*pool.map(say, range(AT_ONCE)), strict=True))

        for turn in turns:
            codes = {(answer.status_code, answer.json().get("code")) for answer in turn}
            assert (201, None) in codes
            assert codes <= {(201, None), (409, "idempotency_in_progress")}
            assert len({answer.json()["id"] for answer in turn if answer.status_code == 201}) == 1
        assert database["messages"].count_documents({}) == ROUNDS
        assert [row["message_count"] for row in database["conversations"].find()] == [ROUNDS]
