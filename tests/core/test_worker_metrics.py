import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.core.meters import Counter, Histogram, Level
from app.core.worker_metrics import WorkerMetrics


@dataclass
class Worker:
    """A worker with meters of its own, as if it were another process."""

    teas: Counter
    times: Histogram
    cups: Level
    shared: WorkerMetrics

    def count(self, teas: int, cups: int) -> "Worker":
        self.teas.add("green", amount=teas)
        self.times.observe(0.1)
        self.cups.set(cups)
        self.shared.publish(self.shared.counted())
        return self

    def sum(self) -> tuple[float, list[float], float]:
        numbers = self.shared.sum(self.shared.counted()).numbers
        return numbers["teas"][("green",)][0], numbers["times"][()], numbers["cups"][()][0]

    def die(self) -> None:
        """Without a last word, as one that is killed."""
        assert self.shared._lock is not None
        self.shared._lock.close()


Hire = Callable[[], Worker]


@pytest.fixture
def hire(tmp_path: Path) -> Iterator[Hire]:
    """A worker that shares its counts with the others of the test."""
    hired: list[Worker] = []

    def one() -> Worker:
        teas, times, cups = Counter("teas", "", "kind"), Histogram("times", "", bounds=(0.1, 1)), Level("cups", "")
        hired.append(Worker(teas, times, cups, WorkerMetrics((teas, times, cups), tmp_path)))
        return hired[-1]

    yield one
    for worker in hired:
        worker.die()


class TestSum:
    def test_is_the_same_whoever_is_asked(self, hire: Hire) -> None:
        ada, bob = hire().count(3, 2), hire().count(4, 5)

        assert ada.sum() == bob.sum() == (7, [2, 0, 0, 0.2], 7)
        assert len(ada.shared.sum({}).pids) == 2

    def test_keeps_what_the_dead_have_counted_and_not_what_they_had_open(self, hire: Hire, tmp_path: Path) -> None:
        ada = hire().count(3, 2)
        for _ in range(5):
            hire().count(10, 100).die()
            ada.sum()

        assert ada.sum()[0] == 53
        assert ada.sum()[2] == 2
        assert len(ada.shared.sum({}).pids) == 1
        assert len(list(tmp_path.iterdir())) == 4  # two of hers, one of all who died, the readers' lock

    def test_counts_nobody_twice_when_who_takes_in_the_dead_dies_over_it(self, hire: Hire, tmp_path: Path) -> None:
        ada, bob = hire().count(3, 2), hire().count(10, 100)
        before = {path: path.read_bytes() for path in tmp_path.iterdir() if bob.shared._name in path.name}
        bob.die()
        assert ada.sum()[0] == 13
        for path, content in before.items():  # as if they had not been removed any more
            path.write_bytes(content)

        assert ada.sum()[0] == 13
        assert ada.sum()[0] == 13
        assert not any(path.exists() for path in before)

    def test_has_the_last_word_of_who_ends_well(self, hire: Hire) -> None:
        ada, bob = hire().count(3, 2), hire().count(10, 1)
        bob.teas.add("green", amount=7)
        bob.shared.close(bob.shared.counted())

        assert ada.sum()[0] == 20

    def test_takes_the_last_words_while_those_before_them_are_written(self, hire: Hire) -> None:
        ada = hire().count(3, 2)
        counted = ada.shared.counted()

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: ada.shared.publish(counted), range(500)))

        assert ada.sum()[0] == 3

    def test_is_told_while_the_disk_is_full_and_counts_nobody_twice(self, hire: Hire, tmp_path: Path) -> None:
        ada = hire().count(3, 2)
        hire().count(10, 100).die()
        (tmp_path / "dead.new").mkdir()  # nothing can be written there

        assert [ada.sum()[0] for _ in range(3)] == [13] * 3
        (tmp_path / "dead.new").rmdir()
        assert [ada.sum()[0] for _ in range(3)] == [13] * 3
        assert len(list(tmp_path.iterdir())) == 4

    def test_is_of_who_is_asked_when_there_is_no_folder(self, hire: Hire, tmp_path: Path) -> None:
        ada = hire().count(3, 2)
        shutil.rmtree(tmp_path)

        assert ada.sum()[0] == 3

    @pytest.mark.parametrize("content", [b"", b"\0\0\0"])
    def test_begins_anew_with_what_the_end_of_the_host_has_left(
        self, hire: Hire, tmp_path: Path, content: bytes
    ) -> None:
        ada, bob = hire().count(3, 2), hire().count(10, 1)
        (tmp_path / "dead.json").write_bytes(content)
        (tmp_path / f"{bob.shared._name}.json").write_bytes(content)

        assert ada.sum()[0] == 3
        bob.count(1, 1).die()
        assert [ada.sum()[0] for _ in range(2)] == [14] * 2

    def test_leaves_out_what_another_version_has_counted_by_other_labels_or_buckets(
        self, hire: Hire, tmp_path: Path
    ) -> None:
        ada, bob = hire().count(3, 2), hire()
        before = Counter("teas", "", "kind", "size"), Histogram("times", "", bounds=(0.1, 1, 10)), bob.cups
        before[0].add("green", "small", amount=5)
        before[1].observe(0.1)
        old = WorkerMetrics(before, tmp_path)
        old.publish(old.counted())
        bob.count(10, 1)

        assert ada.sum() == (13, [2, 0, 0, 0.2], 3)
        old.close(old.counted())
        assert ada.sum() == (13, [2, 0, 0, 0.2], 3)
        assert ada.shared.sum({}).numbers["teas"].keys() == {("green",)}


class TestMeter:
    def test_has_a_bound_whatever_it_is_given(self) -> None:
        counter = Counter("teas", "", "kind")
        for number in range(6000):
            counter.add(str(number))

        assert len(counter.rows) == 5001
        assert sum(row[0] for row in counter.rows.values()) == 6000

    def test_puts_a_time_into_the_bucket_up_to_whose_bound_it_is(self) -> None:
        times = Histogram("times", "", bounds=(0.1, 1))
        for seconds in (0.05, 0.1, 0.5, 1, 2):
            times.observe(seconds)

        assert times.rows[()] == [2, 2, 1, 3.65]
