"""Many workers, one queue: each takes the next job when it is free, and one that dies is replaced.

Nothing here knows where a worker runs; `amplify.models.ray` brings those of a Ray cluster.

A job is done by one worker at a time. What a worker had in hand when it died goes back to the front of the queue, for
whichever is free first, and what was brought home is never asked again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from amplify.errors import ModelError

LEAVE = 10.0  # seconds that a place has to end when the pool is closed


class WorkerDiedError(Exception):
    """A worker is gone; whether it did what it had in hand is not known."""


class Worker(Protocol):
    """One that does jobs, one after the other."""

    def call(self, asked: Any) -> Any:
        """Do a job and give back what came of it.

        Raises:
            WorkerDiedError: it is gone.
        """
        ...

    def end(self) -> None:
        """Stop it, also in the middle of a job. Calling it twice is fine."""
        ...


@dataclass(eq=False)
class _Job:
    asked: Any
    deaths: int = 0
    future: Future[Any] = field(default_factory=Future)


class Pool:
    """A number of workers that share a queue. Safe to use from several threads.

    Args:
        open_worker: (number of its place) -> a worker that is ready.
        count: places for workers.
        deaths: after so many deaths over it a job is given up; so is a place whose workers die while they are opened.

    Example:
        >>> from amplify.models.pool import Pool
        >>> class Doubler:
        ...     def call(self, asked):
        ...         return 2 * asked
        ...     def end(self):
        ...         pass
        >>> pool = Pool(lambda place: Doubler(), 3)
        >>> pool.start(10.0)
        >>> sorted(pool.each([1, 2, 3]))
        [2, 4, 6]
        >>> pool.close()
    """

    def __init__(self, open_worker: Callable[[int], Worker], count: int, *, deaths: int = 5) -> None:
        self.count, self.deaths, self.replaced = count, deaths, 0
        self._open_worker = open_worker
        self._changed = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._workers: dict[int, Worker] = {}
        self._lost: dict[int, BaseException] = {}  # place -> why nobody works there any more
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, args=(k,), daemon=True) for k in range(count)]

    def start(self, patience: float) -> None:
        """Open all workers and wait until they are ready.

        Args:
            patience: seconds.

        Raises:
            ModelError: some are not ready by then; all are ended. Else what opening a worker raised.
        """
        for thread in self._threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._lost or len(self._workers) == self.count, patience)
            ready, lost = len(self._workers), list(self._lost.values())
        if lost or ready < self.count:
            self.close()
            if lost:
                raise lost[0]
            raise ModelError(f"{ready} of {self.count} workers were ready within {patience:g} s")

    def submit(self, asked: Any) -> Future[Any]:
        """Put a job at the end of the queue.

        Raises:
            ModelError: the pool is closed.
        """
        job = _Job(asked)
        with self._changed:
            if self._closed:
                raise ModelError("the workers were ended: open the model again")
            if len(self._lost) == self.count:
                raise next(iter(self._lost.values()))
            self._queue.append(job)
            self._changed.notify()
        return job.future

    def each(self, asked: Iterable[Any]) -> Iterator[Any]:
        """What comes of each job, as it comes; only twice as many jobs as there are workers are read ahead.

        Raises:
            Exception: what a job raised, when what the others had begun has been given.
        """
        jobs = iter(asked)
        failed: BaseException | None = None
        open_: set[Future[Any]] = set()
        try:
            while True:
                while failed is None and len(open_) < 2 * self.count:
                    try:
                        open_.add(self.submit(next(jobs)))
                    except StopIteration:
                        break
                if not open_:
                    break
                done, open_ = wait(open_, return_when=FIRST_COMPLETED)
                for future in done:
                    if future.cancelled():
                        continue
                    if (error := future.exception()) is None:
                        yield future.result()
                        continue
                    failed = failed or error
                    for waiting in open_:
                        waiting.cancel()
            if failed is not None:
                raise failed
        finally:
            for waiting in open_:
                waiting.cancel()

    def close(self) -> None:
        """End every worker; jobs that were not done fail. Calling it twice is fine."""
        with self._changed:
            self._closed = True
            waiting = list(self._queue)
            self._queue.clear()
            workers = list(self._workers.values())
            self._changed.notify_all()
        for job in waiting:
            _fail(job, ModelError("the workers were ended before this was done"))
        for worker in workers:
            worker.end()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(LEAVE)

    def _ended(self) -> bool:
        return self._closed

    def _serve(self, place: int) -> None:
        """What the thread of one place does."""
        worker: Worker | None = None
        while True:
            if worker is None:
                worker = self._opened(place)
                if worker is None:
                    return
            job = self._next()
            if job is None:
                worker.end()
                return
            try:
                result = worker.call(job.asked)
            except WorkerDiedError as death:
                worker = None
                self._died(place, job, death)
            except BaseException as error:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)

    def _opened(self, place: int) -> Worker | None:
        """A worker for a place, or None where none can be had, which is then remembered."""
        failed: BaseException = ModelError("the workers were ended")
        for _ in range(self.deaths):
            if self._ended():
                break
            try:
                worker = self._open_worker(place)
            except WorkerDiedError as death:
                failed = ModelError(f"{self.deaths} workers died while they were opened, the last so: {death}")
                continue
            except BaseException as error:
                failed = error
                break
            with self._changed:
                if not self._ended():
                    self._workers[place] = worker
                    self._changed.notify_all()
                    return worker
            worker.end()
        with self._changed:
            self._lost[place] = failed
            waiting = list(self._queue) if len(self._lost) == self.count else []
            if waiting:
                self._queue.clear()
            self._changed.notify_all()
        for job in waiting:
            _fail(job, failed)
        return None

    def _next(self) -> _Job | None:
        """The job at the front of the queue, waited for; None when the pool is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return None
                job = self._queue.popleft()
                if job.deaths or job.future.set_running_or_notify_cancel():
                    return job

    def _died(self, place: int, job: _Job, death: WorkerDiedError) -> None:
        job.deaths += 1
        with self._changed:
            self._workers.pop(place, None)
            self.replaced += not self._closed
            again = not self._closed and job.deaths < self.deaths
            if again:
                self._queue.appendleft(job)
                self._changed.notify()
        if not again:
            died = f"{job.deaths} workers died over it, the last so: {death}"
            job.future.set_exception(ModelError("the workers were ended" if self._closed else died))


def _fail(job: _Job, error: BaseException) -> None:
    if job.deaths or job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)
