"""Workers that share a queue, without a cluster: nothing lost or done twice, whatever dies."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from amplify.errors import InputError, ModelError
from amplify.models import pool as pools
from amplify.models.pool import Pool, WorkerDiedError

PATIENCE = 500.0  # seconds after which something hangs


class Doubler:
    """Doubles numbers; `dies(number)` says whether it dies over one."""

    def __init__(self, dies=lambda number: False):
        self.dies, self.alive, self.seen = dies, True, []

    def call(self, asked):
        if not self.alive or self.dies(asked):
            self.alive = False
            raise WorkerDiedError("killed")
        self.seen.append(asked)
        return 2 * asked

    def end(self):
        self.alive = False


def started(open_worker, count, **options):
    pool = Pool(open_worker, count, **options)
    pool.start(PATIENCE)
    return pool


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_given_twice_when_workers_die(seed: int) -> None:
    draw, guard, deaths = random.Random(seed), threading.Lock(), Counter()

    def dies(number: int) -> bool:
        with guard:
            if sum(deaths.values()) < 10 and draw.random() < 0.2 and deaths[number] < 3:
                deaths[number] += 1
                return True
        return False

    pool = started(lambda place: Doubler(dies), 4)
    assert sorted(pool.each(range(100))) == [2 * i for i in range(100)]
    assert sum(deaths.values()) == 10
    assert pool.replaced == 10
    pool.close()


def test_a_job_that_kills_every_worker_is_given_up_and_the_others_are_done() -> None:
    pool = started(lambda place: Doubler(lambda number: number == 3), 2, deaths=3)
    given: list[int] = []
    with pytest.raises(ModelError, match="3 workers died over it"):
        given.extend(pool.each(range(8)))
    futures = [pool.submit(i) for i in (10, 11)]
    assert [f.result(10) for f in futures] == [20, 22]
    assert len(given) == len(set(given))
    pool.close()


def test_what_a_job_raises_is_raised_when_the_others_are_given() -> None:
    class Picky(Doubler):
        def call(self, asked):
            if asked == 1:
                raise InputError("no ones")
            return super().call(asked)

    pool = started(lambda place: Picky(), 3)
    given: list[int] = []
    with pytest.raises(InputError, match="no ones"):
        given.extend(pool.each(range(3)))
    assert sorted(given) == [0, 4]
    pool.close()


def test_only_a_little_is_read_ahead() -> None:
    read: list[int] = []

    def endless() -> Iterator[int]:
        for i in range(10_000):
            read.append(i)
            yield i

    pool = started(lambda place: Doubler(), 3)
    results = pool.each(endless())
    for done in range(1, 50):
        next(results)
        assert len(read) <= done + 6 + 6  # twice the workers, and what was done meanwhile and waits to be given
    results.close()
    pool.close()


def test_a_worker_that_cannot_be_opened_ends_them_all() -> None:
    opened: list[Doubler] = []

    def open_worker(place: int) -> Doubler:
        if place == 2:
            raise InputError("no such model")
        opened.append(Doubler())
        return opened[-1]

    pool = Pool(open_worker, 3)
    with pytest.raises(InputError, match="no such model"):
        pool.start(PATIENCE)
    assert not any(worker.alive for worker in opened)
    with pytest.raises(ModelError, match="ended"):
        pool.submit(1)


def test_workers_that_are_not_ready_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "LEAVE", 0.01)
    go = threading.Event()

    def open_worker(place: int) -> Doubler:
        if place:
            go.wait(PATIENCE)
        return Doubler()

    pool = Pool(open_worker, 2)
    with pytest.raises(ModelError, match=r"[01] of 2 workers were ready within"):
        pool.start(0.3)
    go.set()


def test_the_others_go_on_where_one_cannot_be_replaced() -> None:
    opened = Counter()

    def open_worker(place: int) -> Doubler:
        opened[place] += 1
        if place == 0 and opened[place] > 1:
            raise ModelError("no machine left")
        return Doubler(lambda number: place == 0)

    pool = started(open_worker, 2)
    assert sorted(pool.each(range(20))) == [2 * i for i in range(20)]
    pool.close()


def test_all_gone_is_one_error() -> None:
    opened = Counter()

    def open_worker(place: int) -> Doubler:
        opened[place] += 1
        if opened[place] > 1:
            raise ModelError("no machine left")
        return Doubler(lambda number: True)

    pool = started(open_worker, 2)
    with pytest.raises(ModelError, match="no machine left"):
        list(pool.each(range(5)))
    with pytest.raises(ModelError, match="no machine left"):
        pool.submit(1)
    pool.close()


def test_closing_ends_what_waits() -> None:
    go = threading.Event()

    class Slow(Doubler):
        def call(self, asked):
            go.wait(PATIENCE)
            if not self.alive:
                raise WorkerDiedError("ended")
            return super().call(asked)

        def end(self):
            super().end()
            go.set()

    pool = started(lambda place: Slow(), 1)
    running, waiting = pool.submit(1), pool.submit(2)
    pool.close()
    pool.close()
    for future in (running, waiting):
        with pytest.raises(ModelError, match="ended"):
            future.result(PATIENCE)
