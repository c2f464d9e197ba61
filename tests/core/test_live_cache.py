from collections.abc import Iterator

import pytest
from bson import ObjectId

from app.core import live_cache
from app.core.live_cache import LiveCache, begin_to_hear, changes_seen, forget, go_deaf, hear, is_hearing, told_to
from tests.core.active import activate

ADA, BEN, SESSION = ObjectId(), ObjectId(), ObjectId()


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A clock that the test moves, and caches that no other test has filled. Changes are being heard of."""
    clock = Clock()
    monkeypatch.setattr("app.core.live_cache.time", clock)
    monkeypatch.setattr(live_cache, "_caches", [])
    activate(auth_cache_seconds=5)
    hear(60)
    yield clock
    go_deaf()


@pytest.fixture
def cache() -> LiveCache[str]:
    return LiveCache()


def remember(cache: LiveCache[str], key: object, *tags: ObjectId, life: float | None = None) -> None:
    cache.put(key, f"value of {key}", tags=tags, seen=changes_seen(), life=life)


class TestGet:
    def test_gives_back_what_was_put(self, cache: LiveCache[str]) -> None:
        remember(cache, "a", ADA)

        assert cache.get("a") == "value of a"
        assert cache.get("b") is None

    def test_gives_the_latest(self, cache: LiveCache[str]) -> None:
        remember(cache, "a", ADA)

        cache.put("a", "newer", tags=[ADA], seen=changes_seen())

        assert cache.get("a") == "newer"

    @pytest.mark.parametrize(("seconds", "is_there"), [(0, True), (4.9, True), (5.1, False)])
    def test_forgets_after_the_configured_life(
        self, cache: LiveCache[str], clock: Clock, seconds: float, *, is_there: bool
    ) -> None:
        remember(cache, "a", ADA)

        clock.now += seconds

        assert (cache.get("a") is not None) is is_there

    @pytest.mark.parametrize(("life", "seconds", "is_there"), [(2, 1.9, True), (2, 2.1, False), (3600, 5.1, False)])
    def test_never_outlives_what_it_is_made_of(
        self, cache: LiveCache[str], clock: Clock, life: float, seconds: float, *, is_there: bool
    ) -> None:
        remember(cache, "a", ADA, life=life)

        clock.now += seconds

        assert (cache.get("a") is not None) is is_there

    @pytest.mark.parametrize("life", [0, -1, -3600.5])
    def test_never_has_what_was_over_already(self, cache: LiveCache[str], life: float) -> None:
        remember(cache, "a", ADA, life=life)

        assert cache.get("a") is None

    def test_has_nothing_when_it_is_turned_off(self, cache: LiveCache[str]) -> None:
        activate(auth_cache_seconds=0)

        remember(cache, "a", ADA)

        assert cache.get("a") is None


class TestForget:
    def test_drops_everything_made_of_the_document(self, cache: LiveCache[str]) -> None:
        for key, tags in {"a": [SESSION, ADA], "b": [ADA], "c": [BEN]}.items():
            remember(cache, key, *tags)

        forget(ADA)

        assert [cache.get(key) for key in "abc"] == [None, None, "value of c"]

    def test_drops_it_in_every_cache(self, cache: LiveCache[str]) -> None:
        other: LiveCache[str] = LiveCache()
        remember(cache, "a", ADA)
        remember(other, "z", ADA)

        forget(ADA)

        assert (cache.get("a"), other.get("z")) == (None, None)

    def test_minds_no_document_that_it_does_not_know(self, cache: LiveCache[str]) -> None:
        remember(cache, "a", ADA)

        forget(ObjectId())

        assert cache.get("a") == "value of a"

    def test_drops_what_was_put_again_after_the_first_time(self, cache: LiveCache[str]) -> None:
        remember(cache, "a", ADA)
        forget(ADA)
        remember(cache, "a", ADA)

        forget(ADA)

        assert cache.get("a") is None


class TestPut:
    def test_is_refused_when_anything_changed_since_it_was_read(self, cache: LiveCache[str]) -> None:
        seen = changes_seen()
        forget(BEN)

        cache.put("a", "old", tags=[ADA], seen=seen)

        assert cache.get("a") is None

    def test_is_refused_when_the_feed_was_lost_since_it_was_read(self, cache: LiveCache[str]) -> None:
        seen = changes_seen()
        go_deaf()
        hear(60)

        cache.put("a", "old", tags=[ADA], seen=seen)

        assert cache.get("a") is None

    def test_never_makes_it_larger_than_its_bound(self, cache: LiveCache[str]) -> None:
        for number in range(20_050):
            remember(cache, number, ObjectId())

        assert len(cache._entries) <= 20_000
        assert sum(map(len, cache._keys_of_tag.values())) <= 20_000
        assert cache.get(20_049) == "value of 20049"

    def test_never_makes_it_larger_by_coming_and_going(self, cache: LiveCache[str]) -> None:
        for number in range(30_000):
            session = ObjectId()
            remember(cache, number, session, ADA)
            forget(session)

        kept = sum(map(len, cache._keys_of_tag.values()))
        assert kept <= 20_000


class TestDeafness:
    def test_believes_nothing(self, cache: LiveCache[str]) -> None:
        remember(cache, "a", ADA)

        go_deaf()

        assert cache.get("a") is None

    def test_believes_nothing_until_it_hears(self, cache: LiveCache[str]) -> None:
        go_deaf()

        remember(cache, "a", ADA)

        assert cache.get("a") is None

    def test_leaves_nothing_behind_that_was_learned_in_it(self, cache: LiveCache[str]) -> None:
        go_deaf()
        remember(cache, "a", ADA)

        hear(60)

        assert cache.get("a") is None

    def test_begins_when_the_next_word_is_late(self, cache: LiveCache[str], clock: Clock) -> None:
        hear(1)
        remember(cache, "a", ADA)
        assert cache.get("a") is not None

        clock.now += 1.1

        assert cache.get("a") is None

    def test_ends_without_what_was_known_before(self, cache: LiveCache[str]) -> None:
        remember(cache, "a", ADA)
        go_deaf()

        hear(60)

        assert cache.get("a") is None
        remember(cache, "a", ADA)
        assert cache.get("a") == "value of a"


class TestListener:
    def test_is_told_what_is_forgotten_for_as_long_as_it_listens(self) -> None:
        told: list[ObjectId | None] = []
        with told_to(told.append):
            forget(ADA, BEN)
        forget(SESSION)

        assert told == [ADA, BEN]

    def test_is_told_when_anything_may_have_changed(self) -> None:
        told: list[ObjectId | None] = []
        with told_to(told.append):
            go_deaf()
            begin_to_hear()

        assert told == [None, None]

    def test_knows_whether_changes_are_heard_of(self, clock: Clock) -> None:
        hear(60)
        assert is_hearing()
        clock.now += 61
        assert not is_hearing()
        hear(60)
        go_deaf()
        assert not is_hearing()
