"""Events of a conversation on the wire: Server-Sent Events, as the HTML standard has them.

The id of an event is `<version>-<seq>`: the version of the conversation that it made, and the last message by then.
"""

import random
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson
from bson import ObjectId

from app.schemas.message import messages_of

HEARTBEAT: Final = b": heartbeat\n\n"
_ID: Final = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")
_OPTIONS: Final = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_SUBCLASS
# Clients that lose their connection at the same moment do not all come back at the same moment.
_EARLIEST_RETRY_MS, _LATEST_RETRY_MS = 1000, 3000


def parse_event_id(text: str) -> tuple[int, int] | None:
    """Version and seq; none when it is not of ours."""
    found = _ID.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


def opening(conversation_id: ObjectId, *, version: int, seq: int) -> bytes:
    """The first of every stream. Its id is where the client stands, so that it can resume before anything happens."""
    retry = random.randint(_EARLIEST_RETRY_MS, _LATEST_RETRY_MS)  # noqa: S311 - not a secret
    ready = numbered(event_frame("ready", {"conversation_id": conversation_id}), version=version, seq=seq)
    return b"retry: %d\n%b" % (retry, ready)


def reload_frame(conversation_id: ObjectId) -> bytes:
    """Something happened that is no longer known."""
    return event_frame("reload", {"conversation_id": conversation_id})


def event_frame(event_type: str, data: Mapping[str, Any]) -> bytes:
    """One event without an id: JSON has no line breaks, so its data is one line."""
    return b"event: %b\ndata: %b\n\n" % (event_type.encode(), orjson.dumps(data, str, _OPTIONS))


def numbered(frame: bytes, *, version: int, seq: int) -> bytes:
    return b"id: %d-%d\n%b" % (version, seq, frame)


def message_data(message: Mapping[str, Any], usernames: Mapping[ObjectId, str | None]) -> dict[str, Any]:
    return messages_of([message], usernames)[0]


def other_data(
    conversation_id: ObjectId, content: Mapping[str, Any], usernames: Mapping[ObjectId, str | None]
) -> dict[str, Any]:
    """What an event names; of a user also its name."""
    data = {"conversation_id": conversation_id, **content}
    if (user_id := data.pop("user_id", None)) is not None:
        data["user"] = {"id": user_id, "username": usernames.get(ObjectId(user_id))}
    return data
