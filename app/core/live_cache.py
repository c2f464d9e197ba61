"""A small memory of what was looked up, believed only while changes elsewhere are being heard of.

An entry lives `AUTH_CACHE_SECONDS` at most and is dropped at once when something it was made of changes: in this
process by `forget`, elsewhere by the change feed, which calls the same. While that feed is silent nothing is believed,
and nothing that was read before it spoke.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, NamedTuple, TypeVar

from bson import ObjectId

from app.core.config import get_settings

V = TypeVar("V")
MAX_ENTRIES: Final = 20_000


class _Entry(NamedTuple, Generic[V]):
    value: V
    tags: tuple[ObjectId, ...]
    expires_at: float


class _State:
    heard_until = 0.0  # on the monotonic clock
    changes = 0


_caches: "list[LiveCache[Any]]" = []
_listeners: list[Callable[[ObjectId | None], None]] = []


class LiveCache(Generic[V]):
    """Values under a key, each made of documents whose ids are its tags."""

    def __init__(self) -> None:
        self._entries: dict[object, _Entry[V]] = {}
        self._keys_of_tag: dict[ObjectId, set[object]] = {}
        _caches.append(self)

    def get(self, key: object) -> V | None:
        entry = self._entries.get(key)
        if entry is None or min(entry.expires_at, _State.heard_until) < time.monotonic():
            return None
        return entry.value

    def put(self, key: object, value: V, *, tags: Iterable[ObjectId], seen: int, life: float | None = None) -> None:
        """Remember a value for at most `life` seconds. `seen` is what `changes_seen` said before it was read.

        When anything has changed since then, the value may be old already and is not kept.
        """
        longest, now = get_settings().auth_cache_seconds, time.monotonic()
        seconds = longest if life is None else min(life, longest)
        if seconds <= 0 or seen != _State.changes or _State.heard_until < now:
            return
        if len(self._entries) >= MAX_ENTRIES:
            self.clear()
        self._remove(key)
        self._entries[key] = entry = _Entry(value, tuple(tags), now + seconds)
        for tag in entry.tags:
            self._keys_of_tag.setdefault(tag, set()).add(key)

    def drop(self, tag: ObjectId) -> None:
        for key in list(self._keys_of_tag.get(tag, ())):
            self._remove(key)

    def clear(self) -> None:
        self._entries.clear()
        self._keys_of_tag.clear()

    def _remove(self, key: object) -> None:
        entry = self._entries.pop(key, None)
        for tag in entry.tags if entry else ():
            keys = self._keys_of_tag[tag]
            keys.discard(key)
            if not keys:
                del self._keys_of_tag[tag]


def changes_seen() -> int:
    return _State.changes


def forget(*tags: ObjectId) -> None:
    """Drop everything made of these documents. Called once a change of theirs is committed."""
    _State.changes += 1
    for tag in tags:
        for cache in _caches:
            cache.drop(tag)
        for listener in _listeners:
            listener(tag)


@contextmanager
def told_to(listener: Callable[[ObjectId | None], None]) -> Iterator[None]:
    """Meanwhile the listener is told of every document that is to be forgotten; of none: any may have changed."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def is_hearing() -> bool:
    """Whether changes elsewhere are heard of as they happen."""
    return _State.heard_until >= time.monotonic()


def begin_to_hear() -> None:
    """From now on changes are heard of. What was read before may have changed unheard."""
    _start_afresh()


def hear(seconds: float) -> None:
    """Every change up to now has been heard of, and the next word comes within this many seconds."""
    _State.heard_until = time.monotonic() + seconds


def go_deaf() -> None:
    """Changes are no longer heard of: believe nothing."""
    _State.heard_until = 0.0
    _start_afresh()


def _start_afresh() -> None:
    _State.changes += 1
    for cache in _caches:
        cache.clear()
    for listener in _listeners:
        listener(None)
