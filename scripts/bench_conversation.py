"""What a page deep in a long conversation costs against its first page, and how long a search in it takes.

    python3 scripts/bench_conversation.py [--messages 1000000]

Starts a database and a server of its own and fills one conversation. The pages are asked for in turns; a deep page
should cost what the first one costs. A search should be answered within 200 ms, whether its words are in every message
or in none.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import environment

SEARCH_WITHIN: Final = 0.2  # seconds
DEARER: Final = 1.3  # the deep page against the first one
AT_ONCE: Final = 5000
WORDS: Final = 20_000
WORDS_OF_A_MESSAGE: Final = 14
TURNS: Final = 200


class Filled(NamedTuple):
    """A conversation, and what to ask of it."""

    url: str
    key: str
    path: str
    deep: dict[str, str]  # the cursor of each deep page, by where it is
    searches: dict[str, str]


def main() -> None:
    environment.enter("requirements-dev.txt")
    options = _options()
    from bench_login import start_server  # noqa: PLC0415 - importable only inside the environment

    with (
        tempfile.TemporaryDirectory(prefix="octopus-bench-") as name,
        _filled(Path(name), options.messages) as filled,
        start_server(Path(name), filled.url) as (port, _),
    ):
        ask = _Client(port, filled.key)
        pages = {"first page": f"{filled.path}?limit=50"}
        pages |= {where: f"{filled.path}?limit=50&cursor={cursor}" for where, cursor in filled.deep.items()}
        costs = _in_turns(ask, pages)
        searches = {what: f"{filled.path}?limit=50&q={quote(words)}" for what, words in filled.searches.items()}
        waits = _in_turns(ask, searches)
    for what, seconds in costs.items():
        print(f"{what:34} {seconds * 1000:7.2f} ms   {seconds / costs['first page']:5.2f} of the first")
    for what, seconds in waits.items():
        print(f"search, {what:26} {seconds * 1000:7.2f} ms")
    if max(waits.values()) > SEARCH_WITHIN or max(costs.values()) > DEARER * costs["first page"]:
        sys.exit("That is too much.")


class _Client:
    def __init__(self, port: int, key: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"Octopus-API-Key": key}

    def seconds(self, path: str) -> float:
        started = time.perf_counter()
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != HTTPStatus.OK:
            sys.exit(f"{answer.status} is not the answer to {path}.")
        return time.perf_counter() - started


def _in_turns(client: _Client, paths: dict[str, str]) -> dict[str, float]:
    """The median of each, asked for one after the other, so that all meet the same weather."""
    taken: dict[str, list[float]] = {what: [] for what in paths}
    for _ in range(TURNS):
        for what, path in paths.items():
            taken[what].append(client.seconds(path))
    return {what: statistics.median(seconds) for what, seconds in taken.items()}


@contextmanager
def _filled(folder: Path, count: int) -> Iterator[Filled]:
    import service  # noqa: F401, PLC0415 - makes `app` importable
    from bench_login import SECRET  # noqa: PLC0415

    from app.core.config import Settings, use_settings  # noqa: PLC0415
    from app.core.logging_config import configure_logging  # noqa: PLC0415
    from app.db.embedded import embedded_server  # noqa: PLC0415

    configure_logging("WARNING")
    use_settings(Settings(_env_file=None, environment="test", secret_key=SECRET))
    with embedded_server(folder) as url:
        yield asyncio.run(_fill(url, count))


async def _fill(url: str, count: int) -> Filled:
    from app.crud.base import ASCENDING, Listing  # noqa: PLC0415
    from app.db.mongo import connected  # noqa: PLC0415
    from app.models.conversation import Conversation  # noqa: PLC0415
    from app.models.enums import MessageRole  # noqa: PLC0415
    from app.models.message import BLOCK, Message  # noqa: PLC0415
    from tests.factories import make_api_key  # noqa: PLC0415

    chance = random.Random(7)  # noqa: S311 - the same words each time
    words = _vocabulary(chance)
    weights = list(accumulate(1 / (rank + 1) for rank in range(len(words))))  # as words of a language are (Zipf)
    async with connected(url):
        conversation = Conversation(title="Long", last_seq=count, message_count=count, version=count)
        await conversation.insert()
        started = time.perf_counter()
        for first in range(1, count + 1, AT_ONCE):
            texts = (" ".join(chance.choices(words, cum_weights=weights, k=WORDS_OF_A_MESSAGE)) for _ in range(AT_ONCE))
            rows = [
                Message(
                    conversation_id=conversation.id,
                    seq=seq,
                    version=seq,
                    block=seq // BLOCK,
                    user_id=None,
                    role=MessageRole.USER,
                    content=text,
                )
                for seq, text in zip(range(first, count + 1), texts, strict=False)
            ]
            await Message.insert_many(rows)
        print(f"{count:,} messages after {time.perf_counter() - started:.0f} s")
        listing = Listing("messages", {"conversation_id": conversation.id}, ["seq"], ASCENDING)
        deep = {f"page behind message {at:,}": listing.cursor_at([at]) for at in (count // 2, count - 100)}
        key = (await make_api_key("read")).text
    searches = {
        "the most common word": words[0],
        "a word of some messages": words[300],
        "the rarest word": words[-1],
        "a word that is nowhere": "zzzzzzzzzz",
        "a common and a rare one": f"{words[0]} {words[-1]}",
        "two rare ones": f"{words[-1]} {words[-2]}",
    }
    return Filled(url, key, f"/api/v1/conversations/{conversation.id}/messages", deep, searches)


def _vocabulary(chance: random.Random) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxy"
    return ["".join(chance.choices(letters, k=chance.randint(3, 9))) for _ in range(WORDS)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000, help="length of the conversation")
    return parser.parse_args()


if __name__ == "__main__":
    main()
