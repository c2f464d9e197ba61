"""The yardstick of `bench.py`: the same documents read and written with FastAPI and PyMongo, and nothing else.

No authentication, no ownership, no limits, no validation, no log. As fast as such handlers get: one orjson response,
no response model, memory frozen as the service does it.
"""

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import orjson
from bson import ObjectId
from fastapi import FastAPI, Request, Response
from pymongo import AsyncMongoClient, ReturnDocument


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncMongoClient[dict[str, Any]](os.environ["DATABASE_URL"]) as client:
        app.state.client = client
        app.state.db = client.get_default_database()
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        yield


app = FastAPI(lifespan=lifespan)


def answer(content: Any, status: int = 200) -> Response:
    body = orjson.dumps(content, str, orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)
    return Response(body, status, media_type="application/json")


@app.get("/conversations/{conversation_id}")
async def get_conversation(request: Request, conversation_id: str) -> Response:
    db, key = request.app.state.db, ObjectId(conversation_id)
    conversation = await db.conversations.find_one({"_id": key})
    messages = await db.messages.find({"conversation_id": key}).sort("seq", -1).limit(100).to_list()
    ids = [entry["user_id"] for entry in conversation["participants"]]
    users = await db.users.find({"_id": {"$in": ids}}, {"username": 1, "email": 1}).to_list()
    return answer(conversation | {"messages": messages[::-1], "users": users})


@app.get("/conversations/{conversation_id}/messages")
async def list_messages(request: Request, conversation_id: str) -> Response:
    where = {"conversation_id": ObjectId(conversation_id)}
    return answer(await request.app.state.db.messages.find(where).sort("seq", 1).limit(50).to_list())


@app.post("/conversations/{conversation_id}/messages")
async def post_message(request: Request, conversation_id: str) -> Response:
    client, db, key = request.app.state.client, request.app.state.db, ObjectId(conversation_id)
    body = orjson.loads(await request.body())
    now = datetime.now(UTC)

    async def write(session: Any) -> dict[str, Any]:
        counted = await db.conversations.find_one_and_update(
            {"_id": key},
            {"$inc": {"last_seq": 1, "message_count": 1}, "$set": {"last_activity_at": now}},
            projection={"last_seq": 1},
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        message = {"conversation_id": key, "seq": counted["last_seq"], "created_at": now, **body}
        await db.messages.insert_one(message, session=session)
        return message

    async with client.start_session() as session:
        return answer(await session.with_transaction(write), 201)
