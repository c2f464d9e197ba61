"""A small memory of what was looked up, believed only while changes elsewhere are being heard of.

An entry lives `AUTH_CACHE_SECONDS` at most and is dropped at once when something it was made of changes: in this
process by `forget`, elsewhere by the change feed, which calls the same. While that feed is silent nothing is believed.
"""

import time
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

from bson import ObjectId

from app.core.config import get_settings

V = TypeVar("V")
MAX_ENTRIES = 20_000


class _Entry(NamedTuple, Generic[V]):
    value: V
    expires_at: float


class _State:
    heard_until = 0.0  # on the monotonic clock
    changes = 0


_caches: "list[LiveCache[object]]" = []


class LiveCache(Generic[V]):
    """Values under a key, each made of documents whose ids are its tags."""

    def __init__(self) -> None:
        self._entries: dict[object, _Entry[V]] = {}
        self._keys_of_tag: dict[ObjectId, set[object]] = {}
        _caches.append(self)  # type: ignore[arg-type]

    def get(self, key: object) -> V | None:
        entry = self._entries.get(key)
        now = time.monotonic()
        if entry is None or entry.expires_at < now or _State.heard_until < now:
            return None
        return entry.value

    def put(self, key: object, value: V, *, tags: Iterable[ObjectId], seen: int, life: float | None = None) -> None:
        """Remember a value. `seen` is what `changes_seen` said before it was read.

        When anything has changed since then, the value may be old already and is not kept.
        """
        seconds = get_settings().auth_cache_seconds if life is None else min(life, get_settings().auth_cache_seconds)
        if seconds <= 0 or seen != _State.changes:
            return
        if len(self._entries) >= MAX_ENTRIES:
            self.clear()
        self._entries[key] = _Entry(value, time.monotonic() + seconds)
        for tag in tags:
            self._keys_of_tag.setdefault(tag, set()).add(key)

    def drop(self, tag: ObjectId) -> None:
        for key in self._keys_of_tag.pop(tag, ()):
            self._entries.pop(key, None)

    def clear(self) -> None:
        self._entries.clear()
        self._keys_of_tag.clear()


def changes_seen() -> int:
    return _State.changes


def forget(*tags: ObjectId) -> None:
    """Drop everything made of these documents. Called once a change of theirs is committed."""
    _State.changes += 1
    for cache in _caches:
        for tag in tags:
            cache.drop(tag)


def hear(seconds: float) -> None:
    """Every change up to now has been heard of, and the next word comes within this many seconds."""
    _State.heard_until = time.monotonic() + seconds


def go_deaf() -> None:
    """Changes are no longer heard of: believe nothing."""
    _State.heard_until = 0.0
    _State.changes += 1
    for cache in _caches:
        cache.clear()
